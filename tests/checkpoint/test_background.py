"""Asynchronous saves: the tree is safe to modify when the call returns, and every error is reported."""

import asyncio
import errno
import gc
import threading
import time
import warnings
from concurrent.futures import Future
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import pytreesaver as pts
from pytreesaver._checkpoint.saving import snapshot
from pytreesaver._io import filesystem
from pytreesaver.testing import assert_trees_equal


@pytest.fixture
def gate(monkeypatch):
    """Blocks every save until it is set."""
    opened = threading.Event()
    real = filesystem.reserve

    def reserve(*args):
        assert opened.wait(20)
        return real(*args)

    monkeypatch.setattr(filesystem, "reserve", reserve)
    yield opened
    opened.set()


def refuse(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def mesh_array(values):
    mesh = jax.make_mesh((8,), ("x",), devices=jax.devices()[:8])
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec("x")))


def test_save_async_returns_a_standard_future(gate):
    future = pts.save_async({"w": np.ones(3)}, "model", metadata={"loss": 1})
    assert isinstance(future, Future)
    assert isinstance(future, pts.SaveFuture)
    assert not future.done()
    assert not future.cancel()
    assert not Path("model").exists()
    gate.set()
    assert future.result() == Path("model")
    assert future.exception() is None
    assert_trees_equal(pts.restore("model"), {"w": np.ones(3)})
    assert pts.load_checkpoint("model").metadata == {"loss": 1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "int4", "float8_e4m3fn"])
@pytest.mark.parametrize("place", ["one device", "sharded", "replicated"])
def test_donating_the_tree_right_after_the_call_does_not_affect_the_save(gate, dtype, place):
    values = jnp.arange(4096).astype(dtype)
    tree = {"w": values}
    if place == "sharded":
        tree = {"w": mesh_array(values)}
    elif place == "replicated":
        mesh = jax.make_mesh((8,), ("x",), devices=jax.devices()[:8])
        tree = {"w": jax.device_put(values, NamedSharding(mesh, PartitionSpec()))}
    tree = jax.jit(lambda t: jax.tree.map(lambda x: x ^ True if x.dtype == bool else -x, t))(tree)
    expected = np.array(tree["w"]).copy()
    future = pts.save_async(tree, "model")
    step = jax.jit(lambda t: jax.tree.map(lambda x: x ^ True if x.dtype == bool else x + x, t), donate_argnums=0)
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns about dtypes that cannot be donated
            tree = step(tree)
    jax.block_until_ready(tree)
    del tree
    gc.collect()
    more = [jnp.full(4096, 77, dtype) for _ in range(4)]  # reuses released memory
    gate.set()
    restored = pts.restore(future.result(), as_numpy=True)["w"]
    assert restored.tobytes() == expected.tobytes()
    del more


def donating_step():
    return jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)


def test_with_copy_a_donation_reuses_the_memory_of_the_tree(gate):
    arrays = {"w": jnp.arange(1 << 18) * 2, "half": jnp.ones(1000, jnp.bfloat16)}
    expected = {name: np.array(array) for name, array in arrays.items()}
    pointer = arrays["w"].unsafe_buffer_pointer()
    future = pts.save_async({**arrays, "key": jax.random.key(1), "n": 3}, "model", copy=True)
    arrays = jax.block_until_ready(donating_step()(arrays))
    assert arrays["w"].unsafe_buffer_pointer() == pointer  # the donation reused the memory
    gate.set()
    restored = pts.restore(future.result())
    assert_trees_equal({name: np.asarray(restored[name]) for name in expected}, expected)
    assert_trees_equal(restored["key"], jax.random.key(1))
    assert restored["n"] == 3


def test_the_memory_of_copies_is_reused_and_released(peak_memory):
    tree = {"w": jnp.zeros(1 << 20)}
    for i in range(4):
        tree = {"w": tree["w"] + 1}
        pts.save_async(tree, f"model-{i}", copy=True).result()
        gc.collect()
    assert len(snapshot._pools[0]) == 1
    assert sum(memory.nbytes for memory in snapshot._pools[0]) < (4 << 20) + 4096
    pts.save_async(tree, "last").result()
    assert not snapshot._pools[0]
    for i in range(4):
        assert_trees_equal(pts.restore(f"model-{i}"), {"w": jnp.zeros(1 << 20) + (i + 1)})


