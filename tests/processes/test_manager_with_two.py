"""The tests of the manager again, in which every call is made by two processes."""

import pytest
from processes.in_threads import Ranks
from processes.mirrored import mirrored_manager
from savers.test_manager import *  # noqa: F403
from savers.test_manager_retention import *  # noqa: F403

import pytreesaver as pts


@pytest.fixture(autouse=True)
def two_processes(monkeypatch):
    ranks = Ranks(2, monkeypatch)
    monkeypatch.setattr(pts, "CheckpointManager", mirrored_manager(ranks), raising=False)
    yield
    ranks.close()
