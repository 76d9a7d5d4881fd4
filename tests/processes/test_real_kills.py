"""Real processes that are killed, stopped or told to end, during the saves of a program."""

import os
import random
import signal
import threading
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from processes import programs
from processes.team import DeadProcessError, Failed, Team

import pytreesaver as pts
from pytreesaver._io import filesystem

LONG = bool(os.environ.get("PYTREESAVER_LONG_TESTS"))
COUNT = 4 if LONG else 2
TREE = {"x": (1, (64, 64), "float32", 3), "y": (2, (64, 64), "float32", 0)}
OTHER = {"x": (3, (64, 64), "float32", 3), "y": (4, (64, 64), "float32", 0)}


@pytest.fixture
def team():
    team = Team(COUNT)
    yield team
    team.close()


def save_and_die(rank, operation, number, path, timeout):
    """Save; the process with this rank sends itself a signal before a call of an operation of the file system."""
    calls, real = [0], getattr(filesystem, operation)

    def call(*arguments):
        calls[0] += 1
        if calls[0] == number and jax.process_index() == rank:
            os.kill(os.getpid(), number_of_signal)
        return real(*arguments)

    number_of_signal = signal.SIGKILL
    setattr(filesystem, operation, call)
    started = time.monotonic()
    try:
        pts.save(programs.tree_of(OTHER), path, overwrite=True, timeout=timeout)
    except pts.CheckpointError as error:
        return type(error).__name__, getattr(error, "missing", None), time.monotonic() - started
    finally:
        setattr(filesystem, operation, real)


# The short version tries one of them, another one each time.
OPERATIONS = ["open_new", "write", "sync_file"]


@pytest.mark.parametrize(
    "operation", OPERATIONS if LONG else [random.choice(OPERATIONS)], ids=None if LONG else ["any"]
)
def test_a_process_killed_in_its_write_is_named_and_the_old_checkpoint_is_whole(team, tmp_path, operation):
    path, rank = tmp_path / "model", COUNT - 1
    team.run(programs.save, TREE, path)
    results = team.run(save_and_die, rank, operation, 1, path, 4.0)
    assert isinstance(results[rank], DeadProcessError)
    for name, missing, seconds in results[:rank]:
        assert name == "ProcessTimeoutError"
        assert missing == [rank]
        assert seconds < 6
    pts.verify(path)
    assert team.run(programs.restored, TREE, path) == [True] * COUNT
    assert team.run(programs.save, OTHER, path, {"overwrite": True}) == [path] * COUNT
    assert len(list(path.iterdir())) == COUNT + 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_the_process_with_the_coordinator_is_killed(team, tmp_path):
    path = tmp_path / "model"
    team.run(programs.save, TREE, path)
    results = team.run(save_and_die, 0, "write", 1, path, 4.0)
    assert isinstance(results[0], DeadProcessError)
    for result in results[1:]:
        # JAX itself ends a process that has lost its coordinator, unless our error comes first.
        assert isinstance(result, DeadProcessError) or result[0] in ("CoordinatorLostError", "ProcessTimeoutError")
    pts.verify(path)
    assert team.run(programs.restored, TREE, path) == [True] * COUNT
    assert team.run(programs.save, OTHER, path, {"overwrite": True}) == [path] * COUNT
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def save_while_stopped(path, timeout):
    started = time.monotonic()
    try:
        pts.save(programs.tree_of(OTHER), path, overwrite=True, timeout=timeout)
    except pts.CheckpointError as error:
        return type(error).__name__, getattr(error, "missing", None), time.monotonic() - started
    return "saved", None, time.monotonic() - started


def test_a_process_that_is_stopped_is_named_and_hears_of_it_when_it_goes_on(team, tmp_path):
    path, rank = tmp_path / "model", COUNT - 1
    team.run(programs.save, TREE, path)
    team.signal(rank, signal.SIGSTOP)
    threading.Timer(6, team.signal, [rank, signal.SIGCONT]).start()
    results = team.run(save_while_stopped, path, 3.0)
    for name, missing, seconds in results[:rank]:
        assert (name, missing) == ("ProcessTimeoutError", [rank])
        assert seconds < 4
    assert results[rank][0] == "ProcessTimeoutError"
    assert team.run(programs.restored, TREE, path) == [True] * COUNT
    assert team.run(programs.save, OTHER, path, {"overwrite": True}) == [path] * COUNT
    assert team.run(programs.restored, OTHER, path) == [True] * COUNT


