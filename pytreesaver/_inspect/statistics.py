"""Statistics of arrays that are processed in parts. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

MAX_UNIQUE = 1 << 20
"""The largest number of distinct integers that is counted."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of the elements of a variable.

    Text, dates, PRNG keys and Python ints of more than 64 bits have only a `count`; all other attributes are None.

    Attributes:
        count: the number of elements.
        nan: the number of NaN elements.
        inf: the number of infinite elements.
        zeros: the number of zeros.
        min: the smallest element, ignoring NaN; None if there is none, or for complex numbers.
        max: the largest element, ignoring NaN; None if there is none, or for complex numbers.
        mean: the mean of the finite elements, computed in float64; None if there are none.
        std: the population standard deviation of the finite elements; None if there are none.
        norm: the 2-norm of the finite elements; 0 if there are none.
        unique: the number of distinct bools or integers; None for other dtypes, or if there are more than 1,048,576.
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
class PartialStatistics:
    """Statistics of a part of a numeric array. `merge` combines those of several parts."""

    count: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    finite: int = 0
    min: Any = None
    max: Any = None
    mean: Any = 0.0
    half_std: float = 0.0  # halved, because the std of complex numbers may overflow
    norm: float = 0.0
    unique: np.ndarray | None = None  # ascending; incomplete if longer than MAX_UNIQUE

    def result(self) -> Statistics:
        """Return the final statistics."""
        known = self.finite > 0
        unique = None if self.unique is None else self.unique.size
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
            unique if unique is None or unique <= MAX_UNIQUE else None,
        )


