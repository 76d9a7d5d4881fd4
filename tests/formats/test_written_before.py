"""Checkpoints and run directories that earlier versions wrote are read by all later versions.

`tests/data/write_samples.py` wrote them. They are never rewritten.
"""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import write_samples  # defines the namedtuple in the samples

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(params=["version_0_1"])
def samples(request, tmp_path):
    return Path(shutil.copytree(DATA / request.param, tmp_path / "samples"))


def test_a_checkpoint_is_restored_with_and_without_a_template(samples):
    expected = write_samples.sample_tree()
    assert_trees_equal(pts.restore(samples / "plain"), expected)
    assert_trees_equal(pts.restore(samples / "plain", like=expected), expected)
    with pts.load_checkpoint(samples / "plain") as checkpoint:
        assert checkpoint.metadata == {"note": "naïve", "nested": {"sizes": (1, 2), "when": None}}
        checkpoint.verify()


def test_sharded_arrays_are_restored(samples):
    expected = write_samples.sharded_tree()
    assert_trees_equal(pts.restore(samples / "sharded", like=expected), expected)
    assert_trees_equal(
        pts.restore(samples / "sharded"), {"cut": jnp.arange(32.0).reshape(4, 8), "replicated": jnp.arange(6)}
    )


def test_runs_are_listed_with_the_reasons_for_retention(samples):
    kept = {
        directory: [(each.step, each.time, each.reasons) for each in pts.list_checkpoints(samples / directory)]
        for directory in ("managed", "policy", "saved")
    }
    assert kept == {
        "managed": [
            (100, 1700000420.0, ("pinned", "every 100 steps")),
            (150, 1700000540.0, ("best 1 by loss (min)",)),
            (200, 1700000660.0, ("last 2", "every 100 steps")),
            (250, 1700000780.0, ("newest", "last 2")),
        ],
        "policy": [
            (2, 1700000420.0, ("named step",)),
            (3, 1700000540.0, ("best 1 by acc (max)",)),
            (4, 1700000660.0, ("newest", "last 1")),
        ],
        "saved": [
            (2, 1700000180.0, ("preserved: no longer tracked",)),
            (3, 1700000240.0, ("preserved: no longer tracked",)),
            (4, 1700000300.0, ("last 2",)),
            (5, 1700000360.0, ("newest", "last 2")),
        ],
    }


def test_a_run_is_resumed(samples):
    with pts.CheckpointManager(
        samples / "managed", max_to_keep=2, keep_best=(1, "loss"), keep_every_n_steps=100, block=True
    ) as manager:
        assert manager.all_steps() == [100, 150, 200, 250]
        assert (manager.latest_step(), manager.best_step()) == (250, 150)
        assert_trees_equal(manager.restore(), {"w": np.full(3, 250)})
        manager.save(275, {"w": np.full(3, 275)}, metrics={"loss": 0.05})
        assert manager.all_steps() == [100, 200, 250, 275]
    with pts.Saver(max_to_keep=2) as saver:
        saver.recover_last_checkpoints(pts.get_checkpoint_state(samples / "saved").all_model_checkpoint_paths)
        saver.save({"w": np.full(3, 6)}, samples / "saved" / "model", 6)
        assert [Path(path).name for path in saver.last_checkpoints] == ["model-5", "model-6"]
    assert pts.latest_checkpoint(samples / "saved").name == "model-6"


def test_a_history_is_read(samples):
    events = pts.get_checkpoint_history(samples / "managed")
    assert [(each.kind, each.name, each.time, dict(each.metrics)) for each in events] == [
        ("saved", "ckpt-50", 1700000240.0, {"loss": 0.5}),
        ("saved", "ckpt-100", 1700000420.0, {"loss": 0.4}),
        ("saved", "ckpt-150", 1700000540.0, {"loss": 0.1}),
        ("deleted", "ckpt-50", 1700000540.0, {}),
        ("saved", "ckpt-200", 1700000660.0, {"loss": 0.3}),
        ("saved", "ckpt-250", 1700000780.0, {"loss": 0.3}),
    ]
