"""Tests of statistics and histograms: they match NumPy for all dtypes and sizes."""

import math

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._inspect import measuring, statistics
from pytreesaver._inspect.statistics import accumulate, histogram_edges, merge

DTYPES = [
    "bool", "int8", "uint8", "int16", "int64", "uint64", "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
ML_DTYPES = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, ml_dtypes.uint2]


def expected(values):
    """Return the values in the widest dtype, the finite ones among them, and the NaN and Inf counts."""
    flat = np.asarray(values).reshape(-1)
    wide = flat.astype(
        object if flat.dtype.kind in "iu" else np.clongdouble if flat.dtype.kind == "c" else np.longdouble
    )
    if flat.dtype.kind in "iub":
        return wide, wide, 0, 0
    finite = wide[np.isfinite(wide)]
    return wide, finite, int(np.isnan(wide).sum()), int((~np.isfinite(wide) & ~np.isnan(wide)).sum())


def close(found, wanted, scale):
    return abs(found - wanted) <= 1e-9 * max(abs(scale), abs(wanted)) or math.isinf(wanted)


@given(
    hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=9)),
    st.integers(0, 80),
)
def test_statistics_match_their_definition_in_one_part_or_two(values, cut):
    if values.dtype == np.complex128:
        with np.errstate(invalid="ignore"):
            values = np.asarray(values / 2)  # so that absolute values do not overflow
    flat = values.reshape(-1)
    wide, finite, nan, inf = expected(values)
    for partial in (accumulate(values), merge([accumulate(flat[:cut]), accumulate(flat[cut:])])):
        found = partial.result()
        assert (found.count, found.nan, found.inf) == (values.size, nan, inf)
        assert found.zeros == sum(1 for value in wide if value == 0)
        if not len(finite):
            assert found.mean is None
            assert found.std is None
            continue
        scale = max(abs(value) for value in finite)
        mean = sum(finite) / len(finite)
        assert close(found.mean, mean, scale)
        norm = math.sqrt(sum(float(abs(value / scale)) ** 2 for value in finite)) * float(scale) if scale else 0.0
        assert close(found.norm, norm, scale)
        std = (
            math.sqrt(sum(float(abs((v - mean) / scale)) ** 2 for v in finite) / len(finite)) * float(scale)
            if scale
            else 0
        )
        assert close(found.std, std, scale)
        if values.dtype.kind != "c":
            numbers = [value for value in wide if value == value]
            assert (found.min, found.max) == (min(numbers), max(numbers))
        assert found.unique == (len(set(flat.tolist())) if values.dtype.kind in "biu" else None)


@pytest.mark.parametrize("dtype", ML_DTYPES)
def test_statistics_of_ml_dtypes(dtype):
    values = np.array([0, 1, 1, 3, 2], dtype)
    found = accumulate(values).result()
    as_float = values.astype(np.float64)
    assert (found.min, found.max, found.zeros, found.mean) == (0, as_float.max(), 1, as_float.mean())
    assert found.std == pytest.approx(as_float.std())
    assert found.unique == (4 if "int" in np.dtype(dtype).name else None)


def test_all_nan_has_no_extremes():
    found = accumulate(np.full(3, np.nan, np.float32)).result()
    assert (found.nan, found.min, found.max, found.mean, found.norm) == (3, None, None, None, 0.0)


def test_norm_of_numbers_whose_squares_overflow():
    found = accumulate(np.array([3e200, 4e200])).result()
    assert found.norm == pytest.approx(5e200)
    assert found.std == pytest.approx(5e199)


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_std_of_numbers_near_the_largest_float(cut):
    values = np.array([0, 0, 1.5e308j, 1.5e308j, -1.5e308, 1.7e308 - 1.7e308j])
    found = merge([accumulate(values[:cut]), accumulate(values[cut:])]).result()
    assert found.std == pytest.approx(float(np.std(values / 1e308)) * 1e308)


TREE = {
    "large": np.arange(3_000_000, dtype=np.float32) % 1000,
    "small": {str(i): np.full(10, i, np.int32) for i in range(50)},
    "text": "words",
    "step": 7,
    "huge": 2**100,
    "when": np.array(["2026-01-01"], "datetime64[D]"),
    "empty": np.zeros((0, 3)),
}