def test_the_memory_of_a_copy_in_use_is_released_after_a_save_without_copy(gate):
    first = pts.save_async({"w": jnp.zeros(1000)}, "first", copy=True)
    second = pts.save_async({"w": jnp.zeros(1000)}, "second")
    gate.set()
    first.result()
    second.result()
    gc.collect()
    assert snapshot._pools == [[]]


def test_copies_of_pending_saves_do_not_share_memory(gate):
    futures = [pts.save_async({"w": jnp.full(1000, i)}, f"model-{i}", copy=True) for i in range(3)]
    more = pts.save_async({"w": jnp.full(1000, 77)}, "more")
    gate.set()
    for i, future in enumerate([*futures, more]):
        assert_trees_equal(pts.restore(future.result()), {"w": jnp.full(1000, i if i < 3 else 77)})


def test_a_failed_save_releases_its_copy(monkeypatch):
    monkeypatch.setattr(filesystem, "write", refuse)
    future = pts.save_async({"w": jnp.ones(1000)}, "model", copy=True)
    with pytest.raises(pts.CheckpointIOError):
        future.result()
    del future
    gc.collect()
    assert len(snapshot._pools[0]) == 1  # no longer in use


@pytest.mark.parametrize("copy", [False, True])
def test_savers_and_managers_pass_copy_on(gate, copy):
    saver, manager = pts.Saver(), pts.CheckpointManager("run", copy=copy)
    tree = jax.block_until_ready(donating_step()({"w": jnp.arange(1 << 16)}))
    pointer = tree["w"].unsafe_buffer_pointer()
    saver.save(tree, "saved/model", global_step=1, block=False, copy=copy)
    manager.save(1, tree)
    tree = jax.block_until_ready(donating_step()(tree))
    assert (tree["w"].unsafe_buffer_pointer() == pointer) == copy
    gate.set()
    saver.wait()
    manager.wait_until_finished()
    for path in ("saved/model-1", "run/ckpt-1"):
        assert_trees_equal(pts.restore(path), {"w": jnp.arange(1 << 16) + 1})


def test_deleting_an_array_right_after_the_call_does_not_affect_the_save(gate):
    array = jnp.arange(100_000.0) * 2
    expected = np.array(array).copy()
    future = pts.save_async({"w": array, "key": jax.random.key(3)}, "model")
    array.delete()
    more = [jnp.zeros(100_000) for _ in range(4)]
    gate.set()
    restored = pts.restore(future.result())
    assert_trees_equal(np.asarray(restored["w"]), expected)
    assert_trees_equal(restored["key"], jax.random.key(3))
    del more


def test_overwriting_numpy_arrays_right_after_the_call_does_not_affect_the_save(gate):
    array = np.arange(1000.0)
    tree = {"w": array, "view": array[::2], "frozen": array[:10].view()}
    tree["frozen"].flags.writeable = False
    expected = jax.tree.map(np.copy, tree)
    future = pts.save_async(tree, "model")
    array[:] = -1
    tree["more"] = 3
    gate.set()
    assert_trees_equal(pts.restore(future.result()), expected)


def test_invalid_arguments_raise_at_once():
    with pytest.raises(pts.UnsupportedLeafError):
        pts.save_async({"f": print}, "model")
    with pytest.raises(pts.DuplicateNameError):
        pts.save_async({"a/b": 1, "a": {"b": 2}}, "model")
    with pytest.raises(ValueError, match="path"):
        pts.save_async({"w": 1}, "")


def test_a_relative_path_is_resolved_at_the_call(gate, tmp_path, monkeypatch):
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "before")
    future = pts.save_async({"w": np.ones(3)}, "model")
    monkeypatch.chdir(tmp_path / "after")
    gate.set()
    assert future.result() == Path("model")
    assert pts.checkpoint_exists(tmp_path / "before" / "model")
    assert not any((tmp_path / "after").iterdir())


def test_the_future_raises_later_errors(monkeypatch):
    pts.save({"w": 1}, "taken")
    future = pts.save_async({"w": 2}, "taken")
    with pytest.raises(pts.CheckpointExistsError):
        future.result()
    assert isinstance(future.exception(), pts.CheckpointExistsError)
    monkeypatch.setattr(filesystem, "write", refuse)
    with pytest.raises(pts.CheckpointIOError, match="No space left"):
        pts.save_async({"w": 3}, "model").result()
    assert not Path("model").exists()


