"""Processes that do not do the same, or see different things."""

import os
import signal
import time

import jax
import numpy as np
import pytest
from processes import programs
from processes.in_threads import Ranks

import pytreesaver as pts
from pytreesaver._io.processes import meeting
from pytreesaver._run import directory as run_directory
from pytreesaver.formats.indexed import directory as checkpoint_directory
from pytreesaver.testing import assert_trees_equal

OLD, NEW = {"w": np.arange(3.0)}, {"w": np.arange(3.0) + 1}


@pytest.fixture
def ranks(monkeypatch):
    ranks = Ranks(2, monkeypatch)
    yield ranks
    ranks.close()


def test_an_error_after_the_new_index_is_in_place_costs_no_data(ranks, monkeypatch):
    pts.save(OLD, "model")
    real = checkpoint_directory.sync_parents

    def fail(*arguments):
        if ranks.rank() == 0:
            raise OSError(5, "Input/output error")
        real(*arguments)

    monkeypatch.setattr(checkpoint_directory, "sync_parents", fail)
    results = ranks.run([lambda: pts.save(NEW, "model", overwrite=True, timeout=5)] * 2)
    assert all(isinstance(result, pts.CheckpointIOError) for result in results)
    pts.verify("model")
    assert_trees_equal(pts.restore("model"), NEW)


def save_with_large_values(path):
    """Values of the host may have other sizes in other processes: those of process 0 are saved."""
    rank = jax.process_index()
    tree = programs.tree_of({f"x{i}": (i, (64, 4), "float32", 0) for i in range(20)})
    tree |= {"text": "x" * (1 + 5000 * rank), "array": np.zeros(1000 * rank)}
    pts.save(tree, path, timeout=10)


def test_values_of_the_host_do_not_change_who_writes_what(pair, tmp_path):
    assert pair.run(save_with_large_values, tmp_path / "model") == [None, None]
    with pts.load_checkpoint(tmp_path / "model") as checkpoint:
        for i in range(20):
            np.testing.assert_array_equal(checkpoint[f"x{i}"][...], programs.values(i, (64, 4), "float32"))
        assert checkpoint["text"][...] == "x"


def test_saves_of_different_steps_are_not_mixed(ranks):
    managers = [ranks.as_rank(rank, lambda: pts.CheckpointManager("run", timeout=3, block=True)) for rank in (0, 1)]
    results = ranks.run([lambda: managers[0].save(1, OLD), lambda: managers[1].save(2, NEW)])
    assert all(isinstance(result, pts.CheckpointError) for result in results)
    assert "save(2) in run: process 0 makes another call at this point" in str(results[1])
    assert managers[0].all_steps() == []
    results = ranks.run([lambda: managers[0].should_save(1), lambda: managers[1].should_save(2)])
    assert isinstance(results[1], pts.CheckpointError)
    assert [str(path) for path in ranks.run([lambda each=each: each.save(3, NEW) for each in managers])] == [
        "run/ckpt-3"
    ] * 2
    for each in managers:
        each.close()


def test_a_checkpoint_that_one_process_does_not_see_makes_all_go_back(ranks, monkeypatch):
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, OLD)
        manager.save(2, NEW)
    real = run_directory.open_reader

    def open_reader(path, format=None):
        if ranks.rank() == 1 and str(path).endswith("ckpt-2"):
            raise pts.CheckpointNotFoundError(f"{path}: expected a checkpoint, found nothing")
        return real(path, format)

    monkeypatch.setattr(run_directory, "open_reader", open_reader)
    managers = [ranks.as_rank(rank, lambda: pts.CheckpointManager("run", timeout=5)) for rank in (0, 1)]
    started = time.monotonic()
    with pytest.warns(pts.RetentionWarning, match="ckpt-2"):
        results = ranks.run([lambda each=each: each.restore() for each in managers])
    assert time.monotonic() - started < 4
    for result in results:
        assert_trees_equal(result, OLD)


def test_a_process_that_comes_too_late_hears_why(ranks):
    late = lambda: (time.sleep(1.5), pts.save(NEW, "model", timeout=1))  # noqa: E731
    results = ranks.run([lambda: pts.save(NEW, "model", timeout=1), late])
    assert isinstance(results[0], pts.ProcessTimeoutError)
    assert isinstance(results[1], pts.ProcessTimeoutError)
    assert str(results[1]) == f"process 0: {results[0]}"
    assert results[1].missing == [1]


