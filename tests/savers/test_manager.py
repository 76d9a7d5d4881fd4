"""CheckpointManager: when it saves, what it keeps, how it resumes, and that its latest step is always right."""

import errno
import math
import os
import shutil
import threading
import time
from pathlib import Path

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from helpers import run_program

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver._run import directory as run_directory
from pytreesaver._run import state_file
from pytreesaver.testing import assert_trees_equal


def on_disk(directory="run"):
    return sorted(entry.name for entry in Path(directory).iterdir() if entry.name[0] != "." and entry.is_dir())


def tree(step):
    return {"w": np.full(100, step), "step": step}


def saved(steps, *, directory="run", metrics=None, close=True, **arguments):
    manager = pts.CheckpointManager(directory, **arguments)
    for i, step in enumerate(steps):
        manager.save(step, tree(step), metrics=metrics and metrics[i])
    if close:
        manager.close()
    return manager


# The schedule of saves.


def test_saves_are_due_every_n_steps_and_the_first_one_always():
    manager = pts.CheckpointManager("run", save_interval_steps=10, max_to_keep=None)
    assert [step for step in range(3, 40) if manager.save(step, tree(step))] == [3, 13, 23, 33]
    manager.close()
    again = pts.CheckpointManager("run", save_interval_steps=10, max_to_keep=None)
    assert [step for step in range(34, 60) if again.save(step, tree(step))] == [43, 53]
    assert again.save(54, tree(54), force=True) == Path("run/ckpt-54")
    again.wait_until_finished()
    assert again.all_steps() == [3, 13, 23, 33, 43, 53, 54]


def test_saves_are_due_every_n_seconds_across_restarts():
    now = [0.0]
    times = []
    for start in (0, 50):
        with pts.CheckpointManager("run", save_interval_secs=30, clock=lambda: now[0], max_to_keep=None) as manager:
            for step in range(start, start + 50):
                now[0] = step * 4.0
                if manager.should_save(step):
                    manager.save(step, tree(step))
                    times.append(now[0])
                else:
                    assert manager.save(step, tree(step)) is None
    assert times == [32.0 * i for i in range(13)]


def test_both_intervals_must_have_passed():
    now = [0.0]
    manager = pts.CheckpointManager("run", save_interval_steps=3, save_interval_secs=10, clock=lambda: now[0])
    saves = []
    for step in range(10):
        now[0] = step * 4.0
        if manager.save(step, tree(step)):
            saves.append(step)
    assert saves == [0, 3, 6, 9]


def test_a_loop_cannot_start_over_in_the_directory_of_another_run():
    saved(range(5))
    manager = pts.CheckpointManager("run")
    assert not manager.should_save(0)
    with pytest.raises(pts.CheckpointExistsError, match=r"step 0 is before step 4, the last one in run: call restore"):
        manager.save(0, tree(0))
    assert manager.save(4, tree(4)) is None
    assert manager.save(0, tree(0), force=True) == Path("run/ckpt-0")
    manager.wait_until_finished()
    assert manager.latest_step() == 0
    assert manager.save(1, {"again": 1}) == Path("run/ckpt-1")
    manager.close()
    assert pts.restore("run/ckpt-1") == {"again": 1}
    assert pts.CheckpointManager("run").latest_step() == 1


