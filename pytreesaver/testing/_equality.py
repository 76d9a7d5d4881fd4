"""Exact comparison of trees: container types, keys, leaf types, dtypes, weak types, shardings and bits."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytreesaver._text import SINGLE_LEAF_NAME, quoted
from pytreesaver._tree.kinds import cell_bytes
from pytreesaver._tree.leaves import leaf_type_of
from pytreesaver._tree.structure import name_component

_registry = jax.tree_util.default_registry


def tree_differences(found: Any, expected: Any, *, shardings: bool = True) -> list[str]:
    """Return a line for each difference between two trees. The list is empty if they are bitwise equal.

    Containers must have the same type and equal keys of the same types; an OrderedDict must also have the same order.
    Leaves must have the same type, dtype, byte order, weak type, shape and bits: NaNs are equal if their payloads are,
    and 0.0 differs from -0.0. If `shardings`, JAX arrays must also have equivalent shardings and both be committed or
    both uncommitted.

    Example:
        >>> tree_differences({"a": (1, 2.0)}, {"a": (1, 2)})
        ['a/1: expected an int, found a float']
    """
    differences: list[str] = []
    _compare(found, expected, None, shardings, differences)
    return differences


def assert_trees_equal(found: Any, expected: Any, *, shardings: bool = True) -> None:
    """Raise an AssertionError that lists the `tree_differences`, if any.

    Example:
        >>> assert_trees_equal({"a": np.float32("nan")}, {"a": np.float32("nan")})
    """
    differences = tree_differences(found, expected, shardings=shardings)
    assert not differences, "the trees differ:\n  " + "\n  ".join(differences)


def _compare(found: Any, expected: Any, name: str | None, shardings: bool, differences: list[str]) -> None:
    where = SINGLE_LEAF_NAME if name is None else quoted(name)
    kind = type(expected)
    if not _registry.is_node(kind):
        reason = _leaf_difference(found, expected, shardings)
        if reason:
            differences.append(f"{where}: {reason}")
        return
    if type(found) is not kind:
        differences.append(f"{where}: expected {_a(kind)}, found {_a(type(found))}")
        return
    prefix = "" if name is None else f"{name}/"
    if isinstance(expected, dict):
        keys, found_keys = list(map(_key_identity, expected)), list(map(_key_identity, found))
        ordered = kind is collections.OrderedDict
        if keys != found_keys if ordered else sorted(keys) != sorted(found_keys):
            differences.append(f"{where}: expected the keys {list(expected)}, found {list(found)}")
            return
        if getattr(expected, "default_factory", None) is not getattr(found, "default_factory", None):
            differences.append(f"{where}: expected {expected.default_factory}, found {found.default_factory}")  # type: ignore[attr-defined]
        for key in expected:
            _compare(found[key], expected[key], f"{prefix}{key}", shardings, differences)
        return
    (keyed, auxiliary), (found_keyed, found_auxiliary) = (
        _registry.flatten_one_level_with_keys(node) for node in (expected, found)
    )
    children, found_children = list(keyed), list(found_keyed)
    if len(children) != len(found_children) or auxiliary != found_auxiliary:
        differences.append(f"{where}: expected {expected!r}, found {found!r}")
        return
    for (entry, child), (_, found_child) in zip(children, found_children, strict=True):
        _compare(found_child, child, prefix + name_component(entry), shardings, differences)


def _key_identity(key: Any) -> tuple[str, str]:
    return type(key).__name__, repr(key)


def _leaf_difference(found: Any, expected: Any, shardings: bool) -> str | None:
    if type(found) is not type(expected):
        return f"expected {_a(type(expected))}, found {_a(type(found))}"
    expected_type, found_type = leaf_type_of(expected), leaf_type_of(found)
    if expected_type != found_type:
        return (
            f"expected {expected_type[0]} of shape {expected_type[1]}, found {found_type[0]} of shape {found_type[1]}"
        )
    leaf_type = expected_type[0]
    if isinstance(expected, jax.Array):
        if shardings and expected.committed != found.committed:
            return f"expected committed={expected.committed}, found {found.committed}"
        if shardings and not found.sharding.is_equivalent_to(expected.sharding, expected.ndim):
            return f"expected {expected.sharding}, found {found.sharding}"
        if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
            found, expected = jax.random.key_data(found), jax.random.key_data(expected)
    expected_bytes, found_bytes = cell_bytes(expected, leaf_type), cell_bytes(found, leaf_type)
    if not np.array_equal(expected_bytes, found_bytes):
        return f"expected {expected!r}, found {found!r}"
    return None


def _a(kind: type) -> str:
    article = "an" if kind.__name__[0].lower() in "aeio" else "a"
    return f"{article} {kind.__name__}"
