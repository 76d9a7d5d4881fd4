"""Several processes save into an object store: the protocol is the same as on files."""

from functools import partial
from time import time as real_time

import jax
import numpy as np
import pytest
from processes import programs
from processes.in_threads import Ranks
from processes.team import Team
from stores.conftest import FAST

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal

LARGE = {"x": (1, (2048, 1024), "float32", 3), "y": (2, (2048, 1024), "float32", 0), "n": (3, (5,), "int32", None)}


@pytest.fixture
def store(server, environment):
    pts.set_store_options("s3://together", endpoint=server.url, **FAST)
    return server


def in_store(url, action, *arguments):
    pts.set_store_options("s3://together", endpoint=url)
    return action(*arguments)


def save(url, description, path, options=None):
    return str(in_store(url, programs.save, description, path, options))


def restored(url, description, path):
    return in_store(url, programs.restored, description, path)


def train(url, directory, steps):
    pts.set_store_options("s3://together", endpoint=url)
    with pts.CheckpointManager(directory, max_to_keep=2, timeout=30) as manager:
        state = {"x": programs.put(np.zeros((4, 4)), programs.SPECS[1]), "step": 0}
        state = manager.restore_or_init(state)
        for step in range(state["step"], steps):
            state = {"x": state["x"] + 1, "step": step + 1}
            manager.save(step + 1, state)
        manager.wait_until_finished()
        return manager.all_steps(), manager.latest_step()


def test_two_processes_save_and_restore(store, environment):
    team = Team(2)
    try:
        path = "s3://together/run/model"
        assert team.run(save, store.url, LARGE, path) == [path, path]
        assert team.run(restored, store.url, LARGE, path) == [True, True]
        objects = [key for key in store.keys("together") if "data-" in key]
        assert len(objects) == 2
        assert (
            team.run(save, store.url, LARGE, "s3://together/for-orbax", {"format": "orbax"})
            == ["s3://together/for-orbax"] * 2
        )
        assert team.run(restored, store.url, LARGE, "s3://together/for-orbax") == [True, True]
        assert not any(".pytreesaver" in key for key in store.keys("together"))
        sizes = [len(store.objects["together", key].content) for key in objects]
        assert max(sizes) < 1.01 * min(sizes)
        for failed in team.run(save, store.url, LARGE, path):
            assert failed.kinds[0] == "CheckpointExistsError"
        assert team.run(save, store.url, LARGE, path, {"overwrite": True}) == [path, path]
        assert len([key for key in store.keys("together") if key.startswith("run/model")]) == 3
        assert team.run(train, store.url, "s3://together/training", 4) == [([3, 4], 4)] * 2
        assert team.run(train, store.url, "s3://together/training", 6) == [([5, 6], 6)] * 2
    finally:
        team.close()
    alone = pts.restore("s3://together/training", as_numpy=True)
    assert alone["step"] == 6
    assert (alone["x"] == 6).all()


def test_a_process_that_fails_leaves_no_objects(store, monkeypatch):
    ranks = Ranks(2, monkeypatch)
    tree = {"w": jax.numpy.ones(4)}
    calls = [
        lambda: pts.save(tree, "s3://together/model", timeout=5),
        lambda: pts.save({"w": object()}, "s3://together/model", timeout=5),
    ]
    results = ranks.run(calls)
    assert all(isinstance(result, pts.UnsupportedLeafError) for result in results)
    assert store.keys("together") == []
    results = ranks.run([lambda: pts.save(tree, "s3://together/model", timeout=5)] * 2)
    ranks.close()
    assert [str(result) for result in results] == ["s3://together/model"] * 2
    assert_trees_equal(pts.restore("s3://together/model"), tree)


def test_what_killed_saves_have_left_is_deleted_a_day_later(store, monkeypatch):
    from pytreesaver._checkpoint.saving.staged import by_one_process

    hidden = "run/.pytreesaver-0123456789abcdef.tmp/together/data-00000-of-00002.safetensors"
    tree = {"w": np.arange(4.0)}
    for day in (0.0, 2 * 86400.0):
        store.put(("together", hidden), b"left")
        monkeypatch.setattr(by_one_process.time, "time", lambda day=day: real_time() + day)
        ranks = Ranks(2, monkeypatch)
        path = f"s3://together/run/m-{day:.0f}"
        results = ranks.run([partial(pts.save, tree, path, format="npz")] * 2)
        ranks.close()
        assert [str(each) for each in results] == [path, path]
        assert any(".pytreesaver" in key for key in store.keys("together")) == (day == 0)