def test_after_restoring_an_older_step_the_run_continues_from_there():
    saved(range(0, 50, 10), max_to_keep=10)
    manager = pts.CheckpointManager("run", max_to_keep=3, save_interval_steps=10)
    assert manager.restore(step=20)["step"] == 20
    assert [step for step in range(20, 45) if manager.save(step, {"second": step})] == [30, 40]
    manager.close()
    manager = pts.CheckpointManager("run", max_to_keep=3)
    assert manager.latest_step() == 40
    assert manager.restore() == {"second": 40}
    assert on_disk() == ["ckpt-20", "ckpt-30", "ckpt-40"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_to_keep": 0}, ValueError, "max_to_keep: expected None or an int of at least 1"),
        ({"max_to_keep": -1}, ValueError, "max_to_keep"),
        ({"max_to_keep": "5"}, TypeError, "max_to_keep"),
        ({"keep_checkpoint_every_n_hours": -1}, ValueError, "keep_checkpoint_every_n_hours"),
        ({"keep_every_n_steps": 0}, ValueError, "KeepEverySteps.steps: expected a positive integer"),
        ({"keep_best": 3}, TypeError, "keep_best: expected a KeepBest or"),
        ({"keep_best": (3, "loss", "least")}, ValueError, 'KeepBest.mode: expected "min" or "max"'),
        ({"policy": 5}, TypeError, "policy: expected a policy such as"),
        ({"policy": pts.KeepLast(3), "max_to_keep": 3}, ValueError, "policy: cannot be combined with"),
        ({"policy": pts.KeepLast(3), "keep_every_n_steps": 3}, ValueError, "policy: cannot be combined with"),
        ({"checkpoint_name": "a/b"}, ValueError, "checkpoint_name: expected a name"),
        ({"checkpoint_name": ""}, ValueError, "checkpoint_name: expected a name"),
        ({"save_interval_steps": 0}, ValueError, "save_interval_steps"),
        ({"save_interval_steps": None}, TypeError, "save_interval_steps: expected an int, found None"),
        ({"save_interval_secs": 0}, ValueError, "save_interval_secs"),
        ({"save_interval_secs": -1}, ValueError, "save_interval_secs"),
        ({"save_interval_secs": "60"}, TypeError, "save_interval_secs: expected a number of seconds"),
        ({"format": "tar"}, ValueError, "format"),
    ],
)
def test_the_constructor_rejects_invalid_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        pts.CheckpointManager("run", **arguments)
    assert not Path("run").exists()


@pytest.mark.parametrize("metrics", [{"loss": "low"}, {"loss": True}, {1: 2.0}, {"loss": np.ones(2)}, [1.0]])
def test_metrics_that_are_not_numbers_are_rejected(metrics):
    with pytest.raises(TypeError, match="metrics: expected"):
        pts.CheckpointManager("run").save(0, tree(0), metrics=metrics)


def test_steps_and_metrics_may_be_0d_arrays():
    manager = pts.CheckpointManager("run", pad_step_number=True)
    path = manager.save(jnp.array(3), tree(3), metrics={"loss": jnp.float32(0.5), "epoch": 2}, metadata={"by": "me"})
    manager.close()
    assert path == Path("run/ckpt-00000003")
    checkpoint = pts.load_checkpoint(path)
    assert (checkpoint.step, checkpoint.metrics, checkpoint.metadata) == (3, {"loss": 0.5, "epoch": 2.0}, {"by": "me"})
    assert abs(checkpoint.time - time.time()) < 60
    assert manager.all_steps() == [3]


# Retention.


def test_every_n_steps_are_kept():
    manager = saved(range(0, 100, 10), max_to_keep=2, keep_every_n_steps=40)
    assert manager.all_steps() == [0, 40, 80, 90]


LOSSES = [0.5, math.nan, 0.2, 0.4, 0.1, math.nan, 0.3, 0.6]


@pytest.mark.parametrize("restart", [False, True])
def test_the_best_and_the_newest_are_kept(restart):
    expected = [[0], [0, 1], [0, 2], [2, 3], [2, 4], [2, 4, 5], [2, 4, 6], [2, 4, 7]]
    manager = pts.CheckpointManager("run", max_to_keep=1, keep_best=(2, "loss"))
    for step, loss in enumerate(LOSSES):
        manager.save(step, tree(step), metrics={"loss": loss})
        manager.wait_until_finished()
        assert manager.all_steps() == expected[step]
        if restart:
            manager.close()
            manager = pts.CheckpointManager("run", max_to_keep=1, keep_best=pts.KeepBest(2, "loss"))
    assert manager.best_step() == 4
    assert manager.best_step("loss", "max") == 7
    assert manager.best_step("accuracy") is None


def test_checkpoints_without_the_metric_are_never_ranked_best():
    manager = saved(range(4), max_to_keep=1, keep_best=(1, "loss", "max"), metrics=[{}, {"loss": -5}, {}, {}])
    assert manager.all_steps() == [1, 3]
    manager = saved(range(4), directory="none", max_to_keep=1, keep_best=(1, "loss"))
    assert manager.all_steps() == [3]
    with pytest.raises(ValueError, match="best_step: expected the name of a metric"):
        pts.CheckpointManager("none").best_step()


