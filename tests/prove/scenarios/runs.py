"""Runs with retention, their state files, and the functions that change them."""

from functools import partial
from pathlib import Path

import pytreesaver as pts
from tests.prove.scenarios.scenario import Scenario
from tests.prove.scenarios.trees import found, tree

RUN = Path("run")
METRICS = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.3, 5: 0.2, 9: 0.6}


def manage(*steps, pinned=(), **options):
    """Save some steps with a manager, and pin some."""
    with pts.CheckpointManager(RUN, **options) as manager:
        for step in steps:
            manager.save(step, tree(step), metrics={"loss": METRICS[step]})
        for step in pinned:
            manager.pin(step)


def use_saver(*steps, **options):
    with pts.Saver(**options) as saver:
        for step in steps:
            saver.save(tree(step), RUN / "ckpt", step)


def steps_found():
    """Check that every checkpoint of the run is complete and the latest one is the newest. Return the steps."""
    listed = pts.list_checkpoints(RUN) if RUN.exists() else []
    steps = [each.step for each in listed]
    for each in listed:
        assert each.problem is None, each
        found(each.path, {each.step})
    directories = {int(path.name.split("-")[1]) for path in RUN.glob("ckpt-*")}
    assert directories == set(steps), (directories, steps)
    latest = pts.latest_checkpoint(RUN) if RUN.exists() else None
    assert latest == (RUN / f"ckpt-{max(steps)}" if steps else None), (latest, steps)
    return set(steps)


def kept(before, after):
    """Return a check that what both sets have is there, and nothing else than what one of them has."""

    def check(finished):
        steps = steps_found()
        allowed = after if finished else before | after
        required = after if finished else before & after
        assert required <= steps <= allowed, (steps, required, allowed)
        assert finished or not before or steps & {max(before), max(after)}, steps

    return check


def managed(before, saves, after, **options):
    """Return the scenario of a save with a manager: the steps before, the step that it saves, the steps after."""
    return Scenario(
        before=partial(manage, *range(1, saves), **options),
        act=partial(manage, saves, **options),
        found=kept(before, after),
        again=partial(manage, 9, **options),
    )


def pin(step, is_pinned):
    with pts.CheckpointManager(RUN, max_to_keep=2) as manager:
        (manager.pin if is_pinned else manager.unpin)(step)


def pinned_found(before, after):
    def check(finished):
        assert steps_found() == {2, 3}
        pinned = {step for step in (2, 3) if (RUN / f"ckpt-{step}" / "pinned").exists()}
        assert pinned in ((after,) if finished else (before, after)), pinned

    return check


def copied_found(name):
    def check(finished):
        assert steps_found() == {2, 3}
        found(name, {3} if finished else {None, 3})

    return check


def state_found(finished):
    assert {each.step for each in pts.list_checkpoints(RUN)} <= {2, 3}
    state = pts.get_checkpoint_state(RUN)
    assert state.model_checkpoint_path.endswith("ckpt-2") or not finished, state
    for step in (2, 3):
        found(RUN / f"ckpt-{step}", {step})
    assert pts.latest_checkpoint(RUN) in (RUN / "ckpt-2", RUN / "ckpt-3")


def update_state():
    pts.update_checkpoint_state(RUN, RUN / "ckpt-2", all_model_checkpoint_paths=[RUN / "ckpt-3", RUN / "ckpt-2"])


def run_converted_found(finished):
    assert steps_found() == {2, 3}
    target = Path("converted")
    if not target.exists():
        assert not finished
        return
    steps = {each.step for each in pts.list_checkpoints(target)}
    assert steps == {2, 3} or not finished, steps
    for each in pts.list_checkpoints(target):
        found(each.path, {each.step})


TWO = {"max_to_keep": 2}
BEST = {"policy": pts.KeepBest(1, "loss") | pts.KeepLast(1)}
two_kept = partial(manage, 1, 2, 3, **TWO)

RUNS = {
    "first save of a manager": Scenario(
        act=partial(manage, 1, **TWO),
        found=kept(set(), {1}),
        again=partial(manage, 9, **TWO),
    ),
    "manager, max_to_keep": managed({2, 3}, 4, {3, 4}, **TWO),
    "manager, keep_best": managed({2, 3}, 4, {2, 4}, keep_best=(1, "loss"), max_to_keep=1),
    "manager, KeepBest": managed({2, 3}, 4, {2, 4}, **BEST),
    "manager, keep_every_n_steps": managed({1, 2, 3}, 4, {1, 2, 4}, keep_every_n_steps=2, max_to_keep=1),
    "manager, KeepSteps": managed({1, 3}, 4, {1, 4}, policy=pts.KeepSteps([1]) | pts.KeepLast(1)),
    "manager, KeepEveryHours": managed({1, 3}, 4, {1, 4}, policy=pts.KeepEveryHours(1) | pts.KeepLast(1)),
    "manager, KeepYoungerThan": managed({1, 2, 3}, 4, {1, 2, 3, 4}, policy=pts.KeepYoungerThan(3600)),
    "manager, incremental": managed({2, 3}, 4, {3, 4}, incremental=True, **TWO),
    "manager, a pinned one": Scenario(
        before=lambda: [manage(1, 2, pinned=(1,), **TWO), manage(3, **TWO)],
        act=partial(manage, 4, **TWO),
        found=kept({1, 2, 3}, {1, 3, 4}),
        again=partial(manage, 9, **TWO),
    ),
    "saver, max_to_keep": Scenario(
        before=partial(use_saver, 1, 2, 3, **TWO),
        act=partial(use_saver, 4, **TWO),
        found=kept({2, 3}, {3, 4}),
        again=partial(use_saver, 9, **TWO),
    ),
    "pin": Scenario(
        before=two_kept, act=partial(pin, 2, True), found=pinned_found(set(), {2}), again=partial(manage, 9, **TWO)
    ),
    "unpin": Scenario(
        before=lambda: manage(1, 2, 3, pinned=(2,), **TWO),
        act=partial(pin, 2, False),
        found=pinned_found({2}, set()),
        again=partial(manage, 9, **TWO),
    ),
    "prune": Scenario(
        before=partial(manage, 1, 2, 3, 4, max_to_keep=4),
        act=lambda: pts.prune(RUN, pts.KeepLast(2)),
        found=kept({1, 2, 3, 4}, {3, 4}),
        again=partial(manage, 9, **TWO),
    ),
    "remove_checkpoint": Scenario(
        before=two_kept,
        act=lambda: pts.remove_checkpoint(RUN / "ckpt-2", update_state=True),
        found=kept({2, 3}, {3}),
        again=partial(manage, 9, **TWO),
    ),
    "update_checkpoint_state": Scenario(before=two_kept, act=update_state, found=state_found, again=update_state),
    "copy_checkpoint": Scenario(
        before=two_kept,
        act=lambda: pts.copy_checkpoint(RUN / "ckpt-3", "copies/copy"),
        found=copied_found("copies/copy"),
        again=lambda: pts.copy_checkpoint(RUN / "ckpt-3", "copies/copy", overwrite=True),
    ),
    "convert": Scenario(
        before=two_kept,
        act=lambda: pts.convert(RUN / "ckpt-3", "converted.safetensors"),
        found=copied_found("converted.safetensors"),
        again=lambda: pts.convert(RUN / "ckpt-3", "converted.safetensors", overwrite=True),
    ),
    "convert a run": Scenario(
        before=two_kept,
        act=lambda: pts.convert(RUN, "converted", format="safetensors"),
        found=run_converted_found,
        again=lambda: Path("converted").exists() or pts.convert(RUN, "converted", format="safetensors"),
    ),
}
