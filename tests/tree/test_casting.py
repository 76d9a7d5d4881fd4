"""Casting and reshaping leaves on restore, and errors for lossy casts."""

import bisect
import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import message_of
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._checkpoint.restoring import reading
from pytreesaver._tree.casting import LossyCastError, convert
from pytreesaver.formats.indexed import reader
from pytreesaver.testing import assert_trees_equal, dtypes

NUMBERS = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn", "int4", "uint2"),
]


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.data())
@settings(max_examples=500)
@np.errstate(all="ignore")  # ml_dtypes leaves floating-point flags set
def test_convert_rounds_correctly_or_raises(source, target, data):
    bits = data.draw(st.binary(min_size=dtype_of(source).itemsize, max_size=dtype_of(source).itemsize))
    mask = {"bool": 1, "int4": 15, "uint2": 3, "float4_e2m1fn": 15}.get(source, 255)
    values = (np.frombuffer(bits, np.uint8) & mask).view(dtype_of(source))
    output = np.empty(1, dtype_of(target))
    try:
        convert(values, output)
    except LossyCastError:
        output = None
    parts = [values.real, values.imag] if dtype_of(source).kind == "c" else [values]
    if len(parts) == 2 and dtype_of(target).kind != "c":
        if parts[1][0] != 0:
            assert output is None
            return
        parts = parts[:1]
    elif output is not None and dtype_of(target).kind == "c":
        results = [output.real, output.imag]
    results = (
        [output] if output is not None and dtype_of(target).kind != "c" else results if output is not None else None
    )
    nearest = [nearest_number(part[0], np.empty(0, dtype_of(target)).real.dtype) for part in parts]
    if source == target:
        assert output.tobytes() == values.tobytes()
    elif results is None:
        assert None in nearest
    else:
        for result, expected in zip(results, nearest, strict=False):
            number = float(result[0]) if is_float(target) else int(result[0])
            assert number == expected or (number != number and expected != expected)


def is_float(name):
    return jnp.issubdtype(dtype_of(name), jnp.inexact)


def nearest_number(value, dtype):
    """The expected result of a cast, by exact arithmetic; None if the cast must fail."""
    whole = not jnp.issubdtype(value.dtype, jnp.inexact)
    if not jnp.issubdtype(dtype, jnp.inexact):
        if not np.isfinite(float(value)):
            return None
        exact = Fraction(int(value)) if whole else Fraction(float(value))
        low, high = (0, 1) if dtype.kind == "b" else (int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max))
        return int(exact) if exact.denominator == 1 and low <= exact <= high else None
    every = all_numbers(dtype) if dtype.itemsize <= 2 else None
    if whole:
        exact = int(value)
        if every is not None:
            return float(exact) if exact in set_of_numbers(dtype) else None
        return float(exact) if int(dtype.type(exact)) == exact else None
    if np.isnan(float(value)) or np.isinf(float(value)):
        with np.errstate(all="ignore"):
            same = float(np.array(float(value)).astype(dtype))
        return same if same == float(value) or (same != same and np.isnan(float(value))) else None
    if every is None:
        rounded = float(dtype.type(value))  # NumPy's casts round once
        return rounded if np.isfinite(rounded) else None
    exact = Fraction(float(value))
    if abs(exact) >= overflow_limit(dtype) or (dtype.name == "float8_e8m0fnu" and exact <= 0):
        return None
    at = bisect.bisect(every, float(value))
    near = sorted(every[max(at - 2, 0) : at + 2], key=lambda number: abs(Fraction(number) - exact))[:2]
    if len(near) == 2 and abs(Fraction(near[0]) - exact) == abs(Fraction(near[1]) - exact):
        return float(np.array(float(value), np.float32).astype(dtype))  # a tie; use the rounding of ml_dtypes
    return near[0]


@functools.cache
def all_numbers(dtype):
    count = 2 ** min(8 * dtype.itemsize, 4 if dtype.name == "float4_e2m1fn" else 64)
    with np.errstate(invalid="ignore"):  # of signalling NaNs
        numbers = np.arange(count, dtype=f"u{dtype.itemsize}").view(dtype).astype(np.float64)
    return sorted({float(number) for number in numbers if np.isfinite(number)})


@functools.cache
def set_of_numbers(dtype):
    return set(all_numbers(dtype))


def overflow_limit(dtype):
    every = all_numbers(dtype)
    return Fraction(every[-1]) + (Fraction(every[-1]) - Fraction(every[-2])) / 2


