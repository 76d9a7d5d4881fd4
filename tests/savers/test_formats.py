"""Savers and managers keep their retention, state files and names in every format."""

from pathlib import Path

import numpy as np
import pytest
from cli.running import run_here as run

import pytreesaver as pts
from pytreesaver.formats.places import names_in
from pytreesaver.testing import assert_trees_equal

FORMATS = ["native", "safetensors", "orbax", "tensorflow", "msgpack"]


def tree(step):
    return {"w": np.full(3, float(step)), "opt": (np.zeros(2, np.float16), {"count": step})}


def names(directory="run"):
    return names_in(path.name for path in Path(directory).iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("format", FORMATS)
def test_a_manager_keeps_its_rules(format):
    settings = {"max_to_keep": 2, "keep_best": (1, "loss"), "format": format}
    with pts.CheckpointManager("run", **settings) as manager:
        for step in range(6):
            manager.save(step, tree(step), metrics={"loss": abs(step - 1)}, metadata={"epoch": step})
    assert [name for name in names() if name.startswith("ckpt")] == ["ckpt-1", "ckpt-4", "ckpt-5"]
    assert {each.step: each.metrics["loss"] for each in pts.list_checkpoints("run")} == {1: 0, 4: 3, 5: 4}
    with pts.CheckpointManager("run", **settings) as manager:
        assert (manager.all_steps(), manager.latest_step(), manager.best_step()) == ([1, 4, 5], 5, 1)
        assert_trees_equal(manager.restore(), tree(5))
        assert_trees_equal(manager.restore(step=1), tree(1))
        manager.pin(4)
        for step in (6, 7, 8):
            manager.save(step, tree(step), metrics={"loss": 9.0})
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 4, 7, 8]
        assert "pinned" in str(manager.explain())
        manager.unpin(4)
        manager.save(9, tree(9), metrics={"loss": 9.0})
    assert [each.step for each in pts.list_checkpoints("run")] == [1, 8, 9]
    assert pts.latest_checkpoint("run") == Path("run/ckpt-9")
    assert pts.load_checkpoint("run").metadata == {}
    assert pts.load_checkpoint("run/ckpt-1").metadata == {"epoch": 1}
    assert pts.remove_checkpoint("run/ckpt-9", update_state=True)
    assert_trees_equal(pts.restore("run"), tree(8))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("block", [True, False])
def test_a_saver_keeps_its_rules(format, block):
    saver = pts.Saver(max_to_keep=2, format=format)
    for step in range(4):
        saver.save(tree(step), "run/model", step, block=block)
    saver.wait()
    assert names() == ["checkpoint", "model-2", "model-3"]
    assert pts.get_checkpoint_state("run").model_checkpoint_path == "run/model-3"
    assert_trees_equal(saver.restore("run/model-2"), tree(2))
    assert pts.get_checkpoint_mtimes(["run/model-2"])
    fresh = pts.Saver(max_to_keep=2, format=format)
    fresh.recover_last_checkpoints(["run/model-2", "run/model-3"])
    fresh.save(tree(4), "run/model", 4)
    assert names() == ["checkpoint", "model-3", "model-4"]


def test_a_saver_follows_the_ending_of_its_path():
    saver = pts.Saver(max_to_keep=1)
    for step in (1, 2):
        path = saver.save(tree(step), "run/model.safetensors", step)
    assert path == "run/model.safetensors-2"
    assert Path(path).is_file()
    assert_trees_equal(pts.restore("run"), tree(2))
    saver.save(tree(3), "run/latest.safetensors")
    saver.save(tree(4), "run/latest.safetensors")
    assert_trees_equal(pts.restore("run/latest.safetensors"), tree(4))


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_line_takes_every_format(format):
    path = str(pts.save(tree(1), "model", format=format, metadata={"a": 1}))
    for arguments in (["ls", path], ["show", path, "w"], ["info", path], ["info", path, "--json"], ["verify", path]):
        assert run(*arguments).code == 0, arguments
    assert run("cp", path, "copy").code == 0
    assert run("diff", path, "copy").code == 0
    assert_trees_equal(pts.restore("copy"), tree(1))


@pytest.mark.parametrize("format", FORMATS)
def test_reading_doors_take_every_format(format):
    path = pts.save(tree(1), "model", format=format)
    assert pts.list_variables(path) == [("opt/0", (2,)), ("opt/1/count", ()), ("w", (3,))]
    assert pts.load_variable(path, "w").tolist() == [1, 1, 1]
    with pts.load_checkpoint(path) as checkpoint:
        assert checkpoint["w"][1:].tolist() == [1, 1]
        assert checkpoint.format in (format, "pytreesaver")
    pts.verify(path)
    assert not pts.diff(path, pts.save(tree(1), "other")).changed
    assert_trees_equal(pts.restore(path, only="opt"), {"opt": tree(1)["opt"]})
    renamed = pts.restore(path, {"v": np.zeros(3)}, rename={"v": "w"}, unexpected="ignore")
    assert renamed["v"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("format", ["native", "tensorflow"])
def test_the_size_of_data_files_is_bounded(format):
    tree = {f"x{i}": np.full(100, i) for i in range(6)}  # 800 bytes each
    with pts.CheckpointManager("run", format=format, shard_nbytes=1700) as manager:
        manager.save(1, tree)
    pts.Saver(format=format, shard_nbytes=1700).save(tree, "saved/m", 1)
    for place, name in (("run", "ckpt-1"), ("saved", "m-1")):
        files = list(Path(place).rglob("*data-0*"))
        assert len(files) == 3
        assert all(file.stat().st_size < 1700 + 4096 for file in files)
        assert_trees_equal(pts.restore(f"{place}/{name}"), tree)
    with pytest.raises(ValueError, match="shard_nbytes: expected format="):
        pts.CheckpointManager("other", format="npz", shard_nbytes=10)
