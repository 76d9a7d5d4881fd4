"""Listing the checkpoints of a run directory, and pruning."""

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._run import deleting
from pytreesaver.formats import native

HOUR = 3600.0
TREE = {"w": np.arange(3)}


class Clock:
    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


def run_of_manager(steps, *, hours=1.0, **settings):
    clock = Clock()
    with pts.CheckpointManager("run", clock=clock, block=True, **settings) as manager:
        for step in steps:
            manager.save(step, TREE, metrics={"loss": 1 / (step + 1)}, metadata={"epoch": step // 10})
            clock.now += hours * HOUR
        decisions = manager.explain()
    return clock, decisions


def by_step(listed):
    return {each.step: each.reasons for each in listed}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_to_keep": 2, "keep_every_n_steps": 4, "keep_best": (1, "loss", "max")},
        {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 2.0},
        {"max_to_keep": None},
        {"policy": pts.KeepLast(2) | pts.KeepSteps([1, np.int64(3)]) | pts.KeepEveryHours(np.float64(3.0))},
        {"policy": pts.KeepYoungerThan(2.5 * HOUR)},
        {"policy": pts.KeepAll()},
        {"max_to_keep": np.int64(2)},
    ],
    ids=str,
)
def test_the_reasons_are_those_of_the_manager(settings):
    clock, decisions = run_of_manager(range(8), **settings)
    listed = pts.list_checkpoints("run", clock=clock)
    assert {each.path.name: each.reasons for each in listed} == {
        each.checkpoint.path: each.reasons for each in decisions
    }
    assert all(each.keep == bool(each.reasons) for each in listed)
    newest = listed[-1]
    assert (newest.step, newest.metrics, newest.metadata) == (7, {"loss": 0.125}, {"epoch": 0})
    assert newest.time == clock.now - HOUR
    assert newest.nbytes == sum(file.stat().st_size for file in newest.path.iterdir())


class EveryOther(pts.RetentionPolicy):
    def kept(self, checkpoints, now):
        return dict.fromkeys(range(0, len(checkpoints), 2), "every other")

    def __repr__(self):
        return "EveryOther()"


def test_everything_is_kept_under_an_unknown_policy():
    clock, _ = run_of_manager(range(4), policy=EveryOther())
    listed = pts.list_checkpoints("run", clock=clock)
    assert all("unknown policy: EveryOther()" in each.reasons for each in listed)
    assert [each.keep for each in pts.prune("run", dry_run=True)] == [True] * len(listed)


def test_the_reasons_of_a_savers_checkpoints():
    clock = Clock()
    with pts.Saver(max_to_keep=2, keep_checkpoint_every_n_hours=2.0, clock=clock) as saver:
        for step in range(6):
            clock.now += HOUR
            saver.save(TREE, "run/model", global_step=step)
    reasons = by_step(pts.list_checkpoints("run", clock=clock))
    assert reasons[5] == ("newest", "last 2")
    assert reasons[4] == ("last 2",)
    assert set(reasons) > {4, 5}
    assert {reasons[step] for step in set(reasons) - {4, 5}} == {("preserved: no longer tracked",)}


def test_a_saver_that_keeps_all_tracks_none():
    saver = pts.Saver(max_to_keep=None)
    for step in (1, 2):
        saver.save(TREE, "run/model", global_step=step)
    saver.close()
    assert by_step(pts.list_checkpoints("run")) == {
        1: ("preserved: no longer tracked",),
        2: ("newest", "all"),
    }


