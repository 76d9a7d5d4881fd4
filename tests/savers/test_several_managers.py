"""Several managers in one directory: of different names, of one name, read-only, in other processes, unpickled."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import message_of
from savers.saving import on_disk, tree

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_managers_of_different_names_each_retain_their_own(block, restart):
    def started():
        return [pts.CheckpointManager("run", max_to_keep=2, checkpoint_name=name, block=block) for name in ("a", "b")]

    managers = started()
    for step in range(6):
        for manager in managers:
            manager.save(step, tree(step))
        if restart and step % 2:
            for manager in managers:
                manager.close()
            managers = started()
    for manager in managers:
        manager.wait_until_finished()
        assert [decision.checkpoint.step for decision in manager.explain()] == [4, 5]
        assert manager.latest_step() == 5
        manager.close()
    assert on_disk() == ["a-4", "a-5", "b-4", "b-5"]
    assert pts.latest_checkpoint("run") == Path("run/a-5")
    assert pts.latest_checkpoint("run", "checkpoint_b") == Path("run/b-5")
    assert [(each.path.name, each.reasons) for each in pts.list_checkpoints("run")] == [
        ("a-4", ("last 2",)),
        ("b-4", ("last 2",)),
        ("a-5", ("newest", "last 2")),
        ("b-5", ("newest", "last 2")),
    ]


def test_the_name_that_a_state_file_belongs_to_keeps_it():
    with pts.CheckpointManager("run", max_to_keep=1, checkpoint_name="a") as manager:
        manager.save(1, tree(1))
    with pts.CheckpointManager("run", max_to_keep=1, checkpoint_name="b") as manager:
        assert manager.latest_step() is None
        manager.save(1, tree(1))
        manager.save(2, tree(2))
    with pts.CheckpointManager("run", max_to_keep=1, checkpoint_name="a") as manager:
        assert manager.latest_step() == 1
        manager.save(2, tree(2))
    assert on_disk() == ["a-2", "b-2"]
    assert pts.get_checkpoint_state("run").all_model_checkpoint_paths == ["run/a-2"]


def test_a_manager_takes_over_the_state_file_of_a_saver():
    pts.Saver().save(tree(1), "run/model", 1)
    with pts.CheckpointManager("run") as manager:
        manager.save(2, tree(2))
    assert pts.latest_checkpoint("run") == Path("run/ckpt-2")


def test_a_name_whose_checkpoints_were_deleted_gives_up_the_state_file():
    with pts.CheckpointManager("run", checkpoint_name="a") as manager:
        manager.save(1, tree(1))
    shutil.rmtree("run/a-1")
    program = (
        "import pytreesaver as pts; pts.CheckpointManager('run', checkpoint_name='b', block=True).save(1, {'w': 1})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert pts.latest_checkpoint("run") == Path("run/b-1")


@pytest.mark.parametrize("saver_first", [False, True])
def test_a_manager_and_a_saver_in_one_directory_each_retain_their_own(saver_first):
    manager = pts.CheckpointManager("run", max_to_keep=2, block=True)
    saver = pts.Saver(max_to_keep=2)
    for step in range(5):
        if saver_first:
            saver.save(tree(step), "run/model", step)
        manager.save(step, tree(step))
        if not saver_first:
            saver.save(tree(step), "run/model", step)
    assert on_disk() == ["ckpt-3", "ckpt-4", "model-3", "model-4"]
    assert pts.latest_checkpoint("run") == Path("run/ckpt-4")
    assert pts.latest_checkpoint("run", "checkpoint_model") == Path("run/model-4")
    manager.close()
    pts.Saver(max_to_keep=2).save(tree(5), "run/model", 5)
    with pts.CheckpointManager("run", max_to_keep=2) as manager:
        manager.save(5, tree(5))
    assert on_disk() == ["ckpt-4", "ckpt-5", "model-4", "model-5"]


def test_a_pickled_manager_finds_its_directory_from_anywhere(monkeypatch):
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, {"s": "run"})
        saver = pts.Saver()
        saver.save({"s": 1}, "saved/model", 1)
        content = pickle.dumps((manager, saver))
    Path("worker").mkdir()
    monkeypatch.chdir("worker")
    manager, saver = pickle.loads(content)
    assert manager.restore_or_init({"s": "scratch"}) == {"s": "run"}
    assert pts.restore(saver.last_checkpoints[-1]) == {"s": 1}


def test_pruning_and_removing_handle_every_state_file():
    for name in ("a", "b"):
        with pts.CheckpointManager("run", max_to_keep=None, checkpoint_name=name) as manager:
            for step in (1, 2, 3):
                manager.save(step, tree(step))
    pts.prune("run", pts.KeepSteps([2, 3]))
    pts.remove_checkpoint("run/b-3", update_state=True)
    assert on_disk() == ["a-2", "a-3", "b-2"]
    assert pts.get_checkpoint_state("run").all_model_checkpoint_paths == ["run/a-2", "run/a-3"]
    assert pts.get_checkpoint_state("run", "checkpoint_b").all_model_checkpoint_paths == ["run/b-2"]


def test_a_manager_sees_what_another_one_of_its_name_has_saved():
    first = pts.CheckpointManager("run", max_to_keep=2, block=True)
    second = pts.CheckpointManager("run", max_to_keep=2, block=True)
    first.save(1, tree(1))
    for step in (2, 3, 4):
        second.save(step, tree(step))
    assert first.all_steps() == [3, 4]
    assert first.latest_step() == 4
    assert_trees_equal(first.restore(), tree(4))
    assert [decision.checkpoint.step for decision in first.explain()] == [3, 4]
    assert not first.should_save(4)
    first.save(5, tree(5))
    assert second.latest_step() == 5
    assert [decision.checkpoint.step for decision in second.explain()] == [4, 5]


@pytest.mark.parametrize("removed", [[30], [20, 30]])
def test_after_the_newest_checkpoints_were_removed_by_hand_the_run_goes_on(removed):
    manager = pts.CheckpointManager("run", save_interval_steps=10, block=True)
    for step in (10, 20, 30):
        manager.save(step, tree(step))
    for step in removed:
        shutil.rmtree(f"run/ckpt-{step}")
    assert manager.latest_step() == removed[0] - 10
    assert not manager.should_save(removed[0] - 1)
    assert manager.should_save(removed[0])
    for step in (removed[0], 40):
        assert manager.save(step, tree(step)) == Path(f"run/ckpt-{step}")
    assert manager.latest_step() == 40


def test_a_read_only_manager_reads_and_never_writes():
    reader = pts.CheckpointManager("run", read_only=True)
    assert reader.latest_step() is None
    assert not Path("run").exists()
    with pts.CheckpointManager("run", max_to_keep=2) as manager:
        for step in (1, 2, 3):
            manager.save(step, tree(step))
            manager.wait_until_finished()
            assert reader.latest_step() == step
    before = sorted(Path("run").rglob("*"))
    assert reader.restore()["step"] == 3
    assert not reader.should_save(4)
    for use in (lambda: reader.save(4, tree(4)), lambda: reader.pin(3), lambda: reader.unpin(3)):
        message = message_of(pts.CheckpointPermissionError, use)
        assert "found one with read_only=True" in message
    reader.close()
    assert sorted(Path("run").rglob("*")) == before


def test_managers_and_savers_survive_pickling():
    manager = pts.CheckpointManager("run", max_to_keep=2, save_interval_steps=10)
    manager.save(10, tree(10))
    manager.wait_until_finished()
    saver = pts.Saver({"weights": "w"}, max_to_keep=2)
    for step in (1, 2):
        saver.save(tree(step), "saved/model", step)
    copies = pickle.loads(pickle.dumps((manager, saver)))
    manager.close()
    saver.close()
    assert copies[0].latest_step() == 10
    assert [copies[0].should_save(step) for step in (15, 20)] == [False, True]
    copies[0].save(20, tree(20))
    copies[0].save(30, tree(30))
    copies[0].close()
    assert on_disk() == ["ckpt-20", "ckpt-30"]
    assert copies[1].last_checkpoints == [str(Path(f"saved/model-{step}").absolute()) for step in (1, 2)]
    copies[1].save(tree(3), "saved/model", 3)
    assert on_disk("saved") == ["model-2", "model-3"]
    assert pts.list_variables("saved/model-3") == [("weights", (100,))]


def test_a_saver_goes_on_in_a_converted_directory():
    saver = pts.Saver()
    for epoch in (1, 2):
        saver.save(tree(epoch), f"run/epoch_{epoch}")
    pts.convert("run", "converted")
    pts.Saver().save(tree(3), "converted/epoch_3")
    assert pts.latest_checkpoint("converted") == Path("converted/epoch_3")


def test_the_name_of_a_run_may_end_like_a_file_of_another_program():
    with pts.CheckpointManager("run", checkpoint_name="model.pt", block=True) as manager:
        manager.save(1, tree(1))
    pts.Saver().save(tree(2), "other/model.bin", global_step=2)
    assert on_disk("other") == ["model.bin-2"]
    with pytest.raises(ValueError, match=r"without the ending \.bin"):
        pts.Saver().save(tree(2), "other/model.bin")
