"""Several processes save one tree together, and restore it."""

import contextlib
import json
import re
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import programs
from processes.programs import SPECS

import pytreesaver as pts

NAMES = ["a", "b/c", "b/d", "long/name", "e"]
DTYPES = ["float32", "bfloat16", "int8", "bool", "float16", "int32"]
SHAPES = [(4, 4), (8, 4), (4, 12, 3), (16, 8), (0, 4), (4, 0), (1024, 600)]


@st.composite
def descriptions(draw):
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    return {
        name: (
            draw(st.integers(0, 9)),
            draw(st.sampled_from(SHAPES)),
            draw(st.sampled_from(DTYPES)),
            draw(st.sampled_from([None, *range(len(SPECS))])),
        )
        for name in names
    }


def with_other_shardings(description):
    last = len(SPECS) - 1
    return {name: (*rest, None if spec is None else last - spec) for name, (*rest, spec) in description.items()}


def array_nbytes(path):
    """Return the size of the arrays in the data files of a checkpoint."""
    total = 0
    for file in Path(path).glob("data-*"):
        header = int.from_bytes(file.read_bytes()[:8], "little") + 8
        total += file.stat().st_size - header
    return total


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(descriptions(), st.sampled_from(["save", "save_in_background"]), st.data())
def test_what_two_processes_save_is_restored_by_two_and_by_one(pair, tmp_path, description, save, data):
    path = tmp_path / "model"
    options = data.draw(st.sampled_from([{}, {"shard_nbytes": 5000}, {"durable": False}])) | {"overwrite": True}
    assert pair.run(getattr(programs, save), description, path, options) == [path, path]
    assert pair.run(programs.restored, description, path) == [True, True]
    assert pair.run(programs.restored, with_other_shardings(description), path, {"mmap": True}) == [True, True]
    alone = pts.restore(path, as_numpy=True)
    assert alone.keys() == description.keys()
    with pts.load_checkpoint(path) as checkpoint:
        for name, (seed, shape, dtype, _) in description.items():
            np.testing.assert_array_equal(checkpoint[name][...], programs.values(seed, shape, dtype))
        payload = sum(variable.nbytes for variable in checkpoint.values())
    assert array_nbytes(path) == payload  # each byte once
    pts.verify(path)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(descriptions())
def test_what_one_process_saved_is_restored_by_two(pair, tmp_path, description):
    tree = {name: programs.values(seed, shape, dtype) for name, (seed, shape, dtype, _) in description.items()}
    tree = {n: a if description[n][3] is None else jax.numpy.asarray(a) for n, a in tree.items()}
    pts.save(tree, tmp_path / "model", overwrite=True)
    assert pair.run(programs.restored, description, tmp_path / "model") == [True, True]


LARGE = {"x": (1, (1024, 2048), "float32", 0), "y": (2, (1024, 2048), "float32", 1)}


def test_each_process_writes_half_of_the_bytes_into_a_file_of_its_own(pair, tmp_path):
    pair.run(programs.save, LARGE, tmp_path / "model")
    files = sorted(file.name for file in (tmp_path / "model").iterdir())
    assert files == ["data-00000-of-00002.safetensors", "data-00001-of-00002.safetensors", "index.json"]
    sizes = [(tmp_path / "model" / file).stat().st_size for file in files[:2]]
    assert sizes[0] == pytest.approx(8 << 20, rel=0.01)
    assert sizes[1] == pytest.approx(8 << 20, rel=0.01)


def test_small_replicated_leaves_are_shared_out(pair, tmp_path):
    pair.run(programs.save, {f"x{i}": (i, (10, 10), "float32", 0) for i in range(100)}, tmp_path / "model")
    sizes = [file.stat().st_size for file in (tmp_path / "model").glob("data-*")]
    assert len(sizes) == 2
    assert max(sizes) <= min(sizes) * 1.5


def values_of_rank(path):
    rank = jax.process_index()
    tree = {"of_numpy": np.full(3, rank), "of_python": rank, "text": "ab" * rank, "alike": jax.numpy.arange(4)}
    pts.save(tree, path)
    return pts.restore(path, as_numpy=True)


def test_values_of_numpy_and_python_are_those_of_process_0(pair, tmp_path):
    for result in pair.run(values_of_rank, tmp_path / "model"):
        assert (result["of_numpy"] == 0).all()
        assert (result["of_python"], result["text"]) == (0, "")
        assert (result["alike"] == np.arange(4)).all()


def save_different_copies(path):
    pts.save({"step": jax.numpy.int32(7), "key": jax.random.key(jax.process_index())}, path)


