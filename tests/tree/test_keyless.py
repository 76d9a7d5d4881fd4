"""Containers without keys, immutable mappings, boxes of Flax, and tuples as dict keys."""

from pathlib import Path

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import message_of, rewrite
from hypothesis import given
from hypothesis import strategies as st
from tree.containers import FrozenMap, Positional, WithAuxiliary

import pytreesaver as pts
from pytreesaver._checkpoint.restoring import with_template
from pytreesaver.testing import assert_trees_equal


@pytest.mark.parametrize("names", [("b", "w"), ("weight", "b"), ("w", "bias")])
@pytest.mark.parametrize("around", [lambda node: node, lambda node: {"layer": [node]}], ids=["root", "nested"])
def test_children_without_keys_are_not_swapped_or_renamed(names, around):
    pts.save(around(Positional(w=np.ones(2), b=np.zeros(2))), "model")
    template = around(Positional(**dict.fromkeys(names, np.full(2, 5.0))))
    message = message_of(pts.MismatchError, lambda: pts.restore("model", template))
    prefix = "" if isinstance(template, Positional) else "layer/0/"
    assert "in another place of a container without keys" in message
    for i, (expected, found) in enumerate(zip(names, ("w", "b"), strict=True)):
        assert (f"  {prefix}{i}: expected {expected}, found {found}" in message) == (expected != found)


def test_an_extra_child_without_a_key_does_not_shift_the_others():
    pts.save(Positional(extra=np.full(2, 3.0), w=np.ones(2), b=np.zeros(2)), "model")
    template = Positional(w=np.ones(2), b=np.zeros(2))
    assert "expected w, found extra" in message_of(
        pts.MismatchError, lambda: pts.restore("model", template, unexpected="ignore")
    )


@pytest.mark.parametrize(
    "auxiliary",
    [
        lambda names: {"keys": names, "version": 1},
        lambda names: (3, {"fields": tuple(names)}),
        lambda names: dict.fromkeys(names, True),
        lambda names: [["relu"], list(names)],
    ],
)
def test_the_names_are_found_anywhere_in_the_auxiliary_data(auxiliary):
    class Node:
        def __init__(self, children, names):
            self.children, self.names = children, names

    jax.tree_util.register_pytree_node(
        Node, lambda node: (node.children, auxiliary(node.names)), lambda names, children: Node(list(children), names)
    )
    pts.save({"node": Node([1.0, 2.0], ["w", "b"])}, "model")
    assert pts.restore("model", {"node": Node([0.0, 0.0], ["w", "b"])})["node"].children == [1.0, 2.0]
    with pytest.raises(pts.MismatchError, match="node/0: expected b, found w"):
        pts.restore("model", {"node": Node([0.0, 0.0], ["b", "w"])})


def test_children_without_keys_are_restored_by_position_or_by_a_renaming():
    saved = Positional(w=np.ones(2), b=np.zeros(2))
    pts.save(saved, "model")
    assert pts.restore("model", Positional(w=np.full(2, 5.0), b=np.full(2, 5.0))).fields["w"].tolist() == [1, 1]
    swapped = pts.restore("model", Positional(b=np.full(2, 5.0), w=np.full(2, 5.0)), rename={"0": "1", "1": "0"})
    assert {name: leaf.tolist() for name, leaf in swapped.fields.items()} == {"b": [0, 0], "w": [1, 1]}
    assert pts.restore("model").fields.keys() == saved.fields.keys()


def test_an_immutable_mapping_has_the_names_of_a_dict():
    tree = FrozenMap(w=jnp.ones(2), inner=FrozenMap(a=1, b=[2.0, None]))
    plain = {"w": jnp.ones(2), "inner": {"a": 1, "b": [2.0, None]}}
    pts.save({"frozen": tree}, "frozen")
    pts.save({"frozen": plain}, "plain")
    assert pts.list_variables("frozen") == pts.list_variables("plain")
    for path in ("frozen", "plain"):
        assert_trees_equal(pts.restore(path, {"frozen": tree}), {"frozen": tree})
        assert_trees_equal(pts.restore(path, {"frozen": plain}), {"frozen": plain})
    assert_trees_equal(pts.restore("frozen"), {"frozen": tree})
    assert_trees_equal(pts.restore("plain"), {"frozen": plain})
    reordered = FrozenMap(inner=FrozenMap(b=[0.0, None], a=0), w=jnp.zeros(2))
    restored = pts.restore("frozen", {"frozen": reordered})["frozen"]
    assert restored["w"].tolist() == [1, 1]
    assert (restored["inner"]["a"], restored["inner"]["b"]) == (1, [2.0, None])