def test_plain_saves_damage_pins_and_other_files_in_one_directory():
    pts.save(TREE, "run/by-hand", metadata={"note": (1, 2)})
    run_of_manager(range(3), max_to_keep=1)
    with pts.CheckpointManager("run") as manager:
        manager.pin(2)
    (data,) = pts.save(TREE, "run/short").glob("*.safetensors")
    os.truncate(data, 10)
    (pts.save(TREE, "run/damaged") / "index.json").write_bytes(b'{"format":"pytreesaver" broken')
    os.mkdir("run/logs")
    found = {each.path.name: each for each in pts.list_checkpoints("run")}
    assert set(found) == {"by-hand", "ckpt-2", "short", "damaged"}
    assert found["by-hand"].reasons == ("no saver tracks it",)
    assert found["by-hand"].metadata == {"note": (1, 2)}
    assert found["ckpt-2"].reasons == ("newest", "last 1", "pinned")
    assert "expected 4" in found["short"].problem
    assert "index.json" in found["damaged"].problem
    assert found["short"].keep
    with pytest.raises(pts.CheckpointNotFoundError, match="expected a run directory, found nothing"):
        pts.list_checkpoints("nowhere")
    with pytest.raises(pts.CheckpointNotFoundError, match="found a checkpoint"):
        pts.list_checkpoints(data)
    Path("notes").write_text("text")
    with pytest.raises(pts.CheckpointNotFoundError, match="expected a run directory, found a file"):
        pts.list_checkpoints("notes")


def test_prune_deletes_by_policy_and_updates_the_state_file():
    clock, _ = run_of_manager(range(6), max_to_keep=None)
    before = sorted(os.listdir("run"))
    would = pts.prune("run", pts.KeepLast(2) | pts.KeepEverySteps(3), dry_run=True, clock=clock)
    assert sorted(os.listdir("run")) == before
    assert [each.step for each in would if not each.keep] == [1, 2]
    assert pts.prune("run", pts.KeepLast(2) | pts.KeepEverySteps(3), clock=clock) == would
    assert [each.step for each in pts.list_checkpoints("run")] == [0, 3, 4, 5]
    state = pts.get_checkpoint_state("run")
    assert state.model_checkpoint_path == "run/ckpt-5"
    assert [path.rpartition("-")[2] for path in state.all_model_checkpoint_paths] == ["0", "3", "4", "5"]
    assert len(state.all_model_checkpoint_timestamps) == 4
    with pts.CheckpointManager("run", max_to_keep=None, clock=clock) as manager:
        assert manager.latest_step() == 5
        manager.save(6, TREE)
    assert pts.latest_checkpoint("run").name == "ckpt-6"


def test_prune_by_the_recorded_rule_and_by_a_policy():
    run_of_manager(range(4), max_to_keep=4)
    with pts.CheckpointManager("run", max_to_keep=4) as manager:
        manager.pin(0)
    assert [each.keep for each in pts.prune("run")] == [True] * 4
    listed = pts.prune("run", pts.KeepLast(1))
    assert [each.step for each in listed if not each.keep] == [1, 2]  # 0 is pinned
    assert [each.step for each in pts.list_checkpoints("run")] == [0, 3]


def hold(ready, done):
    with pts.CheckpointManager("run") as manager:
        manager.save(10, TREE)
        manager.wait_until_finished()
        ready.set()
        done.wait(60)


def test_nothing_is_pruned_while_another_process_saves():
    run_of_manager(range(3))
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(ready, done))
    process.start()
    try:
        assert ready.wait(60)
        before = sorted(os.listdir("run"))
        with pytest.raises(pts.ConcurrentWriterError):
            pts.prune("run", pts.KeepLast(1))
        with pytest.raises(pts.ConcurrentWriterError):
            pts.remove_checkpoint("run/ckpt-0", update_state=True)
        assert sorted(os.listdir("run")) == before
    finally:
        done.set()
        process.join()


def test_a_checkpoint_can_be_removed_from_its_run(recwarn):
    run_of_manager(range(3))
    assert pts.remove_checkpoint("run/ckpt-2", update_state=True)
    assert pts.latest_checkpoint("run").name == "ckpt-1"
    assert not recwarn.list
    assert not pts.remove_checkpoint("run/ckpt-2", update_state=True)
    for step in (0, 1):
        pts.remove_checkpoint(f"run/ckpt-{step}", update_state=True)
    assert pts.get_checkpoint_state("run") is None
    pts.save(TREE, "alone")
    assert pts.remove_checkpoint("alone", update_state=True)
    assert sorted(os.listdir()) == ["run"]


