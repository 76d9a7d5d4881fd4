"""Tests of the comparison of checkpoints."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import pytreesaver as pts
from pytreesaver._inspect import diff
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.formats.indexed.reader import IndexedReader
from pytreesaver.testing import pytrees, tree_differences


def diff_of(first, second):
    return pts.diff(
        pts.save(first, "first", overwrite=True, durable=False),
        pts.save(second, "second", overwrite=True, durable=False),
    )


def test_repr_of_a_diff():
    first = {
        "dense": {"kernel": np.zeros((2, 3), np.float32), "bias": np.ones(3)},
        "old": np.zeros(4, np.int8),
        "step": 100,
        "note": "x",
        "key": jax.random.key(0),
        "same": jnp.arange(5),
    }
    second = {
        "dense": {"kernel": np.array([[0, 0.5, 0], [0, -1.0, np.nan]], np.float32), "bias": np.ones(4)},
        "new": jnp.zeros((), jnp.bfloat16),
        "step": 200,
        "note": 3,
        "key": jax.random.key(1),
        "same": np.arange(5, dtype=np.int32),
    }
    result = diff_of(first, second)
    assert repr(result) == (
        "<Diff first -> second: 1 added, 1 removed, 5 changed, 1 equal>\n"
        "  + new: bfloat16[]\n"
        "  - old: int8[4]\n"
        "  ~ dense/bias: float64[3] -> float64[4]\n"
        "  ~ dense/kernel: float32[2,3], 3 of 6 elements differ, max |a-b| 1, mean 0.3, NaN 0 -> 1\n"
        "  ~ key: key<fry>[], 1 of 1 element differs\n"
        "  ~ note: str 'x' -> int 3\n"
        "  ~ step: int 100 -> 200"
    ).replace("key<fry>", "key<threefry2x32>")
    assert result
    assert result.changed["step"].values == (100, 200)
    assert result.changed["dense/bias"].shape == ((3,), (4,))
    assert result.changed["dense/kernel"].nan_count == (0, 1)
    assert result.equal == ["same"]
    assert not pts.diff("first", "first")
    assert repr(pts.diff("second", "second")) == "<Diff second -> second: 0 added, 0 removed, 0 changed, 7 equal>"


@given(pytrees(max_leaves=6), pytrees(max_leaves=6))
@settings(max_examples=100)
def test_every_variable_is_in_exactly_one_category(first, second):
    names = [set(flatten_tree(tree).names) for tree in (first, second)]
    result = diff_of(first, second)
    assert set(result.added) == names[1] - names[0]
    assert set(result.removed) == names[0] - names[1]
    assert {*result.changed, *result.equal} == names[0] & names[1]
    assert bool(result) == bool(result.added or result.removed or result.changed)
    repr(result)
    assert not pts.diff("first", "first")


@given(pytrees(max_leaves=8))
@settings(max_examples=50)
def test_a_tree_equals_itself_when_checksums_are_ignored(tree):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IndexedReader, "digest", lambda self, position: None)
        result = diff_of(tree, tree)
    assert not result
    assert result.equal == flatten_tree(tree).names


NUMBERS = ["bool", "int8", "int64", "uint64", "float16", "float32", "float64", "complex64", "bfloat16", "int4"]


@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.integers(1, 20), st.integers(0, 2**32))
@settings(max_examples=200)
@np.errstate(all="ignore")  # ml_dtypes leaves floating point error flags set
def test_differences_match_exact_arithmetic(one, other, size, seed):
    rng = np.random.default_rng(seed)
    arrays = []
    for name in (one, other):
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        bits = rng.integers(0, 256, size * dtype.itemsize, dtype=np.uint8)
        bits = bits & {"bool": 1, "int4": 7}.get(name, 255)
        arrays.append(bits.view(dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff, "_PART_NBYTES", 24)
        change = diff_of({"x": arrays[0]}, {"x": arrays[1]}).changed.get("x")
    a, b = ([complex(v) if np.iscomplexobj(v) else number_of(v) for v in array] for array in arrays)
    if change is None:
        assert arrays[0].tobytes() == arrays[1].tobytes()
        return
    assert change.nan_count == tuple(int(np.isnan(array).sum()) for array in arrays)
    pairs = [(x, y) for x, y in zip(a, b) if x == x and y == y]
    if not pairs:
        assert change.max_abs_difference is None
        return
    distances = [0 if x == y else float(abs(x - y)) for x, y in pairs]
    np.testing.assert_allclose(change.max_abs_difference, max(distances), rtol=1e-6)
    np.testing.assert_allclose(change.mean_abs_difference, float(np.mean(distances)), rtol=1e-6)


def number_of(value):
    """Convert to an exact Python number, an int if it is integral."""
    if isinstance(value, np.integer | np.bool_):
        return int(value)
    number = float(value)  # int() of a bfloat16 overflows
    return int(number) if number.is_integer() else number


def test_variables_with_equal_checksums_are_not_read(monkeypatch):
    tree = {"a": np.zeros(1 << 18), "b": np.ones(5), "c": np.arange(3)}
    pts.save(tree, "first")
    pts.save({**tree, "c": np.arange(1, 4)}, "second")
    read, real = [], IndexedReader.read_boxes
    monkeypatch.setattr(
        IndexedReader, "read_boxes", lambda self, i, *a, **o: read.append(self.names[i]) or real(self, i, *a, **o)
    )
    assert list(pts.diff("first", "second").changed) == ["c"]
    assert read == ["c", "c"]


def test_sharding_is_not_a_difference():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    array = jnp.arange(64.0).reshape(8, 8)
    pts.save({"w": array}, "whole")
    pts.save({"w": jax.device_put(array, NamedSharding(mesh, PartitionSpec(None, "x")))}, "sharded")
    assert not pts.diff("whole", "sharded")


def test_values_are_compared_bit_by_bit():
    nan = np.array([0x7FF8000000000001], np.uint64).view(np.float64)
    result = diff_of(
        {"z": np.array([0.0]), "n": nan, "f": 0.0}, {"z": np.array([-0.0]), "n": np.array([np.nan]), "f": -0.0}
    )
    assert list(result.changed) == ["f", "n", "z"]
    assert result.changed["z"].max_abs_difference == 0
    assert result.changed["n"].max_abs_difference is None
    assert not diff_of({"n": nan, "i": np.array([np.inf])}, {"n": nan, "i": np.array([np.inf])})


def test_open_checkpoints_are_not_closed():
    pts.save({"w": np.zeros(3)}, "first")
    pts.save({"w": np.ones(3)}, "second")
    with pts.load_checkpoint("first") as first, pts.load_checkpoint("second") as second:
        assert pts.diff(first, second).changed["w"].max_abs_difference == 1
        assert first["w"].read().tolist() == [0, 0, 0]
    with pytest.raises(pts.CheckpointNotFoundError):
        pts.diff("first", "third")


def test_repr_of_many_changes_is_truncated():
    result = diff_of({str(i): i for i in range(3000)}, {str(i): i + 1 for i in range(3000)})
    lines = repr(result).splitlines()
    assert len(lines) == 102
    assert lines[-1] == "  ... and 2900 more"
    assert len(result.changed) == 3000


def test_damage_raises():
    pts.save({"w": np.zeros(100)}, "first")
    path = pts.save({"w": np.ones(100)}, "second")
    data = path / "data-00000-of-00001.safetensors"
    content = bytearray(data.read_bytes())
    content[content.index(np.ones(100).tobytes())] ^= 1
    data.write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError, match="w"):
        pts.diff("first", "second")


def test_equal_trees_have_no_diff():
    tree = {"a": [1, (2.0, np.ones(3))], "b": jax.random.split(jax.random.key(0), 2)}
    assert not tree_differences(tree, pts.restore(pts.save(tree, "first")))
    assert not diff_of(tree, tree)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.array(["abc", "de"]), np.array(["abcde", "de"])),
        (np.array([b"abc"]), np.array([3])),
        (jax.random.split(jax.random.key(0), 8), np.zeros((8, 2), np.uint32)),
        (np.array([3], "M8[s]"), np.array([3], "m8[s]")),
        (10**5000, 10**5000 + 1),
        (1, True),
        (1, 1.0),
        ("1", b"1"),
    ],
    ids=["strings", "bytes", "keys", "dates", "huge", "bool", "float", "text"],
)
def test_changes_of_values_without_a_difference(first, second):
    result = diff_of({"x": first}, {"x": second})
    assert list(result.changed) == ["x"]
    repr(result)
    assert result.changed["x"].max_abs_difference is None
    assert not diff_of({"x": first}, {"x": first})


def test_difference_of_equal_infinities_is_zero():
    first = {"z": np.array([0.5, 2j, np.inf, complex(-np.inf, 2)]), "x": np.array([np.inf, np.inf])}
    second = {"z": np.array([0.5, 2j, np.inf, complex(-np.inf, 1)]), "x": np.array([np.inf, 1.0])}
    changed = diff_of(first, second).changed
    assert (changed["z"].max_abs_difference, changed["z"].mean_abs_difference) == (1, 0.25)
    assert changed["x"].max_abs_difference == np.inf


def test_only_some_variables_are_compared():
    a = pts.save({"params": {"w": np.ones(3), "b": np.ones(2)}, "step": 1}, "a")
    b = pts.save({"params": {"w": np.zeros(3), "b": np.ones(2)}, "step": 2, "new": 1}, "b")
    found = pts.diff(a, b, only="params")
    assert (list(found.changed), found.equal, found.added) == (["params/w"], ["params/b"], [])
    assert not pts.diff(a, b, only="params/b")
    assert pts.diff(a, b, only="new").added == ["new"]
    with pytest.raises(pts.VariableNotFoundError, match="nothing"):
        pts.diff(a, b, only="nothing")


def test_progress_counts_only_variables_that_are_read():
    same, ones = np.zeros(300_000), np.ones(300_000)
    a, b = pts.save({"same": same, "w": ones}, "a"), pts.save({"same": same, "w": ones + 1}, "b")
    calls = []
    pts.diff(a, b, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2 * ones.nbytes, 2 * ones.nbytes)
    assert calls == sorted(calls)