def test_policies():
    now = [0.0]
    policy = pts.KeepLast(1) | pts.KeepSteps([3]) | pts.KeepYoungerThan(25) | pts.KeepBest(1, "loss")
    manager = pts.CheckpointManager("run", policy=policy, clock=lambda: now[0], block=True)
    for step in range(10):
        now[0] = step * 10.0
        manager.save(step, tree(step), metrics={"loss": abs(step - 1)})
    assert manager.all_steps() == [1, 3, 7, 8, 9]
    now[0] = 105.0
    assert [str(decision) for decision in manager.explain()] == [
        "ckpt-1 (step 1): kept: best 1 by loss (min)",
        "ckpt-3 (step 3): kept: named step",
        "ckpt-7 (step 7): will be deleted",
        "ckpt-8 (step 8): will be deleted",
        "ckpt-9 (step 9): kept: newest, last 1, younger than 25 s",
    ]
    manager.save(10, tree(10))
    assert manager.all_steps() == [1, 3, 9, 10]
    assert manager.best_step() == 1


def test_pinned_checkpoints_stay_until_they_are_unpinned():
    manager = saved(range(3), max_to_keep=3, close=False)
    manager.wait_until_finished()
    manager.pin(0)
    for step in (3, 4):
        manager.save(step, tree(step))
    manager.close()
    manager = pts.CheckpointManager("run", max_to_keep=1, block=True)
    assert "ckpt-0 (step 0): kept: pinned" in map(str, manager.explain())
    manager.save(5, tree(5))
    assert manager.all_steps() == [0, 5]
    assert_trees_equal(manager.restore(step=0), tree(0))
    pts.verify("run/ckpt-0")
    manager.unpin(0)
    manager.save(6, tree(6))
    assert manager.all_steps() == [6]
    with pytest.raises(pts.CheckpointNotFoundError, match=r"a checkpoint of step 0, found the steps \[6\]"):
        manager.pin(0)


def test_a_lowered_limit_takes_effect_with_the_next_save():
    saved(range(8), max_to_keep=8)
    assert saved([8], max_to_keep=2).all_steps() == [7, 8]


def test_checkpoints_of_a_saver_are_kept_and_found():
    saver = pts.Saver(max_to_keep=3)
    for step in range(4):
        saver.save(tree(step), "run/ckpt", step)
    saver.close()
    manager = pts.CheckpointManager("run", max_to_keep=1)
    assert manager.latest_step() == 3
    manager.save(4, tree(4))
    manager.save(5, tree(5))
    manager.close()
    assert manager.all_steps() == [1, 2, 3, 5]
    assert "ckpt-1 (step 1): kept: preserved: no longer tracked" in map(str, manager.explain())


def test_other_names_in_the_directory_are_left_alone():
    for name in ("best", "ckpt-1x", "ckpt", "ckpt-01", "other-7"):
        pts.save(tree(0), Path("run") / name)
    Path("run/ckpt-99").mkdir()
    manager = saved(range(3), max_to_keep=1)
    assert manager.all_steps() == [2]
    assert on_disk() == ["best", "ckpt", "ckpt-01", "ckpt-1x", "ckpt-2", "ckpt-99", "other-7"]


def test_the_newest_is_kept_if_the_clock_was_set_back():
    now = [1000.0]
    arguments = {"max_to_keep": 2, "keep_checkpoint_every_n_hours": 0.01, "clock": lambda: now[0], "block": True}
    manager = pts.CheckpointManager("run", **arguments)
    for step, time_ in enumerate([1000, 2000, 3000, 500, 600, 700]):
        now[0] = float(time_)
        manager.save(step, tree(step))
        assert manager.latest_step() == step
    manager.close()
    now[0] = 100.0
    manager = pts.CheckpointManager("run", **arguments)
    with pytest.warns(pts.RetentionWarning, match="the clock is 2900 s behind"):
        assert manager.latest_step() == 5
    with pytest.warns(pts.RetentionWarning, match="behind"):
        manager.save(6, tree(6))
    assert {4, 5, 6} <= set(manager.all_steps())
    assert manager.latest_step() == 6


# Restoring and listing.


def test_a_run_without_checkpoints():
    manager = pts.CheckpointManager("run")
    assert (manager.latest_step(), manager.all_steps(), manager.explain()) == (None, [], [])
    assert manager.best_step("loss") is None
    with pytest.raises(pts.CheckpointNotFoundError, match="run: expected a checkpoint, found none"):
        manager.restore()
    assert not Path("run").exists()


