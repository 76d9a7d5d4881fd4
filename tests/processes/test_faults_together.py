"""A process is killed, or hangs, before each message and each operation of the file system."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from processes.in_threads import Ranks

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.testing import assert_trees_equal

OPERATIONS = [
    *("open_new", "open_existing", "open_to_lock", "open_or_create", "reserve", "write", "sync_file", "sync_directory"),
    *("close", "make_directory", "remove_directory", "rename", "rename_to_new", "link", "remove_file", "truncate"),
    *("list_directory", "status", "try_lock", "lock"),
]
MESSAGES = ["put", "get", "list", "delete"]
TIMEOUT = 0.8
LONG = bool(os.environ.get("PYTREESAVER_LONG_TESTS"))


class Killed(BaseException):
    """The simulated end of a process: it changes nothing any more, and says nothing."""


class Fault:
    """Kills or delays one rank before its call number `at`, counted over all operations and messages."""

    def __init__(self, monkeypatch, ranks, rank, at, hang):
        self.calls, self.happened = 0, False
        self.released = threading.Event()
        self.ranks, self.rank, self.at, self.hang = ranks, rank, at, hang
        for name in OPERATIONS:
            monkeypatch.setattr(filesystem, name, self.wrapped(getattr(filesystem, name)))
        for name in MESSAGES:
            own = ranks.coordinators[rank]
            setattr(own, name, self.wrapped(getattr(own, name)))

    def wrapped(self, function):
        def call(*args, **options):
            if self.ranks.rank() == self.rank:
                self.calls += 1
                if self.calls == self.at and self.hang:
                    self.happened = True
                    self.released.wait(20)
                elif self.calls >= self.at and not self.hang:
                    self.happened = True
                    raise Killed
            return function(*args, **options)

        return call


BIG = np.arange(20_000.0)
OLD = {"w": np.arange(3.0), "v": np.zeros(5), "big": BIG}
NEW = {"w": np.arange(3.0) + 1, "v": np.ones(5), "big": BIG}


def save_new():
    return lambda: pts.save(NEW, "model", timeout=TIMEOUT)


def overwrite():
    return lambda: pts.save(NEW, "model", overwrite=True, timeout=TIMEOUT)


def overwrite_incrementally():
    return lambda: pts.save(NEW, "model", base="model", overwrite=True, timeout=TIMEOUT)


def overwrite_in_another_format():
    return lambda: pts.save(NEW, "model", format="safetensors", overwrite=True, timeout=TIMEOUT)


def save_step(step=2):
    manager = pts.CheckpointManager("run", max_to_keep=1, block=True, timeout=TIMEOUT)

    def save():
        manager.save(step, NEW)
        manager.close()

    return save


def save_next_step():
    return save_step(3)


def with_saver():
    saver = pts.Saver(max_to_keep=1, timeout=TIMEOUT)
    return lambda: saver.save(NEW, "run/m", global_step=2)


CASES = {
    "new": (save_new, lambda: None, overwrite, Path("model")),
    "overwrite": (overwrite, lambda: pts.save(OLD, "model"), overwrite, Path("model")),
    "incremental": (overwrite_incrementally, lambda: pts.save(OLD, "model"), overwrite, Path("model")),
    "another format": (
        overwrite_in_another_format,
        lambda: pts.save(OLD, "model", format="safetensors"),
        overwrite_in_another_format,
        Path("model"),
    ),
    "manager": (save_step, lambda: pts.CheckpointManager("run", block=True).save(1, OLD), save_next_step, Path("run")),
    "saver": (with_saver, lambda: pts.Saver().save(OLD, "run/m", 1), with_saver, Path("run")),
}


def released_when_others_end(fault, calls):
    """Return calls of which the last one to end lets the rank that hangs go on."""
    left = [len(calls) - 1]

    def wrapped(rank, call):
        def run():
            try:
                return call()
            finally:
                if rank != fault.rank:
                    left[0] -= 1
                    if left[0] == 0:
                        fault.released.set()

        return run

    return [wrapped(rank, call) for rank, call in enumerate(calls)]


def outcome(monkeypatch, case, rank, at, *, hang, count=2):
    """Let the fault happen, and check everything. Return whether it happened."""
    make, prepare, make_next, place = CASES[case]
    prepare()
    with monkeypatch.context() as patch:
        ranks = Ranks(count, patch)
        savers = [ranks.as_rank(each, make) for each in range(count)]
        fault = Fault(patch, ranks, rank, at, hang)
        started = time.monotonic()
        results = ranks.run(released_when_others_end(fault, savers))
        seconds = time.monotonic() - started
        ranks.close()
        happened = fault.happened
    survivors = [result for i, result in enumerate(results) if i != rank]
    failed = [result for result in survivors if isinstance(result, BaseException)]
    for result in failed:
        assert isinstance(result, pts.CheckpointError), repr(result)
    if happened and not hang:
        assert isinstance(results[rank], Killed)
    elif isinstance(results[rank], BaseException):
        assert isinstance(results[rank], pts.CheckpointError), repr(results[rank])
    assert seconds < 6 * TIMEOUT
    newest = place if place.name == "model" else pts.latest_checkpoint(place)
    if newest is None or not newest.exists():
        assert case == "new"
        assert failed
    else:
        pts.verify(newest)
        found = pts.restore(newest)
        try:
            assert_trees_equal(found, NEW)
        except AssertionError:
            assert_trees_equal(found, OLD)
            assert len(failed) == len(survivors), "a process was told that the save had succeeded"
    check_next_save(monkeypatch, make_next, place, count)
    return happened


def check_next_save(monkeypatch, make, place, count):
    """Check that the next save succeeds, as after a restart of all processes, and leaves no debris."""
    with monkeypatch.context() as patch:
        ranks = Ranks(count, patch)
        results = ranks.run([ranks.as_rank(each, make) for each in range(count)])
        ranks.close()
    assert not any(isinstance(result, BaseException) for result in results), results
    folder = place if place.name == "model" else pts.latest_checkpoint(place)
    names = filesystem.file_sizes(folder)
    with pts.load_checkpoint(folder) as checkpoint:
        assert_trees_equal({name: checkpoint[name][...] for name in checkpoint}, NEW)
        assert len(names) == (2 if folder.is_dir() else 1), names
    hidden = [entry.name for entry in place.parent.iterdir() if entry.name.startswith(".pytreesaver-")]
    hidden += [name for name in filesystem.file_sizes(place) if name.startswith(".pytreesaver-")]
    assert hidden == []


@pytest.mark.parametrize("hang", [False, True], ids=["killed", "hangs"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_a_process_that_is_killed_or_hangs_at_any_step(monkeypatch, tmp_path, case, rank, hang):
    points = 0
    at = 1 if LONG else 1 + (len(case) + rank + 2 * hang) % 4
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        monkeypatch.chdir(folder)
        if not outcome(monkeypatch, case, rank, at, hang=hang):
            break
        points += 1
        at += 1 if LONG else 6 if rank else 10 if case in ("new", "overwrite") else 17 if case == "incremental" else 41
    assert points > 0
    print(f"{case}: process {rank} {'hung' if hang else 'was killed'} at {points} points")