def go_on_after_a_signal(directory):
    """Get a signal whose handler lets the program go on. Return the steps that were saved."""
    seen = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: seen.append("handled"))
    try:
        with pts.CheckpointManager(
            directory, save_interval_steps=10, save_on_signal=signal.SIGUSR1, block=True, timeout=20
        ) as manager:
            for step in range(12):
                if step == 3 and jax.process_index() == 1:
                    os.kill(os.getpid(), signal.SIGUSR1)
                manager.save(step, {"x": programs.put(np.zeros((4, 4)), programs.SPECS[1])})
                programs.wait_for_all(step)
            return manager.all_steps(), seen
    finally:
        signal.signal(signal.SIGUSR1, previous)


def with_flags_that_stay(directory):
    """Do the same where what a process has told of the signal is never deleted, as if it were told again, too late."""
    own = meeting.Meeting.lower_flags
    meeting.Meeting.lower_flags = lambda self, name: None
    try:
        return go_on_after_a_signal(directory)
    finally:
        meeting.Meeting.lower_flags = own


@pytest.mark.parametrize("function", [go_on_after_a_signal, with_flags_that_stay])
def test_a_signal_counts_once(pair, tmp_path, function):
    here, there = pair.run(function, tmp_path)
    assert here == there
    steps, seen = here
    assert seen == ["handled"]
    assert steps[0] == 0
    assert steps[1] in (3, 4)
    assert len(steps) <= 3


def restore_step(directory):
    manager = pts.CheckpointManager(directory, timeout=10)
    try:
        manager.restore(step=1 + jax.process_index())
    except pts.CheckpointError as error:
        return str(error)


def test_restores_of_different_steps_are_refused(pair, tmp_path):
    with pts.CheckpointManager(tmp_path) as manager:
        manager.save(1, OLD)
        manager.save(2, NEW)
    here, there = pair.run(restore_step, tmp_path)
    assert "process 0 makes another call at this point, or with other arguments" in there
    assert here is not None


def out_of_step(directory):
    """Process 0 alone asks for the newest step. Then all make a new manager, and go on."""
    manager = pts.CheckpointManager(directory, timeout=2)
    error = None
    if jax.process_index() == 0:
        try:
            manager.latest_step()
        except pts.ProcessTimeoutError as problem:
            error = problem.missing
    with pts.CheckpointManager(directory, timeout=10, block=True) as manager:
        manager.save(1, {"x": programs.put(np.zeros((4, 4)), programs.SPECS[1])})
        return error, manager.latest_step()


def test_a_question_of_process_0_alone_is_an_error_and_a_new_manager_goes_on(pair, tmp_path):
    assert pair.run(out_of_step, tmp_path) == [([1], 1), (None, 1)]


def save_and_restore_keys(path):
    from jax.sharding import NamedSharding

    def keys(spec, shape, impl):
        sharding = NamedSharding(programs.mesh(), spec)
        make = lambda: jax.random.split(jax.random.key(3, impl=impl), shape) if shape else jax.random.key(3, impl=impl)  # noqa: E731
        return jax.jit(make, out_shardings=sharding)()

    tree = {
        "one": keys(programs.SPECS[0], (), "threefry2x32"),
        "many": keys(programs.SPECS[3], (8,), "threefry2x32"),
        "rbg": keys(programs.SPECS[1], (4, 2), "rbg"),
    }
    pts.save(tree, path, timeout=10)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    results = []
    for template in (tree, like):
        found = pts.restore(path, template)
        for name, expected in tree.items():
            data, wanted = jax.random.key_data(found[name]), jax.random.key_data(expected)
            same = [np.array_equal(a.data, b.data) for a, b in zip(data.addressable_shards, wanted.addressable_shards)]
            results.append((found[name].sharding == expected.sharding, found[name].dtype == expected.dtype, all(same)))
    return results


def test_global_keys_come_back(pair, tmp_path):
    assert pair.run(save_and_restore_keys, tmp_path / "keys") == [[(True, True, True)] * 6] * 2


def save_on_a_part_of_the_processes(path):
    """An array that only the devices of process 0 hold."""
    from jax.sharding import NamedSharding, PartitionSpec

    devices = [device for device in jax.devices() if device.process_index == 0]
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    array = np.arange(16.0, dtype=np.float32)
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    x = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index], dtype=array.dtype)
    tree = {"part": x, "all": programs.put(np.ones((4, 4), np.float32), programs.SPECS[1])}
    pts.save(tree, path, timeout=10)
    found = pts.restore(path, tree)
    shards = [np.asarray(shard.data) for shard in found["part"].addressable_shards]
    return np.concatenate(shards).tolist() if shards else None


def test_arrays_that_some_processes_do_not_hold(pair, tmp_path):
    here, there = pair.run(save_on_a_part_of_the_processes, tmp_path / "part")
    assert (here, there) == (np.arange(16.0).tolist(), None)
    np.testing.assert_array_equal(pts.restore(tmp_path / "part", as_numpy=True)["part"], np.arange(16.0))