def test_restore_or_init_with_real_states():
    model = jax.numpy.ones
    state = TrainState.create(
        apply_fn=lambda v, x: x, params={"w": model((2, 2)), "b": jnp.zeros(2, jnp.bfloat16)}, tx=optax.adamw(1e-3)
    )
    manager = pts.CheckpointManager("run")
    assert manager.restore_or_init(lambda: state) is state
    later = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    manager.save(int(later.step), later)
    resumed = manager.restore_or_init(lambda: state)
    assert_trees_equal(jax.tree.leaves(resumed.params), jax.tree.leaves(later.params))
    assert (type(resumed.opt_state), resumed.step) == (type(later.opt_state), 1)
    linear = equinox.nn.Linear(2, 3, key=jax.random.key(0))  # both a function and a tree
    other = pts.CheckpointManager("other")
    assert other.restore_or_init(linear) is linear
    other.save(0, linear)
    assert_trees_equal(other.restore_or_init(linear), linear)


def test_restore_accepts_the_options_of_pytreesaver_restore():
    saved([1])
    manager = pts.CheckpointManager("run")
    like = {"w": jnp.zeros(100, int), "step": 0, "more": 5}
    with pytest.raises(pts.MismatchError):
        manager.restore(like)
    assert isinstance(manager.restore(as_numpy=True)["w"], np.ndarray)
    restored = manager.restore_or_init({"step": 0, "more": 5}, missing="keep", unexpected="ignore")
    assert restored == {"step": 1, "more": 5}
    with pytest.raises(pts.CheckpointNotFoundError, match=r"of step 7, found the steps \[1\]"):
        manager.restore(step=7)


def flip(step, *, file="*.safetensors", offset=-1):
    path = next(Path(f"run/ckpt-{step}").glob(file))
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": lambda: flip(4),
    "a damaged index": lambda: flip(4, file="index.json", offset=100),
    "an empty index": lambda: Path("run/ckpt-4/index.json").write_text(""),
    "a truncated data file": lambda: os.truncate(next(Path("run/ckpt-4").glob("*.safetensors")), 100),
    "a missing data file": lambda: next(Path("run/ckpt-4").glob("*.safetensors")).unlink(),
    "a missing index": lambda: Path("run/ckpt-4/index.json").unlink(),
}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(damage, fresh):
    manager = saved(range(5), close=False)
    manager.wait_until_finished()
    damage()
    if fresh:
        manager.close()
        manager = pts.CheckpointManager("run")
    with pytest.warns(pts.RetentionWarning, match="run/ckpt-4"):
        assert manager.latest_step() == 3
    with pytest.warns(pts.RetentionWarning, match="run/ckpt-4"):
        assert_trees_equal(manager.restore(), tree(3))
    with pytest.raises((pts.CorruptCheckpointError, pts.CheckpointNotFoundError)):
        manager.restore(step=4)
    assert manager.save(4, tree(4)) == Path("run/ckpt-4")
    manager.wait_until_finished()
    assert manager.latest_step() == 4


def test_a_run_of_damaged_checkpoints_does_not_start_over():
    saved(range(2))
    for step in range(2):
        flip(step)
    manager = pts.CheckpointManager("run")
    with pytest.warns(pts.RetentionWarning, match="using instead: nothing"):
        assert manager.latest_step() is None
    with pytest.raises(pts.CorruptCheckpointError, match="no checkpoint can be restored"):
        manager.restore_or_init(tree(0))


def test_latest_step_reads_a_checkpoint_once(monkeypatch):
    manager = saved(range(2), close=False)
    manager.wait_until_finished()
    from pytreesaver.formats.native.reader import NativeReader

    verified = []
    verify = NativeReader.verify
    monkeypatch.setattr(NativeReader, "verify", lambda self: verified.append(self.path.name) or verify(self))
    manager.latest_step()
    assert verified == []
    other = pts.CheckpointManager("run")
    for _ in range(3):
        assert other.latest_step() == 1
        assert other.latest_step(verify=False) == 1
    assert verified == ["ckpt-1"]


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("operation", ["open_new", "reserve", "write", "sync_file", "sync_directory", "rename"])
def test_a_failed_save_changes_no_state(monkeypatch, operation, block):
    manager = saved([0], max_to_keep=1, block=block, close=False)
    manager.wait_until_finished()

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, operation, refuse)
        if block:
            with pytest.raises(pts.CheckpointIOError, match="No space left"):
                manager.save(1, tree(1))
        else:
            manager.save(1, tree(1))
            with pytest.raises(pts.CheckpointIOError, match="No space left"):
                manager.wait_until_finished()
    assert manager.latest_step() in ((0, 1) if operation == "sync_directory" else (0,))
    assert pts.CheckpointManager("run").latest_step() == manager.latest_step()
    assert manager.save(1, tree(1)) == Path("run/ckpt-1")
    manager.close()
    assert manager.all_steps() == [1]
    assert not list(Path("run").glob(".*.tmp"))