def test_statistics_of_a_checkpoint():
    with pts.load_checkpoint(pts.save(TREE, "model")) as checkpoint:
        found = checkpoint.statistics()
        assert list(found) == list(checkpoint)
        large = TREE["large"].astype(np.float64)
        assert found["large"].mean == pytest.approx(large.mean(), rel=1e-12)
        assert found["large"].std == pytest.approx(large.std(), rel=1e-9)
        assert found["large"].norm == pytest.approx(np.linalg.norm(large), rel=1e-12)
        assert found["small/7"] == checkpoint["small/7"].statistics()
        assert (found["small/7"].min, found["small/7"].unique) == (7, 1)
        assert (found["step"].min, found["step"].count) == (7, 1)
        for name in ("text", "huge", "when"):
            assert found[name] == pts.Statistics(1)
        assert (found["empty"].count, found["empty"].mean) == (0, None)
        assert list(checkpoint.statistics("small/1*")) == [f"small/{i}" for i in (1, *range(10, 20))]
        with pytest.raises(pts.VariableNotFoundError, match="smal"):
            checkpoint.statistics("smal")


def test_statistics_of_a_sharded_array(mesh_of_shards):
    values, sharded = mesh_of_shards
    with pts.load_checkpoint(pts.save({"w": sharded}, "sharded")) as checkpoint:
        assert checkpoint["w"].statistics().norm == pytest.approx(np.linalg.norm(values), rel=1e-12)
        assert checkpoint["w"].histogram(5)[0].sum() == values.size


@pytest.fixture
def mesh_of_shards():
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    values = np.random.default_rng(0).normal(size=(2048, 512)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return values.astype(np.float64), jax.device_put(values, NamedSharding(mesh, PartitionSpec("a", "b")))


def test_all_damaged_variables_are_named(monkeypatch):
    monkeypatch.setattr(measuring, "_PART_NBYTES", 1 << 16)
    path = pts.save({"a": np.ones(10), "b": np.ones(100_000), "c": np.ones(100_000), "d": np.zeros(5)}, "model")
    (data,) = path.glob("*.safetensors")
    content = bytearray(data.read_bytes())
    one = np.ones(10).tobytes()
    content[content.find(one) + 3] ^= 1  # in b or c, whichever is stored first
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError) as error:
        pts.load_checkpoint(path).statistics()
    assert len(error.value.damaged) == 2


@given(hnp.arrays("float64", st.integers(1, 40), elements=st.floats(-1e300, 1e300)), st.integers(1, 30))
def test_a_histogram_counts_every_finite_element_once(values, bins):
    with pts.load_checkpoint(
        pts.save({"w": np.append(values, [np.nan, np.inf])}, "model", overwrite=True)
    ) as checkpoint:
        counts, edges = checkpoint["w"].histogram(bins)
    assert counts.sum() == values.size
    assert (len(counts), len(edges)) == (bins, bins + 1)
    assert edges[0] <= values.min()
    assert edges[-1] >= values.max()
    assert (np.diff(edges) >= 0).all()


def test_a_histogram_matches_numpy():
    values = np.random.default_rng(1).normal(size=10_000)
    with pts.load_checkpoint(pts.save({"w": values, "text": "a", "nan": np.array([np.nan])}, "model")) as checkpoint:
        counts, edges = checkpoint["w"].histogram(10)
        for name in ("text", "nan"):
            with pytest.raises(ValueError, match=f"{name}: expected finite real numbers"):
                checkpoint[name].histogram()
        with pytest.raises(ValueError, match="bins"):
            checkpoint["w"].histogram(0)
    wanted, wanted_edges = np.histogram(values, 10)
    assert counts.tolist() == wanted.tolist()
    assert np.allclose(edges, wanted_edges)


def test_a_histogram_between_given_edges():
    values = np.arange(100.0)
    with pts.load_checkpoint(pts.save({"w": values}, "model")) as checkpoint:
        counts, edges = checkpoint["w"].histogram(4, range=(10, 30))
        for wrong in ((2, 1), (0, np.inf), (np.nan, 1)):
            with pytest.raises(ValueError, match="range: expected two finite numbers"):
                checkpoint["w"].histogram(4, range=wrong)
    wanted, wanted_edges = np.histogram(values, 4, (10, 30))
    assert (counts.tolist(), edges.tolist()) == (wanted.tolist(), wanted_edges.tolist())


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint64"])
def test_too_many_unique_integers_are_neither_counted_nor_kept(monkeypatch, dtype):
    monkeypatch.setattr(statistics, "MAX_UNIQUE", 50)
    for count in (50, 51):
        values = np.tile(np.arange(count).astype(dtype), 20)
        partial = merge([accumulate(values[i : i + 17]) for i in range(0, values.size, 17)])
        assert partial.result().unique == (50 if count == 50 else None)
        assert partial.unique.size <= 51 + 17


def test_histogram_edges_around_a_single_value():
    assert histogram_edges(2.0, 2.0, 1).tolist() == [1.5, 2.5]
    low, high = histogram_edges(1e300, 1e300, 1).tolist()
    assert low < 1e300 < high