def accumulate(values: np.ndarray) -> PartialStatistics:
    """Return statistics of an array of bools, integers, floats or complex numbers, including ml_dtypes.

    Example:
        >>> result = accumulate(np.array([0.0, 3.0, np.nan, 5.0])).result()
        >>> result.mean, result.nan, result.zeros, result.max
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


def _of_floats(wide: np.ndarray) -> PartialStatistics:
    partial = PartialStatistics(wide.size, zeros=int(wide.size - np.count_nonzero(wide)))
    if not wide.size:
        return partial
    with np.errstate(all="ignore"):
        low, high = float(np.min(wide)), float(np.max(wide))
        if not math.isfinite(low) or not math.isfinite(high):  # min and max propagate NaN
            low, high = float(np.fmin.reduce(wide)), float(np.fmax.reduce(wide))
            finite = np.isfinite(wide)
            partial.nan = int(np.count_nonzero(np.isnan(wide)))
            wide = wide[finite]
        partial.inf, partial.finite = partial.count - partial.nan - wide.size, wide.size
        partial.min, partial.max = (None, None) if math.isnan(low) else (low, high)
        _add_moments(partial, wide)
    return partial


def _of_complex(flat: np.ndarray) -> PartialStatistics:
    with np.errstate(all="ignore"):
        finite = np.isfinite(flat)
        nan = int(np.count_nonzero(np.isnan(flat)))
        partial = PartialStatistics(flat.size, nan, flat.size - int(np.count_nonzero(finite)) - nan)
        partial.zeros, partial.finite = int(flat.size - np.count_nonzero(flat)), int(np.count_nonzero(finite))
        _add_moments(partial, flat[finite].astype(np.complex128))
    return partial


def _of_integers(flat: np.ndarray) -> PartialStatistics:
    wide = flat
    if flat.dtype.isbuiltin != 1:  # ml_dtypes integers of fewer than 8 bits
        wide = flat.astype(np.int16)
    elif flat.dtype == np.bool_:
        wide = flat.view(np.uint8)
    unique = _unique_sorted(np.sort(wide)) if wide.dtype.itemsize > 2 else _unique_small(wide)
    partial = PartialStatistics(wide.size, zeros=int(wide.size - np.count_nonzero(wide)), finite=wide.size)
    partial.unique = unique
    if wide.size:
        partial.min, partial.max = int(unique[0]), int(unique[-1])
        _add_moments(partial, wide)
    return partial


def _unique_sorted(ordered: np.ndarray) -> np.ndarray:
    """Return the distinct values of sorted integers. `numpy.unique` is many times slower."""
    first = np.ones(ordered.shape, bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    unique: np.ndarray = ordered[first]
    return unique


def _unique_small(integers: np.ndarray) -> np.ndarray:
    """Return the sorted distinct values of unsorted integers of at most 16 bits."""
    unsigned = integers.view(f"u{integers.dtype.itemsize}")
    unique: np.ndarray = np.flatnonzero(np.bincount(unsigned)).astype(unsigned.dtype).view(integers.dtype)
    return np.sort(unique)


def _add_moments(partial: PartialStatistics, numbers: np.ndarray) -> None:
    """Set mean, std and norm, computed in float64. Scale the numbers if their squares could overflow or underflow."""
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
    partial.norm = math.sqrt(float(np.dot(wide, wide))) * scale
    pairs = wide.reshape(-1, 2) if is_complex else wide
    means = np.mean(pairs, axis=0)
    pairs -= means
    partial.half_std = math.sqrt(float(np.dot(wide, wide)) / len(pairs)) / 2 * scale
    partial.mean = complex(*(means * scale).tolist()) if is_complex else float(means) * scale


def norm_of_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the 2-norm of a - b over the elements that are finite in both arrays. Their dtypes are equal.

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


def merge(parts: Iterable[PartialStatistics]) -> PartialStatistics:
    """Merge the statistics of disjoint parts.

    Example:
        >>> whole = merge([accumulate(np.arange(3)), accumulate(np.arange(2, 10))]).result()
        >>> whole.count, whole.unique, whole.min, whole.max
        (11, 10, 0, 9)
    """
    parts = list(parts)
    if not parts:
        return PartialStatistics()
    total = parts[0]
    for part in parts[1:]:
        total = _merge_two(total, part)
    return total


def _merge_two(a: PartialStatistics, b: PartialStatistics) -> PartialStatistics:
    finite = a.finite + b.finite
    share = b.finite / finite if finite else 0.0
    quarter = b.mean / 4 - a.mean / 4  # divided by 4, because the difference may overflow
    between_means = math.hypot(quarter.real, quarter.imag) * (2 * math.sqrt(share * (1 - share)))
    unique = None
    if a.unique is not None and b.unique is not None:
        unique = a.unique
        if unique.size <= MAX_UNIQUE:  # a larger count is not reported
            unique = _unique_sorted(np.sort(np.concatenate([unique, b.unique]), kind="stable"))
    return PartialStatistics(
        a.count + b.count,
        a.nan + b.nan,
        a.inf + b.inf,
        a.zeros + b.zeros,
        finite,
        b.min if a.min is None else a.min if b.min is None else min(a.min, b.min),
        b.max if a.max is None else a.max if b.max is None else max(a.max, b.max),
        a.mean * (1 - share) + b.mean * share,
        math.hypot(a.half_std * math.sqrt(1 - share), b.half_std * math.sqrt(share), between_means),
        math.hypot(a.norm, b.norm),
        unique,
    )


def finite_extremes(values: np.ndarray) -> tuple[float, float] | None:
    """Return the smallest and the largest finite element, or None if there is none."""
    wide = values.reshape(-1).astype(np.float64)
    finite = wide[np.isfinite(wide)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def histogram_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count the finite elements between consecutive edges, like `numpy.histogram`."""
    wide = values.reshape(-1).astype(np.float64)
    counts: np.ndarray = np.histogram(wide[np.isfinite(wide)], edges)[0]
    return counts


def histogram_edges(low: float, high: float, bins: int) -> np.ndarray:
    """Return `bins` + 1 edges from `low` to `high`, or around them if they are equal."""
    if low == high:
        low, high = low - 0.5, high + 0.5
        if low == high:  # the value is too large for 0.5 to make a difference
            low, high = np.nextafter(low, -math.inf), np.nextafter(high, math.inf)
    # Interpolate, because high - low may overflow.
    steps = np.arange(bins + 1) / bins
    edges: np.ndarray = np.maximum.accumulate(low * (1 - steps) + high * steps)
    edges[-1] = high
    result: np.ndarray = np.minimum(edges, high)
    return result