def test_a_background_error_is_raised_even_by_a_save_that_is_not_due(monkeypatch):
    manager = pts.CheckpointManager("run", save_interval_steps=10)
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "reserve", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        manager.save(0, tree(0))
        manager._session.queue.settle()
    with pytest.raises(pts.CheckpointIOError, match="No space left"):
        manager.save(1, tree(1))
    assert manager.save(2, tree(2)) == Path("run/ckpt-2")
    manager.close()


def test_a_checkpoint_that_cannot_be_deleted_stays_listed_in_order(monkeypatch):
    losses = [{"loss": loss} for loss in (0.0, 1.0, 0.5)]
    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "delete_checkpoint", refuse_to_remove)
        manager = pts.CheckpointManager("run", max_to_keep=1, keep_best=(1, "loss"), block=True)
        manager.save(1, tree(1), metrics=losses[0])
        manager.save(2, tree(2), metrics=losses[1])
        with pytest.warns(pts.RetentionWarning, match="ckpt-2: busy; the next save tries again"):
            manager.save(3, tree(3), metrics=losses[2])
        manager.close()
    paths = pts.get_checkpoint_state("run").all_model_checkpoint_paths
    assert [Path(path).name for path in paths] == ["ckpt-1", "ckpt-2", "ckpt-3"]
    assert saved([4], max_to_keep=3).all_steps() == [2, 3, 4]


def refuse_to_remove(path):
    raise pts.CheckpointIOError(f"{path.name}: busy", errno.EBUSY)


def test_a_moved_or_copied_directory_continues():
    saved(range(3), max_to_keep=2)
    shutil.copytree("run", "copy")
    Path("run").rename("moved")
    for directory in ("moved", "copy"):
        manager = saved([3], directory=directory, max_to_keep=2)
        assert manager.all_steps() == [2, 3]
        assert_trees_equal(manager.restore(), tree(3))
    assert not Path("run").exists()


def test_a_run_continues_after_a_damaged_state_file():
    saved(range(3), max_to_keep=2)
    Path("run/checkpoint").write_text("???")
    manager = pts.CheckpointManager("run", max_to_keep=2, block=True)
    with pytest.warns(pts.RetentionWarning, match="will not be deleted"):
        assert manager.latest_step() == 2
    with pytest.warns(pts.RetentionWarning, match="will not be deleted"):
        manager.save(3, tree(3))
    assert manager.all_steps() == [1, 2, 3]
    assert pts.latest_checkpoint("run") == Path("run/ckpt-3").absolute() or pts.latest_checkpoint("run") == Path(
        "run/ckpt-3"
    )


def test_a_checkpoint_that_a_killed_process_did_not_list_counts():
    saved(range(2))
    state = Path("run/checkpoint").read_bytes()
    saved([2])
    Path("run/checkpoint").write_bytes(state)
    before = Path("run/ckpt-2/index.json").stat().st_mtime - 1
    os.utime("run/checkpoint", (before, before))
    manager = pts.CheckpointManager("run", max_to_keep=2, block=True)
    assert manager.latest_step() == 2
    manager.save(3, tree(3))
    assert manager.all_steps() == [2, 3]


@pytest.mark.parametrize("call", ["open_existing", "fingerprint"])
def test_a_temporary_disk_error_loses_no_checkpoint(monkeypatch, call):
    manager = saved(
        range(5), max_to_keep=3, keep_best=(1, "loss"), metrics=[{"loss": i} for i in range(5)], close=False
    )
    manager.wait_until_finished()
    manager.pin(2)
    manager.close()
    manager = pts.CheckpointManager("run", max_to_keep=1, keep_best=(1, "loss"), block=True)
    real = getattr(filesystem, call)

    def failing(path, *args):
        if "ckpt-0" in str(path) or "ckpt-2" in str(path):
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, call, failing)
        manager.all_steps()
        manager.save(5, tree(5))
    manager.save(6, tree(6))
    assert manager.all_steps() == [0, 2, 6]