def test_arrays_that_are_not_global_have_to_be_equal(pair, tmp_path):
    for failed in pair.run(save_different_copies, tmp_path / "model"):
        assert failed.kinds[0] == "UnsupportedLeafError"
        assert "key: process 1 has other values than process 0" in failed.message
        assert "step" not in failed.message
    assert list(tmp_path.iterdir()) == []


def save_different_trees(path):
    rank = jax.process_index()
    tree = programs.tree_of({"x": (0, (4, 4 + rank), "float32", 1), "same": (0, (4, 4), "int8", 1)})
    pts.save(tree | ({"extra": 1} if rank else {}), path)


def test_different_trees_are_refused_with_what_differs(pair, tmp_path):
    for failed in pair.run(save_different_trees, tmp_path / "model"):
        assert failed.kinds[0] == "UnsupportedLeafError"
        assert "that of process 1 differs from that of process 0" in failed.message
        assert re.search(r"x: expected float32\[4,4\].*found float32\[4,5\]", failed.message)
        assert "extra: expected no such variable, found a value of Python (int)" in failed.message
        assert "same:" not in failed.message
    assert list(tmp_path.iterdir()) == []


def save_with_a_bad_leaf(path):
    started = time.monotonic()
    try:
        pts.save({"x": object() if jax.process_index() else 1}, path)
    except pts.CheckpointError as error:
        return type(error).__name__, str(error), time.monotonic() - started


def test_a_process_that_fails_tells_the_others_at_once(pair, tmp_path):
    here, there = pair.run(save_with_a_bad_leaf, tmp_path / "model")
    assert here[0] == there[0] == "UnsupportedLeafError"
    assert here[1].startswith("process 1: ")
    assert here[1].removeprefix("process 1: ") == there[1]
    assert here[2] < 5


def save_in(ranks, path, timeout):
    started = time.monotonic()
    try:
        if jax.process_index() in ranks:
            pts.save({"x": 1}, path, timeout=timeout)
    except pts.ProcessTimeoutError as error:
        return error.missing, str(error), time.monotonic() - started


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_does_not_come_is_named_after_the_deadline(pair, tmp_path, rank):
    missing, message, seconds = pair.run(save_in, [rank], tmp_path / "model", 2.0)[rank]
    assert missing == [1 - rank]
    assert f"process {1 - rank} of 2" in message
    assert 1 < seconds < 4
    # The one that comes late hears why, and the next save is complete.
    late = pair.run(save_in, [1 - rank], tmp_path / "model", 2.0)[1 - rank]
    assert late is None or "did not" in late[1]


def test_the_next_save_works_after_one_that_failed(pair, tmp_path):
    path = tmp_path / "model"
    failures = pair.run(save_with_a_bad_leaf, path)
    assert None not in failures
    assert pair.run(programs.save, LARGE, path) == [path, path]
    exists = pair.run(programs.save, LARGE, path)
    assert [each.kinds[0] for each in exists] == ["CheckpointExistsError"] * 2
    assert pair.run(programs.save, {"x": LARGE["y"]}, path, {"overwrite": True}) == [path, path]
    assert pair.run(programs.restored, {"x": LARGE["y"]}, path) == [True, True]
    assert len(list(path.iterdir())) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def save_alone(path):
    rank = jax.process_index()
    pts.save({"rank": rank}, path / str(rank), processes="this")
    try:
        pts.save({"x": programs.put(np.zeros((4, 4)), SPECS[1])}, path / f"global-{rank}", processes="this")
    except pts.UnsupportedLeafError as error:
        return pts.restore(path / str(rank)), str(error)


def test_a_process_can_save_alone(pair, tmp_path):
    for rank, (tree, message) in enumerate(pair.run(save_alone, tmp_path)):
        assert tree == {"rank": rank}
        assert 'sharded over several processes; let all of them save it, with processes="all"' in message


def test_saver_with_sharded_writes_a_file_for_each_device(pair, tmp_path):
    paths = pair.run(save_with_saver, tmp_path)
    assert paths == [str(tmp_path / "m-2")] * 2
    files = sorted(file.name for file in (tmp_path / "m-2").glob("data-*"))
    assert files == [f"data-{i:05}-of-00004.safetensors" for i in range(4)]
    assert pts.latest_checkpoint(tmp_path) == tmp_path / "m-2"
    assert pair.run(programs.restored, {"x": (1, (8, 8), "float32", 3)}, tmp_path / "m-2") == [True, True]
    assert pair.run(programs.restored, {"x": (1, (8, 8), "float32", 1)}, tmp_path) == [True, True]


def save_with_saver(directory):
    saver = pts.Saver(sharded=True, max_to_keep=1)
    tree = programs.tree_of({"x": (1, (8, 8), "float32", 3)})
    for step in range(2):
        saver.save(tree, directory / "m", global_step=step, block=step == 0)
    return saver.save(tree, directory / "m", global_step=2)


