"""Fixtures for the tests of this folder."""

import pytest

from pytreesaver.formats.native import incremental, known, writing


@pytest.fixture
def any_size(monkeypatch):
    """Small files are shared too, and small arrays compared."""
    monkeypatch.setattr(incremental, "_MIN_SHARED_NBYTES", 0)
    for module in (incremental, known, writing):
        monkeypatch.setattr(module, "MIN_COMPARED_NBYTES", 1)
