"""Fixtures for the tests of this folder."""

import pytest
from checkpoint.incremental import array

from pytreesaver.formats.native import incremental, known, writing


@pytest.fixture
def any_size(monkeypatch):
    """Small files are shared too, and small arrays compared."""
    monkeypatch.setattr(incremental, "_MIN_SHARED_NBYTES", 0)
    for module in (incremental, known, writing):
        monkeypatch.setattr(module, "MIN_COMPARED_NBYTES", 1)


@pytest.fixture
def tree():
    return {"frozen": {"w": array(1), "v": array(2)}, "head": array(3), "step": 1}