def test_a_pinned_checkpoint_with_a_damaged_index_is_kept():
    manager = saved(range(2), max_to_keep=2, block=True, close=False)
    manager.pin(0)
    flip(0, file="index.json", offset=100)
    for step in (2, 3):
        manager.save(step, tree(step))
    assert on_disk() == ["ckpt-0", "ckpt-2", "ckpt-3"]


def test_correcting_a_clock_that_was_ahead_does_not_roll_the_run_back():
    now = [10_000.0]
    arguments = {"max_to_keep": 5, "block": True, "clock": lambda: now[0]}
    with pts.CheckpointManager("run", **arguments) as manager:
        for step in (10, 20):
            manager.save(step, tree(step))
    for step in (10, 20):
        for file in Path(f"run/ckpt-{step}").iterdir():
            os.utime(file, (time.time() + 3600, time.time() + 3600))
    now[0] = 6_400.0
    manager = pts.CheckpointManager("run", **arguments)
    with pytest.warns(pts.RetentionWarning, match="the clock is"):
        manager.save(30, tree(30))
    manager.save(40, tree(40))
    manager.close()
    assert pts.latest_checkpoint("run") == Path("run/ckpt-40")
    again = pts.CheckpointManager("run", **arguments)
    assert again.latest_step() == 40
    assert again.restore()["step"] == 40


def test_a_run_of_damaged_checkpoints_without_a_state_file_does_not_start_over():
    saved(range(2))
    for step in range(2):
        flip(step, file="index.json", offset=100)
    Path("run/checkpoint").unlink()
    with pytest.raises(pts.CorruptCheckpointError, match="no checkpoint can be restored"):
        pts.CheckpointManager("run").restore_or_init(tree(0))


def test_without_a_state_file_the_order_of_the_saves_counts_and_not_the_clock():
    now = [1000.0]
    with pts.CheckpointManager("run", clock=lambda: now[0], block=True) as manager:
        for step in range(3):
            now[0] -= 100
            manager.save(step, tree(step))
    Path("run/checkpoint").unlink()
    assert pts.latest_checkpoint("run") == Path("run/ckpt-2")
    assert pts.CheckpointManager("run").latest_step() == 2


def test_dot_dot_in_a_path_is_resolved():
    Path("scripts").mkdir()
    os.chdir("scripts")
    for step in range(5):
        saved([step], directory="../run", max_to_keep=2)
    assert on_disk("../run") == ["ckpt-3", "ckpt-4"]


def test_the_directory_stays_the_same_when_the_working_directory_changes():
    manager = saved(range(3), close=False)
    manager.wait_until_finished()
    saved([2], directory="elsewhere/run")
    os.chdir("elsewhere")
    assert manager.latest_step() == 2
    assert_trees_equal(manager.restore(step=1), tree(1))
    manager.save(3, tree(3))
    manager.close()
    assert on_disk("../run") == [f"ckpt-{step}" for step in range(4)]


def test_after_a_restart_checkpoints_before_the_last_preserved_one_are_preserved():
    """As in TensorFlow, whose manager then tracks only those with `min(timestamp, now) > last_preserved_timestamp`."""
    now = [0.0]
    arguments = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1.0, "clock": lambda: now[0]}
    with pts.CheckpointManager("run", **arguments) as manager:
        now[0] = 20_000.0
        for step in (4, 5, 6):
            manager.save(step, tree(step))
    assert pts.get_checkpoint_state("run").last_preserved_timestamp == 20_000.0
    assert on_disk() == ["ckpt-4", "ckpt-6"]
    saved([7], **arguments)
    assert on_disk() == ["ckpt-4", "ckpt-6", "ckpt-7"]


def test_two_managers_of_one_process_cooperate():
    first = pts.CheckpointManager("run", max_to_keep=2, block=True)
    second = pts.CheckpointManager("run", max_to_keep=2, block=True)
    for step in range(6):
        (first, second)[step % 2].save(step, tree(step), force=True)
    assert on_disk() == ["ckpt-4", "ckpt-5"]


