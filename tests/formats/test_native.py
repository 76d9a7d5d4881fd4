import jax.numpy as jnp
import numpy as np

import pytreesaver as pts
from pytreesaver.formats import native
from pytreesaver.testing import FormatConformance, assert_trees_equal


class TestNativeFormat(FormatConformance):
    format = native


def test_trees_that_follow_each_other_do_not_get_each_others_places():
    """Columns and places of the last tree are remembered."""
    w, v = np.arange(6.0).reshape(2, 3), np.arange(3, dtype=np.int8)
    trees = [
        {"a": w, "b": v},
        {"a": w, "b": v + 1},
        {"a": w.T.copy(), "b": v},
        {"a": w.astype(np.float32), "b": v},
        {"b": w, "a": v},
        {"a": w, "c": v},
        {"a": v, "b": w, "c": w},
        {"a": w, "b": jnp.arange(3, dtype=jnp.int8)},
    ]
    for tree in [*trees, *reversed(trees)]:
        for path in ("model", "model.safetensors"):
            pts.save(tree, path, overwrite=True)
            pts.verify(path)
            assert_trees_equal(pts.restore(path), tree)