def train_during_saves(directory, steps):
    """Save in the background beside steps with collectives, which donate the arrays that are being saved."""
    from jax.sharding import PartitionSpec

    state = programs.put(np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024), PartitionSpec("process"))
    step = jax.jit(lambda x: x + 1 + 0 * x.sum(), donate_argnums=0)
    futures = []
    for i in range(steps):
        futures.append(pts.save_async({"x": state}, directory / str(i)))
        state = step(state)
    return [str(future.result()) for future in futures]


def test_saves_in_the_background_run_beside_collectives(pair, tmp_path):
    pair.run(train_during_saves, tmp_path, 4)
    for i in range(4):
        first = pts.restore(tmp_path / str(i), as_numpy=True)["x"]
        assert (first == np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024) + i).all()


def shared_by(path):
    """Return for each data file whether it was taken from an earlier checkpoint."""
    files = json.loads((path / "index.json").read_text())["files"]
    return [bool(file.get("shared")) for file in files]


def test_what_is_unchanged_is_not_written_by_any_process(pair, tmp_path):
    assert pair.run(programs.save_incrementally, tmp_path) == [[3], [3]]
    assert sorted(shared_by(tmp_path / "second")) == [False, False, True, True]
    # Only the step was changed, which is written by process 0.
    assert sorted(shared_by(tmp_path / "run" / "ckpt-3")) == [False, True, True]
    pts.remove_checkpoint(tmp_path / "first")
    for path in (tmp_path / "second", tmp_path / "run" / "ckpt-3"):
        pts.verify(path)
        tree = pts.restore(path, as_numpy=True)
        np.testing.assert_array_equal(tree["x"], programs.values(1, (64, 4096), "float32"))
        np.testing.assert_array_equal(tree["z"], programs.values(3, (64, 1024), "float32") + 1)
    assert tree["step"] == 3


FORMATS = ["orbax", "safetensors", "npz", "msgpack", "tensorflow"]


@pytest.mark.parametrize("format", FORMATS)
def test_other_formats_are_written_from_the_parts_of_all_processes(pair, tmp_path, format):
    description = {"a": (1, (8, 4), "float32", 3), "b/c": (2, (4, 4), "int32", 0), "n": (3, (5,), "int32", None)}
    path = tmp_path / "new" / "directories" / "7"
    assert pair.run(programs.save, description, path, {"format": format}) == [path, path]
    assert pair.run(programs.restored, description, path) == [True, True]
    assert [pts.load_checkpoint(path).format] == [format]
    assert [each.name for each in path.parent.glob(".*")] == []
    for failed in pair.run(programs.save, description, path, {"format": format}):
        assert failed.kinds[0] == "CheckpointExistsError"
    other = description | {"a": (4, (8, 4), "float32", 3)}
    options = {"format": format, "overwrite": True}
    assert pair.run(programs.save_in_background, other, path, options) == [path, path]
    assert pair.run(programs.restored, other, path) == [True, True]


def test_what_another_format_cannot_hold_is_refused_in_all_processes(pair, tmp_path):
    description = {"a": (1, (8, 4), "float32", 3), "empty": (1, (0, 4), "float32", 3)}
    for failed in pair.run(programs.save, description, tmp_path / "model", {"format": "orbax"}):
        assert "UnsupportedLeafError" in failed.kinds
        assert "empty: Orbax holds no empty arrays" in failed.message
    assert list(tmp_path.iterdir()) == []


def save_steps_for_orbax(directory):
    tree = programs.tree_of({"a": (1, (8, 4), "float32", 3)})
    with pts.CheckpointManager(directory, max_to_keep=2, format="orbax") as manager:
        for step in (1, 2, 3):
            manager.save(step, tree)
    alone = directory / f"alone-{jax.process_index()}"
    with contextlib.ExitStack() as stack:
        if jax.process_index() > 0:
            stack.enter_context(pytest.raises(pts.CheckpointError, match=r"expected process 0 .* found process 1"))
        pts.save({"rank": np.full(2, jax.process_index())}, alone, format="orbax", processes="this")
    with pts.CheckpointManager(directory, read_only=True) as manager:
        return manager.all_steps()


def test_a_manager_of_two_processes_writes_for_orbax(pair, tmp_path):
    import orbax.checkpoint as ocp

    assert pair.run(save_steps_for_orbax, tmp_path) == [[2, 3], [2, 3]]
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "ckpt-3")["a"]
    np.testing.assert_array_equal(found, programs.values(1, (8, 4), "float32"))
    assert pts.restore(tmp_path / "alone-0")["rank"].tolist() == [0, 0]
    assert not (tmp_path / "alone-1").exists()
