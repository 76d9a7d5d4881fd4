"""What reads: each gives the right answer or an error of the library."""

import warnings
from functools import partial

import numpy as np

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal
from tests.prove.scenarios.runs import RUN, two_kept
from tests.prove.scenarios.saving import FROZEN, save
from tests.prove.scenarios.scenario import Scenario
from tests.prove.scenarios.trees import plain_tree, tree

NEWEST = RUN / "ckpt-3"


def equal(get, expected):
    """Return the function that gets a value and compares it."""
    return lambda: assert_trees_equal(get(), expected)


def reads(get, expected, before=two_kept):
    return Scenario(before=before, act=equal(get, expected), found=lambda finished: equal(get, expected)())


def variables(path):
    with pts.load_checkpoint(path) as checkpoint:
        return {name: checkpoint[name].read() for name in ("w", "b")}


def part(path):
    with pts.load_checkpoint(path) as checkpoint:
        return checkpoint["w"][10:20]


def managed(use, newest, older):
    """Return what a manager gives, or the newest if it gives the older one with a warning that says so."""
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        with pts.CheckpointManager(RUN, max_to_keep=2) as manager:
            found = use(manager)
    if any(issubclass(each.category, pts.RetentionWarning) for each in issued) and is_equal(found, older):
        return newest
    return found


def is_equal(one, other):
    try:
        assert_trees_equal(one, other)
    except AssertionError:
        return False
    return True


def restored(path, of=tree, **options):
    """Return the scenario of restoring one checkpoint of some format."""
    before = partial(save, 3, path, of=of, **({"format": options.pop("format")} if "format" in options else {}))
    is_foreign = "orbax" in path
    return Scenario(
        before=before,
        act=equal(partial(pts.restore, path, **options), of(3)),
        found=lambda finished: equal(partial(pts.restore, path, **options), of(3))(),
        is_foreign=is_foreign,
    )


READING = {
    "restore": reads(lambda: pts.restore(NEWEST), tree(3)),
    "restore with a template": reads(lambda: pts.restore(NEWEST, tree(1) | {"w": np.zeros(303)}), tree(3)),
    "restore, mmap": reads(lambda: pts.restore(NEWEST, mmap=True), tree(3)),
    "restore, only": reads(lambda: pts.restore(NEWEST, only="w"), {"w": tree(3)["w"]}),
    "restore, unverified": reads(lambda: pts.restore(NEWEST, verify=False), tree(3)),
    "restore, large": Scenario(
        before=lambda: pts.save(FROZEN | {"v": np.arange(2_500_000.0)}, "large"),
        act=equal(lambda: pts.restore("large"), FROZEN | {"v": np.arange(2_500_000.0)}),
        found=lambda finished: pts.verify("large"),
    ),
    "load_checkpoint": reads(lambda: variables(NEWEST), plain_tree(3)),
    "slices": reads(lambda: part(NEWEST), tree(3)["w"][10:20]),
    "verify": reads(lambda: pts.verify(NEWEST), None),
    "diff": reads(lambda: len(pts.diff(NEWEST, RUN / "ckpt-2").changed), 4),
    "latest_checkpoint": reads(lambda: str(pts.latest_checkpoint(RUN)), str(NEWEST)),
    "checkpoint_exists": reads(lambda: pts.checkpoint_exists(NEWEST), True),
    "get_checkpoint_state": reads(lambda: pts.get_checkpoint_state(RUN).model_checkpoint_path, "run/ckpt-3"),
    "get_checkpoint_mtimes": reads(lambda: len(pts.get_checkpoint_mtimes([NEWEST])), 1),
    "get_checkpoint_history": reads(lambda: len(pts.get_checkpoint_history(RUN)), 4),
    "list_checkpoints": reads(lambda: [each.step for each in pts.list_checkpoints(RUN)], [2, 3]),
    "CheckpointManager.restore": reads(lambda: managed(lambda manager: manager.restore(), tree(3), tree(2)), tree(3)),
    "CheckpointManager.latest_step": reads(lambda: managed(lambda manager: manager.latest_step(), 3, 2), 3),
    "restore safetensors": restored("model.safetensors"),
    "restore npz": restored("model.npz"),
    "restore msgpack": restored("model.msgpack"),
    "restore TensorFlow": restored("model", of=plain_tree, format="tensorflow"),
    "restore Orbax": restored("orbax", of=plain_tree, format="orbax"),
}
