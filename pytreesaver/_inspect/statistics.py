"""Statistics of arrays that are seen part by part. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

MOST_UNIQUE = 1 << 20
"""How many different integers are counted."""


@dataclass(frozen=True)
class Statistics:
    """What the elements of a variable are like.

    What holds numbers has all of these; of text, dates and PRNG keys only the `count` is known, and the rest is None.

    Attributes:
        count: how many elements there are.
        nan: how many of them are NaN.
        inf: how many are infinite.
        zeros: how many are zero.
        min: the smallest that is not NaN; None if there is none, or if they are complex.
        max: the largest that is not NaN; likewise.
        mean: the mean of the finite ones, in float64; None if there are none.
        std: their standard deviation, that of the whole population.
        norm: the square root of the sum of the squares of their absolute values.
        unique: of bools and integers, how many different ones there are; None of others, and if there are more than
            1,048,576.
    """

    count: int
    nan: int | None = None
    inf: int | None = None
    zeros: int | None = None
    min: int | float | None = None
    max: int | float | None = None
    mean: float | complex | None = None
    std: float | None = None
    norm: float | None = None
    unique: int | None = None


@dataclass
class Sums:
    """What is known of some elements of an array of numbers, and can be put together with what is known of others."""

    count: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    finite: int = 0
    min: Any = None
    max: Any = None
    mean: Any = 0.0
    half_std: float = 0.0  # that of complex numbers may be more than a float holds
    norm: float = 0.0
    unique: np.ndarray | None = None  # the different ones, ascending; if they are too many, some

    def result(self) -> Statistics:
        """The statistics of these elements."""
        known = self.finite > 0
        different = None if self.unique is None else self.unique.size
        return Statistics(
            self.count,
            self.nan,
            self.inf,
            self.zeros,
            self.min,
            self.max,
            self.mean if known else None,
            self.half_std * 2 if known else None,
            self.norm,
            different if different is None or different <= MOST_UNIQUE else None,
        )


def sums_of(values: np.ndarray) -> Sums:
    """The sums of an array of bools, integers, floats or complex numbers, of NumPy's dtypes or those of ml_dtypes.

    Example:
        >>> sums = sums_of(np.array([0.0, 3.0, np.nan, 5.0]))
        >>> sums.result().mean, sums.result().nan, sums.result().zeros, sums.result().max
        (2.6666666666666665, 1, 1, 5.0)
    """
    flat = values.reshape(-1)
    name = _name(flat.dtype)
    if name.startswith(("bool", "int", "uint")):
        return _of_integers(flat)
    if flat.dtype.kind == "c":
        return _of_complex(flat)
    wide = (
        flat if name in ("float32", "float64") else flat.astype(np.float32 if flat.dtype.itemsize < 4 else np.float64)
    )
    return _of_floats(wide)


@lru_cache(maxsize=256)
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name


def _of_floats(wide: np.ndarray) -> Sums:
    sums = Sums(wide.size, zeros=int(wide.size - np.count_nonzero(wide)))
    if not wide.size:
        return sums
    with np.errstate(all="ignore"):
        low, high = float(np.min(wide)), float(np.max(wide))
        if not math.isfinite(low) or not math.isfinite(high):  # a NaN is both
            low, high = float(np.fmin.reduce(wide)), float(np.fmax.reduce(wide))
            finite = np.isfinite(wide)
            sums.nan = int(np.count_nonzero(np.isnan(wide)))
            wide = wide[finite]
        sums.inf, sums.finite = sums.count - sums.nan - wide.size, wide.size
        sums.min, sums.max = (None, None) if math.isnan(low) else (low, high)
        _add_moments(sums, wide)
    return sums


def _of_complex(flat: np.ndarray) -> Sums:
    with np.errstate(all="ignore"):
        finite = np.isfinite(flat)
        nan = int(np.count_nonzero(np.isnan(flat)))
        sums = Sums(flat.size, nan, flat.size - int(np.count_nonzero(finite)) - nan)
        sums.zeros, sums.finite = int(flat.size - np.count_nonzero(flat)), int(np.count_nonzero(finite))
        _add_moments(sums, flat[finite].astype(np.complex128))
    return sums


def _of_integers(flat: np.ndarray) -> Sums:
    wide = flat
    if flat.dtype.isbuiltin != 1:  # those of a few bits
        wide = flat.astype(np.int16)
    elif flat.dtype == np.bool_:
        wide = flat.view(np.uint8)
    different = _different(np.sort(wide)) if wide.dtype.itemsize > 2 else _different_small(wide)
    sums = Sums(wide.size, zeros=int(wide.size - np.count_nonzero(wide)), finite=wide.size)
    sums.unique = different
    if wide.size:
        sums.min, sums.max = int(different[0]), int(different[-1])
        _add_moments(sums, wide)
    return sums


def _different(ordered: np.ndarray) -> np.ndarray:
    """The different ones of sorted integers. `numpy.unique` is many times slower."""
    first = np.ones(ordered.shape, bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    different: np.ndarray = ordered[first]
    return different


def _different_small(integers: np.ndarray) -> np.ndarray:
    """The same for integers of at most 16 bits in any order."""
    unsigned = integers.view(f"u{integers.dtype.itemsize}")
    there: np.ndarray = np.flatnonzero(np.bincount(unsigned)).astype(unsigned.dtype).view(integers.dtype)
    return np.sort(there)


def _add_moments(sums: Sums, numbers: np.ndarray) -> None:
    """Mean and norms in float64, of numbers that are divided by the largest of them if its square could overflow."""
    if not numbers.size:
        return
    is_complex = numbers.dtype.kind == "c"
    real = numbers.view(np.float64) if is_complex else numbers
    scale = max(abs(float(np.min(real))), abs(float(np.max(real))))
    if scale == 0.0:
        return
    wide = real.astype(np.float64)
    if 1e-100 < scale < 1e100:
        scale = 1.0
    else:
        wide /= scale
    sums.norm = math.sqrt(float(np.dot(wide, wide))) * scale
    pairs = wide.reshape(-1, 2) if is_complex else wide
    means = np.mean(pairs, axis=0)
    pairs -= means
    sums.half_std = math.sqrt(float(np.dot(wide, wide)) / len(pairs)) / 2 * scale
    sums.mean = complex(*(means * scale).tolist()) if is_complex else float(means) * scale


def norm_of_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The square root of the sum of |a - b|² over the elements that are finite in both; they have one dtype.

    Example:
        >>> norm_of_difference(np.array([0.0, 1.0, np.nan]), np.array([3.0, 5.0, 0.0]))
        5.0
    """
    kind = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        difference = a.reshape(-1).astype(kind)
        difference -= b.reshape(-1).astype(kind)
        real = difference.view(np.float64)
        if not math.isfinite(float(np.dot(real, real))):
            finite = np.isfinite(a.reshape(-1)) & np.isfinite(b.reshape(-1))
            real = np.ascontiguousarray(difference[finite]).view(np.float64)
        scale = float(np.max(np.abs(real), initial=0.0))
        if not 1e-100 < scale < 1e100:
            if scale == 0.0 or math.isinf(scale):
                return scale
            real = real / scale
            return math.sqrt(float(np.dot(real, real))) * scale
        return math.sqrt(float(np.dot(real, real)))


