"""Which sharding each restored leaf shall have: the forms of `sharding`, as a function of name and shape. Pure."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from pytreesaver._errors import MismatchError
from pytreesaver._names import SINGLE_LEAF_NAME, prefixes, shown, suggestions
from pytreesaver._structure import name_component

ShardingRule = Callable[[str, tuple[int, ...]], Any]
"""The sharding of a leaf by its name and shape, or None for no wish."""


def sharding_rule(given: Any, names: Sequence[str], empty: Callable[[], Iterable[str]]) -> ShardingRule:
    """A rule from any of the forms that a user may give it in: a sharding or device for all leaves, a tree of them that
    is a prefix of the tree with these names, or a function of name and shape. None, also in a tree, is no wish.

    `empty` gives the names of containers without leaves, and of None: a tree may have entries for those too.

    Raises:
        MismatchError: the tree says nothing of a name, or something of what is not there.
        TypeError: it is none of those.
    """
    if given is None or _is_placement(given):
        whole = _as_sharding(given)
        return lambda name, shape: whole
    if callable(given) and jax.tree_util.all_leaves([given]) and not isinstance(given, jax.sharding.Mesh):
        return lambda name, shape: _checked(given(name, shape), name)
    entries = jax.tree_util.tree_flatten_with_path(given, is_leaf=lambda x: x is None)[0]
    by_name = {"/".join(map(name_component, path)) or SINGLE_LEAF_NAME: _checked(leaf, path) for path, leaf in entries}
    places = {name: max((p for p in prefixes(name) if p in by_name), key=len, default=None) for name in names}
    if SINGLE_LEAF_NAME in by_name:
        places = {name: place or SINGLE_LEAF_NAME for name, place in places.items()}
    _refuse_misfits(by_name, places, empty)
    return lambda name, shape: by_name[places[name] or SINGLE_LEAF_NAME]


def _refuse_misfits(entries: dict[str, Any], places: dict[str, str | None], empty: Callable[[], Iterable[str]]) -> None:
    uncovered = [name for name, place in places.items() if place is None]
    used = set(places.values())
    idle = [name for name in entries if name not in used]
    if idle:
        allowed = set(empty())
        idle = [name for name in idle if name not in allowed]
    if not uncovered and not idle:
        return
    suggest = suggestions(sorted({prefix for name in places for prefix in prefixes(name)}))
    lines = [f"  {shown(name)}: expected a sharding or None, found nothing" for name in uncovered]
    lines += [f"  {shown(name)}: expected a part of the tree, found none{suggest(name)}" for name in idle]
    raise MismatchError("sharding is no prefix of the tree:\n" + "\n".join(lines))


def _is_placement(value: Any) -> bool:
    return isinstance(value, jax.sharding.Sharding | jax.Device)


def _as_sharding(value: Any) -> Any:
    return jax.sharding.SingleDeviceSharding(value) if isinstance(value, jax.Device) else value


def _checked(value: Any, where: Any) -> Any:
    if value is None or _is_placement(value):
        return _as_sharding(value)
    name = where if isinstance(where, str) else "/".join(map(name_component, where))
    is_half = isinstance(value, jax.sharding.PartitionSpec | jax.sharding.Mesh)
    hint = "; NamedSharding(mesh, spec) makes one" if is_half else ""
    raise TypeError(
        f"sharding: {shown(name)}: expected a jax.sharding.Sharding, a device or None, found {value!r}{hint}"
    )