def train_until_the_signal(directory, rank):
    """Train; one process gets a SIGTERM at step 3. Return what each has seen, if the process survives."""
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda *_: seen.append("ended"))
    try:
        with pts.CheckpointManager(directory, save_interval_steps=100, save_on_sigterm=True, timeout=20) as manager:
            state = manager.restore_or_init({"x": programs.put(np.zeros((4, 4)), programs.SPECS[1]), "step": 0})
            for step in range(state["step"], 50):
                if step == 3 and jax.process_index() == rank:
                    os.kill(os.getpid(), signal.SIGTERM)
                if manager.save(step, {"x": state["x"], "step": step}) is not None:
                    seen.append(step)
                if "ended" in seen:
                    break
                multihost_utils.sync_global_devices("step")
    finally:
        signal.signal(signal.SIGTERM, previous)
    return seen


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_that_arrives_in_any_process_makes_all_save_for_the_last_time(pair, tmp_path, rank):
    here, there = pair.run(train_until_the_signal, tmp_path, rank)
    assert not isinstance(here, Failed), here
    assert here == there
    assert here[:2] == [0, "ended"]
    assert here[2] in (3, 4)
    assert pts.CheckpointManager(tmp_path).all_steps() == [0, here[2]]


def restore_after_damage(directory):
    like = {"x": programs.put(np.zeros((64, 64), np.float32), programs.SPECS[3])}
    manager = pts.CheckpointManager(directory, timeout=20)
    with pytest.warns(pts.RetentionWarning, match="ckpt-2"):
        tree = manager.restore(like)
    return float(tree["x"].sum())


def save_steps(directory, steps):
    with pts.CheckpointManager(directory, timeout=20) as manager:
        for step in steps:
            manager.save(step, {"x": programs.put(np.full((64, 64), step, np.float32), programs.SPECS[3])})


def test_damage_that_one_process_reads_makes_all_go_back(pair, tmp_path):
    pair.run(save_steps, tmp_path, [1, 2])
    file = tmp_path / "ckpt-2" / "data-00001-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # process 0 does not read this byte
    file.write_bytes(content)
    assert pair.run(restore_after_damage, tmp_path) == [64 * 64, 64 * 64]


def train(directory, steps):
    """Train up to a step from where the run is, with elementwise operations."""
    state = {"w": programs.put(np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64), programs.SPECS[3])}
    state |= {"m": programs.put(np.zeros((64, 64), np.float32), programs.SPECS[0]), "step": 0}
    update = jax.jit(
        lambda w, m: (w - 0.1 * (0.9 * m + w), 0.9 * m + w), out_shardings=(state["w"].sharding, state["m"].sharding)
    )
    with pts.CheckpointManager(directory, save_interval_steps=3, timeout=20) as manager:
        state = manager.restore_or_init(state)
        for step in range(state["step"], steps):
            w, m = update(state["w"], state["m"])
            state = {"w": w, "m": m, "step": step + 1}
            manager.save(step + 1, state)
    return


def test_a_run_of_several_processes_is_resumed_by_fewer_bit_for_bit(team, tmp_path):
    """The number of processes in a long run is 4."""
    smaller, alone = Team(2), Team(1)
    try:
        assert team.run(train, tmp_path / "all", 13) == [None] * COUNT
        assert team.run(train, tmp_path / "resumed", 7) == [None] * COUNT
        assert smaller.run(train, tmp_path / "resumed", 10) == [None, None]
        assert alone.run(train, tmp_path / "resumed", 13) == [None]
    finally:
        smaller.close()
        alone.close()
    assert pts.diff(tmp_path / "all" / "ckpt-13", tmp_path / "resumed" / "ckpt-13").equal
