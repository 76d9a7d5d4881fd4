"""Other names under which a checkpoint may have stored the leaves of a template. Does no I/O."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytreesaver._tree.keyless import boxed_leaves
from pytreesaver._tree.structure import FlatTree

_BOX = "/value"


def names_by_order(flat: FlatTree, count: int) -> Sequence[str]:
    """Return names for stored variables without names: those of the arrays and numbers of a template, in their order.

    Args:
        flat: the template.
        count: the number of stored variables. Those that the template lacks are counted.

    Example:
        >>> names_by_order(FlatTree(["a", "f", "w"], [1.0, "relu", np.zeros(2)], {}, {}), 3)
        ['a', 'w', 'array 3 of 3']
    """
    names = arrays_and_numbers(flat)
    return [names[i] if i < len(names) else f"array {i + 1} of {count}" for i in range(count)]


def arrays_and_numbers(flat: FlatTree) -> list[str]:
    """Return the names of the leaves that formats without names save, in their order."""
    return [name for name, leaf in zip(flat.names, flat.leaves, strict=True) if _is_array_or_number(leaf)]


def _is_array_or_number(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return isinstance(leaf, np.ndarray | np.generic | bool | int | float | complex)


def names_for_template(
    flat: FlatTree, stored_names: Mapping[str, str], names: Sequence[str], structure: Callable[[], Any]
) -> Sequence[str]:
    """Return the names of the stored variables, with those that the template asks for in place of others.

    A leaf of an immutable mapping was named by its position before mappings were recognized. A variable of Flax is a
    box with the key ``value`` in a state, and the bare array in a dict of the same names.

    Args:
        flat: the template.
        stored_names: what the leaves to restore should be called in the checkpoint, by their names in the template.
        names: the names of the stored variables.
        structure: returns their structure, which is seldom needed.

    Example:
        >>> flat = FlatTree(["w"], [0.0], {"w": 0}, {})
        >>> boxed = {"w": {"$node": ["m:Param", {"value": 0}, None]}}
        >>> names_for_template(flat, {"w": "w"}, ["w/value"], lambda: boxed)
        ['w']
    """
    stored = dict(zip(names, range(len(names)), strict=True))
    wanted = set(stored_names.values())
    lacking = {name: asked for name, asked in stored_names.items() if asked not in stored}
    if not lacking:
        return names
    boxed = boxed_leaves(structure())
    boxed_in_template = {flat.names[leaf] for leaf in boxed_leaves(flat.structure)}
    result = list(names)
    for name, asked in lacking.items():
        bare = asked.removesuffix(_BOX)
        older = flat.older_names.get(name) if asked == name else None
        for other in (older or asked, asked + _BOX, bare):
            position = stored.get(other)
            if position is None or other in wanted:
                continue
            is_box = other == asked + _BOX and position in boxed
            is_bare = other == bare and name in boxed_in_template
            if is_box or is_bare or other == older:
                result[position] = asked
                break
    return result