def test_pin_waits_for_the_pending_save(monkeypatch):
    manager = saved([1], max_to_keep=1, close=False)
    manager.wait_until_finished()
    real = filesystem.reserve
    monkeypatch.setattr(filesystem, "reserve", lambda *args: time.sleep(0.3) or real(*args))
    manager.save(2, tree(2))
    manager.pin(2)
    manager.save(3, tree(3))
    manager.close()
    assert manager.all_steps() == [2, 3]


def test_a_clock_set_back_does_not_stop_the_saves():
    now = [100_000.0]
    manager = pts.CheckpointManager("run", save_interval_secs=60, clock=lambda: now[0], block=True)
    manager.save(0, tree(0))
    now[0] = 90_000.0
    assert manager.should_save(1)


def test_checkpoints_with_disk_errors_are_skipped_but_other_errors_are_raised(monkeypatch):
    saved(range(2))
    real = filesystem.read_into

    def failing(number):
        def read_into(descriptor, buffer, offset):
            if "ckpt-1" in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(number, os.strerror(number))
            return real(descriptor, buffer, offset)

        return read_into

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "read_into", failing(errno.EIO))
        manager = pts.CheckpointManager("run")
        with pytest.warns(pts.RetentionWarning, match="Input/output error"):
            assert_trees_equal(manager.restore(), tree(0))
        with pytest.warns(pts.RetentionWarning, match="Input/output error"):
            assert manager.latest_step() == 0
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "read_into", failing(errno.EMFILE))
        with pytest.raises(pts.CheckpointIOError, match="Too many open files"):
            pts.CheckpointManager("run").restore()


def test_switching_the_padding_overwrites_and_does_not_duplicate():
    saved([3, 4, 5], max_to_keep=3)
    manager = pts.CheckpointManager("run", max_to_keep=3, pad_step_number=True, block=True)
    manager.save(5, {"again": 5}, force=True)
    assert manager.all_steps() == [3, 4, 5]
    assert manager.restore() == {"again": 5}
    manager.save(6, tree(6))
    assert on_disk() == ["ckpt-00000006", "ckpt-4", "ckpt-5"]


def test_edge_cases():
    with pytest.raises(ValueError, match="metrics: the value of 'loss' is too large for a float"):
        pts.CheckpointManager("run").save(0, tree(0), metrics={"loss": 10**400})
    with pytest.raises(pts.CheckpointIOError, match="too long"):
        pts.CheckpointManager("a" * 300).all_steps()
    manager = saved(range(2), close=False)
    manager.wait_until_finished()
    shutil.rmtree("run")
    assert (manager.all_steps(), manager.explain()) == ([], [])
    Path("checkpoint").mkdir()
    assert pts.latest_checkpoint(".") is None