def test_an_error_that_is_never_retrieved_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(filesystem, "write", refuse)
    future = pts.save_async({"w": 3}, "model")
    future.settle()
    del future
    gc.collect()
    (message,) = caplog.messages
    assert message.startswith("the save of model failed, and its result was never retrieved: CheckpointIOError(")
    caplog.clear()
    future = pts.save_async({"w": 3}, "model")
    with pytest.raises(pts.CheckpointIOError):
        future.result()
    del future
    gc.collect()
    assert caplog.messages == []


def test_a_timeout_error_names_the_pending_save(gate):
    future = pts.save_async({"w": 1}, "run/model-7")
    with pytest.raises(
        pts.SaveTimeoutError, match=r"waited 0\.05 s for the save of run/model-7, which has not finished"
    ):
        future.result(0.05)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    saver = pts.Saver(name="encoder")
    saver.save({"w": 1}, "run/model", 8, block=False)
    with pytest.raises(pts.SaveTimeoutError, match=r"encoder's save of run/model-8"):
        saver.wait(0.05)
    with pytest.raises(pts.SaveTimeoutError, match=r"encoder's save of run/model-8"):
        saver.close(0.05)
    gate.set()
    saver.close()
    assert future.result() == Path("run/model-7")


def test_a_long_wait_is_logged(gate, caplog, monkeypatch):
    from pytreesaver._checkpoint.saving import background

    monkeypatch.setattr(background, "_LOG_INTERVAL", 0.05)
    future = pts.save_async({"w": 1}, "model")
    threading.Timer(0.3, gate.set).start()
    future.result()
    assert "still waiting for the save of model after 0 s" in caplog.messages


def test_asyncio():
    async def main():
        paths = await asyncio.gather(*(pts.save_async({"w": i}, f"model-{i}") for i in range(3)))
        return paths, await asyncio.wrap_future(pts.save_async({"w": 3}, "model-3"))

    assert asyncio.run(main()) == ([Path(f"model-{i}") for i in range(3)], Path("model-3"))
    assert pts.restore("model-3") == {"w": 3}


def test_saves_from_several_threads():
    def work(i):
        futures[i] = pts.save_async({"w": np.full(1000, i)}, f"model-{i}")

    futures = {}
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert_trees_equal(pts.restore(futures[i].result()), {"w": np.full(1000, i)})


def test_a_saver_runs_one_save_at_a_time(gate):
    saver = pts.Saver(max_to_keep=1)
    assert saver.save({"w": 1}, "run/model", 1, block=False) == "run/model-1"
    assert not saver.pending.done()
    assert saver.last_checkpoints == []
    started = []

    def second():
        started.append(saver.save({"w": 2}, "run/model", 2, block=False))

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.2)
    assert started == []
    gate.set()
    thread.join(60)
    saver.wait()
    assert started == ["run/model-2"]
    assert saver.last_checkpoints == ["run/model-2"]
    assert saver.pending is None
    assert pts.restore(pts.latest_checkpoint("run")) == {"w": 2}


def test_restore_waits_for_the_pending_save(gate):
    saver = pts.Saver()
    path = saver.save({"w": 1}, "run/model", 1, block=False)
    threading.Timer(0.2, gate.set).start()
    assert saver.restore(path) == {"w": 1}


@pytest.mark.parametrize("how", ["save", "blocking save", "wait", "close", "with", "result"])
def test_the_next_call_raises_the_error_of_an_asynchronous_save_once(monkeypatch, how):
    saver = pts.Saver(max_to_keep=1)
    saver.save({"w": 0}, "run/model", 0)
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "reserve", refuse)
        saver.save({"w": 1}, "run/model", 1, block=False)
        saver.pending.settle()
    calls = {
        "save": lambda: saver.save({"w": 2}, "run/model", 2, block=False),
        "blocking save": lambda: saver.save({"w": 2}, "run/model", 2),
        "wait": saver.wait,
        "close": saver.close,
        "with": lambda: saver.__exit__(None, None, None),
        "result": saver.pending.result,
    }
    with pytest.raises(pts.CheckpointIOError, match="No space left"):
        calls[how]()
    assert pts.restore(pts.latest_checkpoint("run")) == {"w": 0}
    if how in ("save", "blocking save", "wait"):
        saver.save({"w": 3}, "run/model", 3)
        assert saver.last_checkpoints == ["run/model-3"]
