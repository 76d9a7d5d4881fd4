"""Saves, overwrites and removals of TensorFlow checkpoints that meet, and those of killed processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import message_of

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.formats.tensorflow import writing as tensorflow_writing

KILLED_AT_EVERY_CALL = """
import os, sys
import numpy as np
import pytreesaver as pts
from pytreesaver._io import filesystem

base, action, exists, how = sys.argv[1], sys.argv[2], sys.argv[3] == "True", sys.argv[4]
pts.save({"w": np.zeros(3)}, f"{base}/imported", format="tensorflow")


def die_at(number):
    calls = 0
    if how == "links":  # as on file systems that cannot rename without replacing
        filesystem.rename_to_new = lambda source, target: False

    def dying(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                os._exit(9)
            return real(*arguments, **options)

        return call

    for name in ("rename", "rename_to_new", "link", "sync_directory", "open_new", "remove_file", "remove_directory"):
        setattr(filesystem, name, dying(getattr(filesystem, name)))


for number in range(1, 60):
    path = f"{base}/{number}/m"
    if exists:
        pts.save({"w": np.full(3, 1)}, path, format="tensorflow")
    child = os.fork()
    if child == 0:
        die_at(number)
        if action == "remove":
            pts.remove_checkpoint(path)
        else:
            pts.save({"w": np.full(3, 2)}, path, format="tensorflow", overwrite=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        break
    assert code == 9
print(number)
"""


@pytest.mark.parametrize("how", ["renames", "links"])
@pytest.mark.parametrize(("action", "exists"), [("save", False), ("save", True), ("remove", True)])
def test_leftovers_of_a_killed_save_are_removed_by_the_next_one(tmp_path, action, exists, how):
    command = [sys.executable, "-c", KILLED_AT_EVERY_CALL, str(tmp_path), action, str(exists), how]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    assert count > 4
    for number in range(1, count):
        run = tmp_path / str(number)
        existed = pts.checkpoint_exists(run / "m")
        if existed:
            assert pts.restore(run / "m")["w"].tolist() in ([1] * 3, [2] * 3)
        else:
            assert not exists or action == "remove"
        pts.save({"w": np.ones(3)}, run / "other", format="tensorflow")  # removes leftovers
        assert pts.checkpoint_exists(run / "m") == existed
        pts.remove_checkpoint(run / "other")
        # The data of a checkpoint that was overwritten stays until the new one is overwritten or removed.
        is_old = existed and pts.restore(run / "m")["w"].tolist() == [1] * 3
        assert len(list(run.iterdir())) <= (2 if is_old else 4 if existed else 0)
        pts.save({"w": np.full(3, 3)}, run / "m", format="tensorflow", overwrite=True)
        assert pts.restore(run / "m")["w"].tolist() == [3] * 3
        pts.remove_checkpoint(run / "m")
        assert list(run.iterdir()) == []


def test_a_removal_does_not_take_the_files_of_a_save_that_ends(monkeypatch):
    pts.save({"w": np.zeros(3)}, "run/m", format="tensorflow")
    real, done = filesystem.sync_directory, []

    def remove_meanwhile(directory):
        real(directory)
        if Path("run/m.data-00000-of-00002").exists() and not done:  # the new data is there, the new index is not
            done.append(True)
            assert pts.remove_checkpoint("run/m")

    monkeypatch.setattr(filesystem, "sync_directory", remove_meanwhile)
    pts.save({"w": np.ones(3)}, "run/m", format="tensorflow", overwrite=True)
    assert done == [True]
    assert pts.restore("run/m")["w"].tolist() == [1] * 3


def test_the_end_of_one_overwrite_does_not_take_the_files_of_another(monkeypatch):
    pts.save({"w": np.zeros(3)}, "run/m", format="tensorflow")
    real, done = tensorflow_writing.decode_bundle, []

    def overwrite_meanwhile(content, where):
        bundle = real(content, where)
        if not done:
            done.append(True)
            pts.save({"w": np.full(3, 2)}, "run/m", format="tensorflow", overwrite=True)
        return bundle

    monkeypatch.setattr(tensorflow_writing, "decode_bundle", overwrite_meanwhile)
    pts.save({"w": np.ones(3)}, "run/m", format="tensorflow", overwrite=True)
    assert pts.restore("run/m")["w"].tolist() == [2] * 3


def test_too_many_data_files_are_refused_before_anything_is_there(monkeypatch):
    monkeypatch.setattr(tensorflow_writing, "MOST_SHARDS", 5)
    tree = {f"w{i}": np.ones(1) for i in range(6)}
    message = message_of(pts.UnsupportedLeafError, lambda: pts.save(tree, "run/m", format="tensorflow", shard_nbytes=1))
    assert "at most 5 data files, found 6; pass a larger shard_nbytes" in message
    assert not Path("run").exists()


# Paths that are nearly prefixes.


def test_paths_that_are_no_prefix_say_which_is():
    for step in (90, 100):
        pts.save({"w": np.ones(3)}, f"run/model.ckpt-{step}", format="tensorflow")
    pts.save({"w": np.ones(3)}, "served/variables/variables", format="tensorflow")
    Path("served/saved_model.pb").write_bytes(b"graph")
    for path, message in {
        "run/model.ckpt": "found nothing; run contains checkpoints, the newest last: model.ckpt-90, model.ckpt-100",
        "run/model.ckpt-100.index": "pass its prefix, run/model.ckpt-100",
        "served": "a SavedModel of TensorFlow; pass the prefix of its variables, served/variables/variables",
        "served/variables": "pass one of them: served/variables/variables",
    }.items():
        assert message in message_of(pts.CheckpointNotFoundError, lambda path=path: pts.restore(path))
    listing = message_of(pts.CheckpointNotFoundError, lambda: pts.list_checkpoints("run/model.ckpt-100.index"))
    assert "found a file of a TensorFlow checkpoint; pass its prefix, run/model.ckpt-100" in listing


def test_a_manager_says_how_to_continue_a_run_of_tensorflow():
    pts.save({"w": np.ones(3)}, "run/model.ckpt-100", format="tensorflow")
    with pts.CheckpointManager("run", format="tensorflow") as manager:
        message = message_of(pts.CheckpointExistsError, lambda: manager.save(101, {"w": np.ones(3)}))
    assert 'or pass checkpoint_name="model.ckpt" to the manager to continue their run' in message
    with pts.CheckpointManager("run", format="tensorflow", checkpoint_name="model.ckpt", block=True) as manager:
        assert manager.latest_step() == 100
        manager.save(101, {"w": np.ones(3)})
        assert manager.all_steps() == [100, 101]


def test_a_checkpoint_of_the_run_whose_index_is_missing_is_listed_as_damaged():
    with pts.CheckpointManager("run", format="tensorflow", block=True) as manager:
        for step in range(3):
            manager.save(step, {"w": np.ones(3)})
    Path("run/ckpt-2.index").unlink()
    problems = {each.path.name: each.problem for each in pts.list_checkpoints("run")}
    assert problems.keys() == {"ckpt-0", "ckpt-1", "ckpt-2"}
    assert problems["ckpt-1"] is None
    assert "found files of a TensorFlow checkpoint without ckpt-2.index" in problems["ckpt-2"]
    pts.prune("run", pts.KeepLast(1))
    assert sorted(path.name for path in Path("run").glob("ckpt*")) == [
        "ckpt-1.data-00000-of-00001",
        "ckpt-1.index",
        "ckpt-2.data-00000-of-00001",
    ]
    Path("run/ckpt-2.data-00000-of-00001").unlink()  # then it is deleted
    assert [each.path.name for each in pts.list_checkpoints("run")] == ["ckpt-1"]


def test_a_run_with_absolute_paths_that_was_moved_is_found():
    saver = pts.Saver(save_relative_paths=False, format="tensorflow")
    for step in (30, 40):
        saver.save({"w": np.full(3, step)}, Path("before/model.ckpt").absolute(), global_step=step)
    Path("before").rename("after")
    assert str(Path("before").absolute()) in Path("after/checkpoint").read_text()
    with pytest.warns(pts.RetentionWarning, match=r"before/model\.ckpt-40.*using instead: after/model\.ckpt-40"):
        assert pts.latest_checkpoint("after") == Path("after/model.ckpt-40")
    with pytest.warns(pts.RetentionWarning):
        assert pts.restore("after")["w"].tolist() == [40] * 3