def haiku_params(order=("linear", "a")):
    params = {"linear": {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}, "a": {"w": jnp.full(3, 2.0)}}
    return {name: params[name] for name in order}


def test_haiku_flat_maps_and_dicts_are_interchangeable():
    plain = haiku_params()
    flat = hk.data_structures.to_immutable_dict(plain)
    pts.save(flat, "flat")
    pts.save(plain, "plain")
    for path in ("flat", "plain"):
        assert pts.list_variables(path) == [("a/w", (3,)), ("linear/b", (2,)), ("linear/w", (2, 2))]
        assert_trees_equal(pts.restore(path, flat), flat)
        assert_trees_equal(pts.restore(path, plain), plain)
    assert type(pts.restore("flat")) is type(flat)
    assert_trees_equal(pts.restore("flat"), flat)
    renamed = hk.data_structures.to_immutable_dict({"linear": plain["linear"], "z": plain["a"]})
    with pytest.raises(pts.MismatchError) as caught:
        pts.restore("flat", renamed)
    assert (caught.value.missing, caught.value.unexpected) == (["z/w"], ["a/w"])


def written_before(path, tree_kind, leaves):
    """Save a mapping as earlier versions did: with positions as names."""
    pts.save(Positional(**{f"x{i}": leaf for i, leaf in enumerate(leaves)}), path)

    def edit(index):
        _, children, auxiliary = index["structure"]["$node"]
        index["structure"] = {"$node": [f"{tree_kind.__module__}:{tree_kind.__qualname__}", children, auxiliary]}

    return edit


def test_a_mapping_that_was_saved_with_positions_stays_readable():
    flat = hk.data_structures.to_immutable_dict(haiku_params())
    path = "old"
    edit = written_before(path, type(flat), jax.tree.leaves(flat))

    def with_opaque_auxiliary_data(index):
        edit(index)
        index["structure"]["$node"][2] = {"$opaque": "a PyTreeDef"}

    rewrite(Path(path), with_opaque_auxiliary_data)
    assert_trees_equal(pts.restore(path, jax.tree.map(jnp.zeros_like, flat)), flat)


def test_a_mapping_with_stored_keys_and_positions_is_compared_by_its_keys():
    edit = written_before("old", FrozenMap, [np.ones(2), np.zeros(2)])

    def with_keys(index):
        edit(index)
        index["structure"]["$node"][2] = {"$tuple": ["w", "b"]}

    rewrite(Path("old"), with_keys)
    assert pts.restore("old", FrozenMap(w=np.full(2, 5.0), b=np.full(2, 5.0)))["w"].tolist() == [1, 1]
    with pytest.raises(pts.MismatchError, match="expected b, found w"):
        pts.restore("old", FrozenMap(b=np.full(2, 5.0), w=np.full(2, 5.0)))


def test_a_state_of_nnx_and_its_pure_dict_are_interchangeable():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(2, 3, rngs=rngs)
            self.rest = nnx.List([nnx.Linear(3, 3, rngs=rngs)])

    state = nnx.state(Model(nnx.Rngs(0)))
    pure = nnx.to_pure_dict(state)
    zero_state, zero_pure = (jax.tree.map(jnp.zeros_like, tree) for tree in (state, pure))
    pts.save(state, "state")
    pts.save(pure, "pure")
    for path in ("state", "pure"):
        assert_trees_equal(pts.restore(path, zero_state), state)
        assert_trees_equal(pts.restore(path, zero_pure), pure)