def test_a_save_succeeds_if_no_thread_can_be_started(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    manager = pts.CheckpointManager("run")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert manager.save(1, tree(1)) == Path("run/ckpt-1")
    manager.close()
    assert manager.all_steps() == [1]


@pytest.mark.parametrize("restart", [False, True])
def test_first_saves_that_could_not_be_listed_are_deleted_later(monkeypatch, restart):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    manager = pts.CheckpointManager("run", max_to_keep=1, block=True)
    with monkeypatch.context() as patch:
        patch.setattr(state_file, "replace_file", refuse)
        for step in (1, 2):
            with pytest.raises(pts.CheckpointIOError):
                manager.save(step, tree(step))
    assert manager.latest_step() == 2
    if restart:
        manager.close()
        manager = pts.CheckpointManager("run", max_to_keep=1, block=True)
    manager.save(3, tree(3))
    assert on_disk() == ["ckpt-3"]


def test_a_copy_of_another_runs_checkpoint_is_not_restored():
    saved(range(10), directory="a")
    saved(range(3), directory="b", max_to_keep=2)
    shutil.copytree("a/ckpt-9", "b/ckpt-9")
    manager = pts.CheckpointManager("b", max_to_keep=1)
    assert manager.latest_step() == 2
    assert manager.restore()["step"] == 2


def test_a_standby_that_takes_over_does_not_save_older_steps():
    standby = pts.CheckpointManager("run", block=True)
    assert standby.should_save(0)
    saved([10, 20, 30])
    with pytest.raises(pts.CheckpointExistsError, match="step 11 is before step 30"):
        standby.save(11, tree(11))
    standby.restore(step=20)
    assert standby.save(21, tree(21)) == Path("run/ckpt-21")
    assert standby.latest_step() == 21


def test_two_managers_with_pending_saves_cooperate(monkeypatch):
    first, second = (pts.CheckpointManager("run", max_to_keep=1) for _ in range(2))
    first.save(1, tree(1))
    first.wait_until_finished()
    real = filesystem.reserve
    monkeypatch.setattr(filesystem, "reserve", lambda *args: time.sleep(0.2) or real(*args))
    second.save(2, tree(2))
    first.save(3, tree(3), force=True)
    for manager in (first, second):
        manager.wait_until_finished()
    first.save(4, tree(4), force=True)
    first.wait_until_finished()
    assert first.all_steps() == [4]
    assert pts.latest_checkpoint("run") == Path("run/ckpt-4")


def test_another_manager_may_delete_a_checkpoint_at_the_end_of_its_save(monkeypatch):
    manager = pts.CheckpointManager("run", max_to_keep=2, block=True)
    real = filesystem.fingerprint

    def too_late(path):
        if path.name == "ckpt-2":
            shutil.rmtree(path, ignore_errors=True)
        return real(path)

    monkeypatch.setattr(filesystem, "fingerprint", too_late)
    manager.save(1, tree(1))
    manager.save(2, tree(2))
    assert manager.all_steps() == [1]


def test_a_clock_set_back_deletes_nothing_under_any_rule():
    now = [10_000.0]
    arguments = {"max_to_keep": 2, "keep_best": (1, "loss"), "clock": lambda: now[0], "block": True}
    saved(range(3), metrics=[{"loss": 1}] * 3, **arguments)
    before = on_disk()
    now[0] = 1_000.0
    manager = pts.CheckpointManager("run", **arguments)
    with pytest.warns(pts.RetentionWarning, match="the existing checkpoints will not be deleted"):
        manager.save(3, tree(3))
    for step in (4, 5):
        manager.save(step, tree(step))
    assert set(before) <= set(on_disk())


def test_failed_deletions_are_tried_again_after_a_restart():
    now = [0.0]
    arguments = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1.0, "clock": lambda: now[0], "block": True}
    manager = pts.CheckpointManager("run", **arguments)
    manager.save(1, tree(1))
    (Path("run/ckpt-1") / "notes").write_text("mine")
    for step in (2, 3, 4):
        now[0] = step * 4000.0
        with pytest.warns(pts.RetentionWarning, match="notes in it too"):
            manager.save(step, tree(step))
    manager.close()
    (Path("run/ckpt-1") / "notes").unlink()
    saved([5], **arguments)
    assert 1 not in pts.CheckpointManager("run").all_steps()


def test_an_unpinned_checkpoint_is_subject_to_retention_after_a_restart():
    now = [0.0]
    arguments = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1.0, "clock": lambda: now[0], "block": True}
    manager = pts.CheckpointManager("run", **arguments)
    manager.save(1, tree(1))
    manager.pin(1)
    for step in (2, 3):
        now[0] = step * 4000.0
        manager.save(step, tree(step))
    manager.close()
    manager = pts.CheckpointManager("run", **arguments)
    manager.save(4, tree(4))
    assert 1 in manager.all_steps()
    manager.unpin(1)
    manager.save(5, tree(5))
    assert 1 not in manager.all_steps()


def test_a_warning_that_is_an_error_keeps_the_state_consistent():
    manager = saved([1], max_to_keep=1, block=True, close=False)
    (Path("run/ckpt-1") / "notes").write_text("mine")
    with pytest.raises(pts.RetentionWarning):  # warnings are errors here
        manager.save(2, tree(2))
    assert not manager.should_save(2)
    assert manager.save(2, tree(2)) is None


def test_a_forked_child_can_read_while_its_parent_saves(monkeypatch):
    program = """
    import warnings
    from pytreesaver._io import filesystem
    warnings.simplefilter("ignore")
    manager = pts.CheckpointManager("run")
    manager.save(1, {"w": 1})
    manager.wait_until_finished()
    real = filesystem.sync_file
    filesystem.sync_file = lambda descriptor: time.sleep(0.5) or real(descriptor)
    manager.save(2, {"w": 2})
    if not os.fork():
        os._exit(0 if manager.restore() == {"w": 1} and manager.latest_step() == 1 else 9)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    """
    run_program(program, returncode=0)
