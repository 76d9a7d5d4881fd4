"""Containers that are registered with JAX without keys, or with positions."""

from collections.abc import Mapping

import jax


class Positional:
    """Attributes whose names are the auxiliary data, without keys."""

    def __init__(self, **fields):
        self.fields = fields

    def tree_flatten(self):
        return list(self.fields.values()), tuple(self.fields)

    @classmethod
    def tree_unflatten(cls, names, children):
        return cls(**dict(zip(names, children, strict=True)))


jax.tree_util.register_pytree_node_class(Positional)


class FrozenMap(Mapping):
    def __init__(self, *args, **items):
        self.items_ = dict(*args, **items)

    def __getitem__(self, key):
        return self.items_[key]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)

    def __eq__(self, other):
        return type(other) is FrozenMap and self.items_ == other.items_

    __hash__ = None


jax.tree_util.register_pytree_node(
    FrozenMap,
    lambda node: (tuple(node.values()), tuple(node)),
    lambda keys, children: FrozenMap(zip(keys, children, strict=True)),
)


class WithAuxiliary:
    """Children without keys, and any auxiliary data."""

    def __init__(self, auxiliary, children):
        self.auxiliary, self.children = auxiliary, children


jax.tree_util.register_pytree_node(WithAuxiliary, lambda node: (node.children, node.auxiliary), WithAuxiliary)


class WithPositions(WithAuxiliary):
    """Children whose keys are their positions, and auxiliary data that is no name of theirs."""


jax.tree_util.register_pytree_with_keys(
    WithPositions,
    lambda node: ([(jax.tree_util.SequenceKey(i), each) for i, each in enumerate(node.children)], node.auxiliary),
    WithPositions,
)