def test_checkpoints_that_cannot_be_deleted_are_named_and_stay_listed():
    run_of_manager(range(4))
    with open("run/ckpt-1/notes.txt", "w"):
        pass
    with pytest.raises(pts.CheckpointIOError, match=r"some checkpoints could not be deleted:\n  run/ckpt-1.*notes.txt"):
        pts.prune("run", pts.KeepLast(1))
    assert [each.step for each in pts.list_checkpoints("run")] == [1, 3]
    assert [os.path.basename(p) for p in pts.get_checkpoint_state("run").all_model_checkpoint_paths] == [
        "ckpt-1",
        "ckpt-3",
    ]


def saved(directory, *steps, start=0.0, apart=60.0, **settings):
    clock = start
    with pts.CheckpointManager(directory, block=True, clock=lambda: clock, **settings) as manager:
        for i, step in enumerate(steps):
            clock = start + apart * i
            manager.save(step, {"w": np.full(3, step)}, metrics={"loss": float(step)})


def left(directory):
    return [each.path.name for each in pts.list_checkpoints(directory)]


def test_prune_decides_after_locking_the_directory(monkeypatch):
    saved("run", 0, 1, 2, 3, max_to_keep=None)
    real = deleting.claim

    def claim_after_others(directory, held):
        with pts.CheckpointManager("run", max_to_keep=None, block=True) as manager:
            manager.save(0, {"w": np.zeros(3)}, restart=True)  # now the newest
            manager.pin(1)
        return real(directory, held)

    monkeypatch.setattr(deleting, "claim", claim_after_others)
    gone = [each.path.name for each in pts.prune("run", pts.KeepLast(1)) if not each.keep]
    assert gone == ["ckpt-2", "ckpt-3"]
    assert sorted(left("run")) == ["ckpt-0", "ckpt-1"]


def test_permanently_kept_checkpoints_stay_when_the_last_listed_one_is_removed():
    rule = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1}
    saved("run", 1, 2, 3, apart=7200.0, start=1e6, **rule)
    assert left("run") == ["ckpt-2", "ckpt-3"]
    pts.remove_checkpoint("run/ckpt-3", update_state=True)
    assert pts.latest_checkpoint("run") == Path("run/ckpt-2")
    (only,) = pts.list_checkpoints("run")
    assert only.keep
    saved("run", 4, 5, start=1e6 + 7300, apart=1.0, **rule)
    assert left("run") == ["ckpt-2", "ckpt-5"]


def test_permanently_kept_checkpoints_of_a_saver_stay():
    clock = 0.0
    saver = pts.Saver(max_to_keep=1, keep_checkpoint_every_n_hours=1, clock=lambda: clock)
    for step in range(3):
        clock = 4000.0 + 4000.0 * step
        saver.save({"w": np.zeros(2)}, "run/m", step)
    saver.close()
    assert left("run") == ["m-0", "m-1", "m-2"]
    pts.remove_checkpoint("run/m-2", update_state=True)
    assert all(each.keep for each in pts.list_checkpoints("run"))
    with pts.Saver(max_to_keep=1) as later:
        later.save({"w": np.zeros(2)}, "run/m", 3)
        later.save({"w": np.zeros(2)}, "run/m", 4)
    assert left("run") == ["m-0", "m-1", "m-4"]


def test_the_newest_is_the_last_one_saved_even_if_the_clock_was_set_back():
    saved("run", 1, 2, start=1e6, apart=-86400.0, max_to_keep=None)
    assert left("run") == ["ckpt-1", "ckpt-2"]
    assert [each.keep for each in pts.prune("run", pts.KeepLast(1))] == [False, True]
    assert pts.latest_checkpoint("run") == Path("run/ckpt-2")


def test_a_copied_checkpoint_does_not_change_the_rule():
    saved("a", 0, 1, 2, max_to_keep=None)
    saved("b", *range(10), max_to_keep=1)
    shutil.copytree("b/ckpt-9", "a/ckpt-9")
    assert all(each.keep for each in pts.list_checkpoints("a"))
    shutil.copytree("b/ckpt-9", "a/copy")
    assert {each.path.name: each.reasons for each in pts.list_checkpoints("a")}["copy"] == ("no saver tracks it",)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (pts.KeepBest(1, "los"), r"\['loss'\], found 'los'"),
        (pts.KeepLast(1) | pts.KeepSteps([1, 99]), r"\[0, 1, 2\], found \[99\]"),
    ],
)
def test_a_policy_with_an_unknown_metric_or_step_deletes_nothing(policy, message):
    saved("run", 0, 1, 2, max_to_keep=None)
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=message):
            pts.prune("run", policy, dry_run=dry_run)
    assert len(left("run")) == 3