def test_boxed_and_bare_parameters_are_interchangeable():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.normal(), ("x", None))
            return nn.Dense(3, kernel_init=init)(x)

    boxed = Model().init(jax.random.key(0), jnp.ones((1, 2)))
    bare = nn.meta.unbox(boxed)
    pts.save(boxed, "boxed")
    pts.save(bare, "bare")
    for path in ("boxed", "bare"):
        assert_trees_equal(pts.restore(path, jax.tree.map(jnp.zeros_like, boxed)), boxed)
        assert_trees_equal(pts.restore(path, jax.tree.map(jnp.zeros_like, bare)), bare)


def test_a_dict_with_the_key_value_is_not_a_box():
    pts.save({"w": {"value": 1}}, "model")
    with pytest.raises(pts.MismatchError):
        pts.restore("model", {"w": 0})
    pts.save({"w": 1}, "bare")
    with pytest.raises(pts.MismatchError):
        pts.restore("bare", {"w": {"value": 0}})


KEYS = st.recursive(
    st.text(max_size=3) | st.integers(-3, 3), lambda keys: st.lists(keys, max_size=3).map(tuple), max_leaves=4
).filter(lambda key: isinstance(key, tuple))


@given(st.lists(KEYS, unique_by=repr, max_size=4))
def test_tuples_as_dict_keys_round_trip_under_different_names(keys):
    tree = {"state": {}}
    for i, key in enumerate(keys):
        try:
            sorted([*tree["state"], key])
        except TypeError:
            continue
        if key not in tree["state"]:
            tree["state"][key] = np.full(2, i)
    pts.save(tree, "model", overwrite=True)
    assert len(pts.list_variables("model")) == len(tree["state"])
    assert_trees_equal(pts.restore("model"), tree)
    assert_trees_equal(pts.restore("model", jax.tree.map(np.zeros_like, tree)), tree)


def test_a_variable_under_a_tuple_can_be_selected_and_renamed():
    tree = {("mu", "sigma"): np.ones(2), ("mu", "tau"): np.zeros(2)}
    pts.save(tree, "model")
    name = "('mu', 'sigma')"
    assert_trees_equal(pts.restore("model", only=name), {("mu", "sigma"): np.ones(2)})
    assert pts.restore("model", {"x": np.zeros(2)}, rename={"x": name}, unexpected="ignore")["x"].tolist() == [1, 1]


@pytest.mark.parametrize("key", [np.int64(3), (1, np.int64(3)), frozenset([1]), b"x", (b"x",)], ids=repr)
def test_other_dict_keys_are_errors(key):
    message = message_of(pts.UnsupportedLeafError, lambda: pts.save({key: 1}, "model"))
    assert "or a tuple of these" in message
    assert ("convert it with .item()" in message) == isinstance(key, np.generic)


AUXILIARY = {
    "beside another list": lambda a, b: (("relu", "same"), (a, b)),
    "in a dict beside a list": lambda a, b: {"act": ["relu", "gelu"], "names": [a, b]},
    "pairs": lambda a, b: ((a, 2), (b, 2)),
    "triples": lambda a, b: ((a, (2,), "float64"), (b, (2,), "float64")),
    "beside a number": lambda a, b: (a, b, 3),
    "beside a string": lambda a, b: (a, b, "extra"),
    "bytes": lambda a, b: (a.encode(), b.encode()),
    "one string": lambda a, b: f"{a},{b}",
    "beside a function": lambda a, b: ((a, b), jax.nn.relu),
    "paths": lambda a, b: (("params", a), ("params", b)),
}


@pytest.mark.parametrize("form", AUXILIARY)
@pytest.mark.parametrize("way", ["plain", "renamed", "warm start", "assignment"])
def test_children_that_auxiliary_data_names_are_not_swapped(form, way):
    def node(a, b, values):
        return {"m": WithAuxiliary(AUXILIARY[form](a, b), values)}

    zeros = (np.zeros(2), np.zeros(2))
    path = pts.save(node("w", "b", (np.full(2, 1.0), np.full(2, 2.0))), "model")
    swapped, same = node("b", "w", zeros), node("w", "b", zeros)
    restore = {
        "plain": lambda like: pts.restore(path, like)["m"],
        "renamed": lambda like: pts.restore(path, {"q": like["m"]}, rename={"q/": "m/"})["q"],
        "warm start": lambda like: pts.warm_start(like, path)["m"],
        "assignment": lambda like: pts.init_from_checkpoint(like, path, {"/": "/"})["m"],
    }[way]
    assert [float(each[0]) for each in restore(same).children] == [1, 2]
    with pytest.raises(pts.MismatchError, match=r"0: expected b?'?(params.)?b'?, found b?'?(params.)?w"):
        restore(swapped)


