"""CheckpointManager: when it saves, how it resumes, and that its latest step is always right."""

import os
import shutil
import time
from pathlib import Path

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from helpers import message_of, run_program
from savers.saving import on_disk, saved, tree

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.testing import assert_trees_equal


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
    assert manager.should_save(0)  # the save then says what is wrong, or goes back
    for force in (False, True):
        with pytest.raises(pts.CheckpointExistsError, match=r"step 0 is before step 4, the last one in run: call rest"):
            manager.save(0, tree(0), force=force)
    with pytest.warns(pts.RetentionWarning, match="run: step 4 exists already, and was not saved again"):
        assert manager.save(4, tree(4)) is None
    assert manager.save(0, tree(0), restart=True) == Path("run/ckpt-0")
    manager.wait_until_finished()
    assert manager.latest_step() == 0
    assert manager.save(1, {"again": 1}) == Path("run/ckpt-1")
    manager.close()
    assert pts.restore("run/ckpt-1") == {"again": 1}
    assert pts.CheckpointManager("run").latest_step() == 1


def test_forced_saves_do_not_replace_the_checkpoints_of_a_trained_run():
    saved(range(0, 301, 100), max_to_keep=2)
    manager = pts.CheckpointManager("run", max_to_keep=2)
    for step in (0, 1):
        message = message_of(pts.CheckpointExistsError, lambda step=step: manager.save(step, tree(step), force=True))
        assert "pass restart=True" in message
        assert "force" not in message
    assert manager.all_steps() == [200, 300]


def test_a_restart_goes_on_from_its_step_by_the_usual_interval():
    saved(range(0, 301, 100), max_to_keep=2)
    manager = pts.CheckpointManager("run", max_to_keep=2, save_interval_steps=10)
    assert [step for step in range(0, 25) if manager.save(step, tree(step), restart=step == 0)] == [0, 10, 20]
    manager.close()
    assert manager.all_steps() == [10, 20]
    with pts.CheckpointManager("run") as manager:
        assert manager.latest_step() == 20
        assert manager.save(21, tree(21), restart=True)
        assert manager.save(21, tree(21), restart=True)


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


def test_a_moved_or_copied_directory_continues():
    saved(range(3), max_to_keep=2)
    shutil.copytree("run", "copy")
    Path("run").rename("moved")
    for directory in ("moved", "copy"):
        manager = saved([3], directory=directory, max_to_keep=2)
        assert manager.all_steps() == [2, 3]
        assert_trees_equal(manager.restore(), tree(3))
    assert not Path("run").exists()


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


def test_two_managers_of_one_process_cooperate():
    first = pts.CheckpointManager("run", max_to_keep=2, block=True)
    second = pts.CheckpointManager("run", max_to_keep=2, block=True)
    for step in range(6):
        (first, second)[step % 2].save(step, tree(step), force=True)
    assert on_disk() == ["ckpt-4", "ckpt-5"]


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


@pytest.mark.parametrize("restart", [1400, 1450])
def test_multiples_count_again_after_a_run_has_gone_back(restart):
    manager = pts.CheckpointManager("run", save_interval_steps=100, keep_every_n_steps=1000, max_to_keep=2, block=True)
    for step in range(1, 3502, 100):
        manager.save(step, {"s": 0})
    manager.save(restart, {"s": 1}, restart=True)
    for step in range(restart + 100, restart + 2400, 100):
        manager.save(step, {"s": 1})
    own = [step for step in manager.all_steps() if pts.restore(f"run/ckpt-{step}") == {"s": 1}]
    assert own[:3] == ([1400, 2000, 3000] if restart == 1400 else [1450, 2050, 3050])