@pytest.mark.parametrize("target", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_float64_is_rounded_once(target):
    # Above the midpoint of two target numbers by less than the precision of float32.
    values = np.array([1 + 2**-8 + 2**-40, -1 - 2**-8 - 2**-40, 1 + 2**-4 + 2**-40, 1 + 2**-3 + 2**-40])
    output = np.empty(4, dtype_of(target))
    convert(values, output)
    for value, result in zip(values, output, strict=True):
        assert float(result) == nearest_number(value, output.dtype)


def test_cast_follows_the_template():
    tree = {"w": jnp.linspace(0, 1, 5), "n": np.int64([1, 2]), "step": 3, "lr": 0.1, "half": np.float16(0.5)}
    path = pts.save(tree, "model")
    like = {
        "w": jnp.zeros(5, jnp.bfloat16),
        "n": np.zeros(2, np.uint8),
        "step": np.zeros((), np.float32),
        "lr": jnp.float32(0),
        "half": 0.0,
    }
    restored = pts.restore(path, like, cast=True)
    assert_trees_equal(
        restored,
        {
            "w": tree["w"].astype(jnp.bfloat16),
            "n": np.uint8([1, 2]),
            "step": np.asarray(3, np.float32),
            "lr": jnp.float32(0.1),
            "half": 0.5,
        },
    )
    message = message_of(pts.MismatchError, lambda: pts.restore(path, like))
    assert "w: expected bfloat16[5], found float32[5]" in message
    assert message.endswith("(cast=True converts to the template's dtypes)")


def test_lossy_casts_are_refused_by_name():
    tree = {"a": np.array([1.5, 2.0]), "b": np.int64([1, 2**40]), "c": np.array([1e300]), "d": 2**70, "ok": np.ones(2)}
    path = pts.save(tree, "model")
    like = {
        "a": np.zeros(2, np.int32),
        "b": jnp.zeros(2, jnp.int32),
        "c": np.zeros(1, np.float16),
        "d": jnp.int32(0),
        "ok": np.zeros(2, np.int8),
    }
    with pytest.raises(pts.MismatchError) as caught:
        pts.restore(path, like, cast=True)
    assert str(caught.value) == (
        "4 variables of model cannot be cast without loss:\n"
        "  a: expected int32[2], found float64[2] (1.5 is not representable as int32)\n"
        "  b: expected int32[2], found int64[2] (1099511627776 is not representable as int32)\n"
        "  c: expected float16[1], found float64[1] (1e+300 is not representable as float16)\n"
        "  d: expected int32[], found int (1180591620717411303424 is not representable as int32)"
    )
    assert caught.value.dtype["a"] == ("int32", "float64")


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [("text", 0), (b"x", np.uint8(0)), (np.array("M8", "U2"), 0.0), (np.array(3, "M8[s]"), np.int64(0))],
    ids=repr,
)
def test_only_numbers_are_cast(stored, wanted):
    path = pts.save({"x": stored}, "model")
    with pytest.raises(pts.MismatchError, match="with a different shape or dtype"):
        pts.restore(path, {"x": wanted}, cast=True)


def test_keys_are_never_cast():
    path = pts.save({"x": jax.random.key(0)}, "model")
    for wanted in (jax.random.key(0, impl="rbg"), jnp.zeros(2, jnp.uint32)):
        with pytest.raises(pts.MismatchError, match="expected"):
            pts.restore(path, {"x": wanted}, cast=True)


@pytest.mark.parametrize(
    ("stored", "wanted"), [(3, 0.5), (3.0, 7), (1, True), (2 + 0j, 0.5), (True, 3), (3, 1j), (2**70, 0.5)]
)
def test_python_numbers_are_cast(stored, wanted):
    path = pts.save(
        {"x": stored, "array": np.asarray(stored, object).astype(float) if stored == 2**70 else np.asarray(stored)},
        "model",
    )
    restored = pts.restore(path, {"x": wanted, "array": wanted}, cast=True)
    assert restored == {"x": stored, "array": stored}
    assert type(restored["x"]) is type(restored["array"]) is type(wanted)


@pytest.mark.parametrize(
    ("stored", "wanted", "said"),
    [
        (3.5, 7, "3.5 is not representable as int"),
        (2, True, "2 is not representable as bool"),
        (1j, 0.5, "1j is not representable as float"),
        (10**400, 0.5, "is not representable as float"),
        (2**53 + 1, 0.5, "9007199254740993 is not representable as float"),
        (257, jnp.bfloat16(0), "257 is not representable as bfloat16"),
        (2**70 + 1, np.float64(0), "1180591620717411303425 is not representable as float"),
        (2**40, np.int32(0), "is not representable as int32"),
    ],
)
def test_lossy_casts_of_python_numbers_are_refused(stored, wanted, said):
    path = pts.save({"x": stored}, "model")
    with pytest.raises(pts.MismatchError, match=said):
        pts.restore(path, {"x": wanted}, cast=True)


