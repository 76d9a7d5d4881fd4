"""Attacks on the lease of a run directory in an object store: every one ends in minutes, and is taken over."""

import tomllib

import pytest
from attacks.attack import FILES

from pytreesaver._io import filesystem
from pytreesaver._io.stores import lease
from pytreesaver._io.stores.objects import put
from pytreesaver._io.stores.paths import StorePath

TABLE = tomllib.loads((FILES / "leases.toml").read_text())


class Clock:
    """A clock that goes on while one sleeps."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("name", TABLE)
def test_a_lease_ends_whatever_it_says(name, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    path = StorePath(f"memory://attacks/{name}/.pytreesaver.lock")
    put(path, (FILES / "leases" / name).read_bytes())
    handle = lease.open_lease(path, "process 2")
    filesystem.release(handle)
    assert clock.now < 300
