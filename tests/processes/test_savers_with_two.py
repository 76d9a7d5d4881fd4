"""The tests of the Saver and of several managers again, in which every call is made by two processes."""

import pytest
from processes.in_threads import Ranks
from processes.mirrored import mirrored_manager, mirrored_saver
from savers.test_saver import *  # noqa: F403
from savers.test_saver_retention import *  # noqa: F403
from savers.test_several_managers import *  # noqa: F403

import pytreesaver as pts


@pytest.fixture(autouse=True)
def two_processes(monkeypatch):
    ranks = Ranks(2, monkeypatch)
    monkeypatch.setattr(pts, "CheckpointManager", mirrored_manager(ranks), raising=False)
    monkeypatch.setattr(pts, "Saver", mirrored_saver(ranks), raising=False)
    yield
    ranks.close()


# Each of both savers reads the clock of the test, writes to the log, or would be pickled as a class of the tests.
del test_zero_or_none_hours_preserve_all_saves_after_the_construction, test_the_name_is_logged  # noqa: F821
del test_a_pickled_manager_finds_its_directory_from_anywhere, test_managers_and_savers_survive_pickling  # noqa: F821