def test_cast_to_a_floating_dtype_without_a_template():
    tree = {
        "w": jnp.ones(3),
        "n": np.ones(2),
        "s": np.float64(1),
        "i": jnp.arange(2),
        "f": 0.5,
        "c": np.ones(1, complex),
    }
    path = pts.save(tree, "model")
    for dtype in (jnp.bfloat16, "bfloat16", np.dtype(jnp.bfloat16)):
        restored = pts.restore(path, cast=dtype)
        small = np.dtype(jnp.bfloat16)
        assert [np.asarray(restored[name]).dtype for name in "wns"] == [small] * 3
        assert_trees_equal({n: restored[n] for n in "ifc"}, {n: tree[n] for n in "ifc"})
        assert isinstance(restored["w"], jax.Array)
        assert isinstance(restored["n"], np.ndarray)
    for nonsense in ("int32", "nothing", 3, np.int8, ">x", None):
        with pytest.raises(TypeError, match="cast: expected True, False, or a floating dtype"):
            pts.restore(path, cast=nonsense)
    with pytest.raises(ValueError, match="the template decides the dtypes"):
        pts.restore(path, tree, cast=jnp.bfloat16)
    with pytest.raises(pts.MismatchError, match=r"w: expected float32\[3\], found float64\[3\] \(JAX has no 64-bit"):
        pts.restore(path, cast=np.float64)
    assert pts.restore(path, cast=np.float64, as_numpy=True)["w"].dtype == np.float64


def test_64_bit_leaves_become_32_bit_without_x64():
    with jax.enable_x64(True):
        tree = {"f": jnp.array([0.1]), "i": jnp.array([7]), "c": jnp.array([1j]), "n": np.ones(1)}
        path = pts.save(tree, "model")
        pts.save({"i": jnp.array([2**40])}, "large")
    message = message_of(pts.MismatchError, lambda: pts.restore(path))
    assert "cast=True" in message
    assert "as_numpy=True" in message
    restored = pts.restore(path, cast=True)
    assert {name: restored[name].dtype.name for name in restored} == {
        "f": "float32",
        "i": "int32",
        "c": "complex64",
        "n": "float64",
    }
    assert pts.restore(path, cast=True, as_numpy=True)["f"].dtype == np.float64
    with pytest.raises(pts.MismatchError, match="1099511627776 is not representable as int32"):
        pts.restore("large", cast=True)


def test_large_leaves_are_cast_in_slices(monkeypatch):
    monkeypatch.setattr(reader, "SLICE_NBYTES", 1 << 20)
    array = np.random.default_rng(0).normal(size=(1000, 1003)).astype(np.float32)
    path = pts.save({"w": array, "bad": np.where(array == array[700, 5], np.float32(0.5), 0)}, "model")
    like = {"w": jax.ShapeDtypeStruct(array.shape, jnp.bfloat16), "bad": np.zeros(array.shape, np.int8)}
    for mmap in (False, True):
        restored = pts.restore(path, like, cast=True, only="w", mmap=mmap)["w"]
        assert_trees_equal(restored, jnp.asarray(array).astype(jnp.bfloat16))
        with pytest.raises(pts.MismatchError, match=r"bad: .*\(0.5 is not representable as int8"):
            pts.restore(path, like, cast=True, mmap=mmap)


@given(dtypes(), st.permutations([2, 3, 4]), st.sampled_from([(24,), (6, 4), (1, 24, 1), (4, 3, 2)]))
@settings(max_examples=50)
def test_reshape_matches_numpy(dtype, shape, wanted):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_SMALL_NBYTES", 0)
        array = (np.arange(24 * dtype.itemsize, dtype=np.uint8) // 3 % 2).view(dtype).reshape(shape)
        path = pts.save({"x": array}, "reshaped", overwrite=True)
        like = {"x": jax.ShapeDtypeStruct(wanted, dtype)}
        for mmap in (False, True):
            restored = pts.restore(path, like, reshape=True, mmap=mmap)["x"]
            assert np.asarray(restored).tobytes() == array.tobytes()
            assert restored.shape == wanted


def test_the_error_suggests_reshape_if_it_helps():
    path = pts.save({"x": np.arange(6), "y": np.arange(3)}, "model")
    message = message_of(pts.MismatchError, lambda: pts.restore(path, {"x": np.zeros((2, 3)), "y": np.arange(4)}))
    assert message == (
        "2 variables of model do not match:\n"
        "with a different shape or dtype (2):\n"
        "  x: expected float64[2,3], found int64[6]\n"
        "  y: expected int64[4], found int64[3]\n"
        "(cast=True converts to the template's dtypes; "
        "reshape=True accepts any shape with the same number of elements; "
        'mismatched="keep" keeps the template\'s own values of another shape)'
    )
    restored = pts.restore(path, {"x": np.zeros((2, 3))}, only="x", cast=True, reshape=True)
    assert_trees_equal(restored, {"x": np.arange(6.0).reshape(2, 3)})
    with pytest.raises(ValueError, match="compare with a template"):
        pts.restore(path, reshape=True)
    with pytest.raises(pts.MismatchError, match=r"x: expected float64\[7\], found int64\[6\]"):
        pts.restore(path, {"x": np.zeros(7)}, only="x", cast=True, reshape=True)


@pytest.mark.skipif(not hasattr(ml_dtypes, "int1"), reason="ml_dtypes 0.6 has it")
def test_int1_cannot_represent_true():
    path = pts.save({"x": np.array([True])}, "model")
    with pytest.raises(pts.MismatchError, match="is not representable as int1"):
        pts.restore(path, {"x": np.zeros(1, ml_dtypes.int1)}, cast=True)