def joined(parts: Iterable[Sums]) -> Sums:
    """The sums of all elements, from those of some each.

    Example:
        >>> whole = joined([sums_of(np.arange(3)), sums_of(np.arange(2, 10))]).result()
        >>> whole.count, whole.unique, whole.min, whole.max
        (11, 10, 0, 9)
    """
    parts = list(parts)
    if not parts:
        return Sums()
    total = parts[0]
    for part in parts[1:]:
        total = _joined(total, part)
    return total


def _joined(a: Sums, b: Sums) -> Sums:
    finite = a.finite + b.finite
    share = b.finite / finite if finite else 0.0
    quarter = b.mean / 4 - a.mean / 4  # a quarter, because the difference may be more than a float holds
    apart = math.hypot(quarter.real, quarter.imag) * (2 * math.sqrt(share * (1 - share)))
    unique = None
    if a.unique is not None and b.unique is not None:
        unique = a.unique
        if unique.size <= MOST_UNIQUE:  # beyond that nobody asks how many there are
            unique = _different(np.sort(np.concatenate([unique, b.unique]), kind="stable"))
    return Sums(
        a.count + b.count,
        a.nan + b.nan,
        a.inf + b.inf,
        a.zeros + b.zeros,
        finite,
        b.min if a.min is None else a.min if b.min is None else min(a.min, b.min),
        b.max if a.max is None else a.max if b.max is None else max(a.max, b.max),
        a.mean * (1 - share) + b.mean * share,
        math.hypot(a.half_std * math.sqrt(1 - share), b.half_std * math.sqrt(share), apart),
        math.hypot(a.norm, b.norm),
        unique,
    )


def finite_extremes(values: np.ndarray) -> tuple[float, float] | None:
    """The smallest and the largest finite element; None if there is none."""
    wide = values.reshape(-1).astype(np.float64)
    finite = wide[np.isfinite(wide)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def histogram_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many finite elements lie between each edge and the next one, as `numpy.histogram` counts them."""
    wide = values.reshape(-1).astype(np.float64)
    counts: np.ndarray = np.histogram(wide[np.isfinite(wide)], edges)[0]
    return counts


def histogram_edges(low: float, high: float, bins: int) -> np.ndarray:
    """`bins` + 1 edges from the smallest element to the largest; around it, if all are the same."""
    if low == high:
        low, high = low - 0.5, high + 0.5
        if low == high:  # too large for that
            low, high = np.nextafter(low, -math.inf), np.nextafter(high, math.inf)
    # Half of each, because the difference may be more than a float holds.
    steps = np.arange(bins + 1) / bins
    edges: np.ndarray = np.maximum.accumulate(low * (1 - steps) + high * steps)
    edges[-1] = high
    result: np.ndarray = np.minimum(edges, high)
    return result
