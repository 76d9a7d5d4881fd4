"""What a run directory holds and why, and tidying it up by hand."""

import multiprocessing
import os

import numpy as np
import pytest

import pytreesaver as pts

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
        said = manager.explain()
    return clock, said


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
def test_the_reasons_are_what_the_manager_says(settings):
    clock, said = run_of_manager(range(8), **settings)
    listed = pts.list_checkpoints("run", clock=clock)
    assert {each.path.name: each.reasons for each in listed} == {each.checkpoint.path: each.reasons for each in said}
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


def test_of_a_policy_of_the_users_nobody_says_that_anything_will_go():
    clock, _ = run_of_manager(range(4), policy=EveryOther())
    listed = pts.list_checkpoints("run", clock=clock)
    assert all("perhaps: EveryOther() decides" in each.reasons for each in listed)
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
    assert {reasons[step] for step in set(reasons) - {4, 5}} == {("preserved: not watched any more",)}


def test_a_saver_that_keeps_all_watches_none():
    saver = pts.Saver(max_to_keep=None)
    for step in (1, 2):
        saver.save(TREE, "run/model", global_step=step)
    saver.close()
    assert by_step(pts.list_checkpoints("run")) == {
        1: ("preserved: not watched any more",),
        2: ("newest", "all"),
    }


def test_plain_saves_damage_pins_and_other_things_in_one_directory():
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
    assert found["by-hand"].reasons == ("no saver watches it",)
    assert found["by-hand"].metadata == {"note": (1, 2)}
    assert found["ckpt-2"].reasons == ("newest", "last 1", "pinned")
    assert "expected 4" in found["short"].problem
    assert "index.json" in found["damaged"].problem
    assert found["short"].keep
    with pytest.raises(pts.CheckpointNotFoundError, match="expected a run directory, found nothing"):
        pts.list_checkpoints("nowhere")
    with pytest.raises(pts.CheckpointNotFoundError, match="found a file"):
        pts.list_checkpoints(data)


def test_prune_deletes_what_a_policy_lets_go_and_brings_the_state_file_up_to_date():
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


def test_prune_by_what_was_recorded_finishes_what_a_lowered_limit_has_left():
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


def test_nothing_is_pruned_under_a_live_saver():
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


def test_what_cannot_be_deleted_is_named_and_stays_listed():
    run_of_manager(range(4))
    with open("run/ckpt-1/notes.txt", "w"):
        pass
    with pytest.raises(pts.CheckpointIOError, match=r"not every checkpoint could be deleted:\n  run/ckpt-1.*notes.txt"):
        pts.prune("run", pts.KeepLast(1))
    assert [each.step for each in pts.list_checkpoints("run")] == [1, 3]
    assert [os.path.basename(p) for p in pts.get_checkpoint_state("run").all_model_checkpoint_paths] == [
        "ckpt-1",
        "ckpt-3",
    ]