@pytest.mark.parametrize(
    ("saved", "wanted", "count"),
    [
        (("relu",), ("gelu",), 1),
        ("relu", "gelu", 1),
        ((3, 5), (5, 3), 2),
        ({"kernel": (3, 5)}, {"kernel": (5, 3)}, 2),
        ((True, False), (False, True), 2),
        ("dense 1", "dense 2", 2),
        (("my layer", 3), ("our layer", 3), 2),
        ({"when": "2024-01-01 10:00:00"}, {"when": "2024-01-02 11:00:00"}, 2),
        ({"layers": ["w", "b"], "train": True}, {"layers": ["w", "b"], "train": False}, 2),
    ],
    ids=repr,
)
def test_other_auxiliary_data_names_no_children(saved, wanted, count):
    path = pts.save([WithAuxiliary(saved, [np.full(2, i) for i in range(count)])], "model")
    (restored,) = pts.restore(path, [WithAuxiliary(wanted, [np.zeros(2, int)] * count)])
    assert [int(each[0]) for each in restored.children] == list(range(count))


def test_names_of_thousands_of_children_are_compared_once(monkeypatch):
    names = [f"variable_{i}" for i in range(2000)]
    path = pts.save(WithAuxiliary((names, 0.5), [float(i) for i in range(2000)]), "model")
    calls = []
    real = with_template.other_names
    monkeypatch.setattr(with_template, "other_names", lambda *pair: calls.append(pair) or real(*pair))
    assert pts.restore(path, WithAuxiliary((names, 1.0), [0.0] * 2000)).children[7] == 7
    assert len(calls) == 1


class SortedMap(FrozenMap):
    """A mapping whose children are in the order of its keys."""


jax.tree_util.register_pytree_node(
    SortedMap,
    lambda node: ([node[key] for key in sorted(node)], tuple(sorted(node))),
    lambda keys, children: SortedMap(zip(keys, children, strict=True)),
)


@pytest.mark.parametrize("saved", [SortedMap, dict])
@pytest.mark.parametrize("leaf", [np.zeros(2), jax.ShapeDtypeStruct((2,), np.float64)], ids=["array", "struct"])
def test_one_object_in_several_places_of_a_template_does_not_hide_the_order(saved, leaf):
    path = pts.save(saved({"w": np.full(2, 1.0), "b": np.full(2, 2.0)}), "model")
    restored = pts.restore(path, SortedMap({"w": leaf, "b": leaf}), as_numpy=True)
    assert {key: value.tolist() for key, value in restored.items()} == {"w": [1, 1], "b": [2, 2]}


@pytest.mark.parametrize("box", ["state", "partitioned"])
def test_boxed_and_bare_are_interchangeable_under_other_names(box):
    if box == "state":
        boxed = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        bare = nnx.to_pure_dict(boxed)
    else:
        boxed = {"kernel": nn.Partitioned(jnp.ones((2, 3)), names=("x", None)), "bias": jnp.zeros(3)}
        bare = nn.meta.unbox(boxed)
    pts.save({"model": boxed}, "boxed")
    pts.save({"model": bare}, "bare")
    zeros = {"boxed": jax.tree.map(jnp.zeros_like, boxed), "bare": jax.tree.map(jnp.zeros_like, bare)}
    expected = {"boxed": boxed, "bare": bare}
    for path, kind in [("boxed", "bare"), ("bare", "boxed")]:
        like, same = zeros[kind], expected[kind]
        assert_trees_equal(pts.restore(path, like, rename={"/": "model/"}), same)
        assert_trees_equal(pts.restore(path, {"net": like}, rename=[("^net/", "model/")]), {"net": same})
        assert_trees_equal(pts.restore(path, {"net": like}, rename=lambda name: "model" + name[3:]), {"net": same})
        assert_trees_equal(pts.init_from_checkpoint({"model": like}, path, {"/": "/"}), {"model": same})
        assert_trees_equal(pts.warm_start({"model": like}, path), {"model": same})