def test_the_newest_in_a_state_file_stays_the_newest_when_others_are_removed():
    for name in "abc":
        pts.save({"w": 1}, f"run/{name}")
    pts.update_checkpoint_state("run", "run/b", ["run/c", "run/a", "run/b"], None, [1.0, 2.0, 3.0])
    pts.remove_checkpoint("run/c", update_state=True)
    state = pts.get_checkpoint_state("run")
    assert state.model_checkpoint_path == "run/b"
    assert state.all_model_checkpoint_paths == ["run/a", "run/b"]
    assert state.all_model_checkpoint_timestamps == [2.0, 3.0]
    pts.remove_checkpoint("run/b", update_state=True)
    assert pts.latest_checkpoint("run") == Path("run/a")


def test_each_savers_newest_is_kept():
    saved("run", 1, 2, checkpoint_name="early", max_to_keep=None)
    with pts.Saver(max_to_keep=None) as saver:
        saver.save({"w": 1}, "run/late", 7, latest_filename="other")
        saver.save({"w": 1}, "run/late", 8, latest_filename="other")
    pts.prune("run", pts.KeepLast(1))
    assert sorted(left("run")) == ["early-2", "late-8"]


def test_a_checkpoint_is_not_a_run_directory():
    path = pts.save({"w": 1}, "model")
    for call in (pts.list_checkpoints, pts.prune):
        with pytest.raises(pts.CheckpointNotFoundError, match="model: expected a run directory, found a checkpoint"):
            call(path)


@pytest.mark.parametrize("saver", [pts.CheckpointManager, lambda path: pts.Saver().save({"w": 1}, f"{path}/model")])
def test_nothing_is_saved_into_a_checkpoint(saver):
    pts.save({"w": 1}, "model")
    before = sorted(os.listdir("model"))
    with pytest.raises(pts.CheckpointExistsError, match="model: expected a run directory, found a checkpoint"):
        saver("model")
    assert sorted(os.listdir("model")) == before


def test_something_else_than_a_policy_is_named():
    pts.save({"w": 1}, "run/model-1")
    for use in (
        lambda: pts.KeepLast(1) | 3,
        lambda: 3 | pts.KeepLast(1),
        lambda: pts.prune("run", 3),
        lambda: pts.list_checkpoints("run", policy=3),
        lambda: pts.CheckpointManager("run", policy=3),
    ):
        with pytest.raises(TypeError, match=r"policy: expected a policy such as .*, found 3"):
            use()


def test_a_renamed_checkpoint_is_not_tracked():
    saved("run", 1, 2, max_to_keep=1, checkpoint_name="a")
    os.rename("run/a-2", "run/best")
    assert [each.reasons for each in pts.list_checkpoints("run")] == [("no saver tracks it",)]


def test_a_removed_checkpoint_does_not_count():
    with pts.Saver(max_to_keep=3) as saver:
        for step in range(3):
            saver.save({"w": 1}, "run/m", step)
        pts.remove_checkpoint("run/m-1", update_state=True)
        saver.save({"w": 1}, "run/m", 3)
        assert left("run") == ["m-0", "m-2", "m-3"]
        assert saver.last_checkpoints == ["run/m-0", "run/m-2", "run/m-3"]


def test_a_checkpoint_that_is_deleted_concurrently_is_not_damaged(monkeypatch):
    saved("run", 1, 2, max_to_keep=None)
    real = native.read_heading

    def gone(path):
        if path.name == "ckpt-1":
            shutil.rmtree(path)
        return real(path)

    monkeypatch.setattr(native, "read_heading", gone)
    assert left("run") == ["ckpt-2"]
