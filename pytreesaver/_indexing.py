"""What a basic index of NumPy touches of an array, before any of it is read. Pure."""

from typing import Any

import numpy as np

from pytreesaver._names import shown


def bounding_box(
    index: Any, shape: tuple[int, ...], name: str
) -> tuple[list[tuple[int, int]], tuple[slice | int, ...]]:
    """The box of an array that a basic index touches, and the index to take from that box.

    Raises:
        IndexError: the index is out of bounds, or no basic one; the message begins with `name`.

    Example:
        >>> bounding_box((slice(6, 2, -2), -1), (10, 4), "w")
        ([(4, 7), (3, 4)], (slice(None, None, -2), 0))
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    if sum(part is ... for part in parts) > 1:
        raise IndexError(f"{shown(name)}: an index can have a single ...")
    parts = [part if isinstance(part, slice) or part is ... else _as_int(part, name) for part in parts]
    given = sum(part is not ... for part in parts)
    if given > len(shape):
        raise IndexError(f"{shown(name)}: expected at most {len(shape)} indices for shape {shape}, found {given}")
    fill: list[Any] = [slice(None)] * (len(shape) - given)
    at = next((i for i, part in enumerate(parts) if part is ...), None)
    parts = parts + fill if at is None else parts[:at] + fill + parts[at + 1 :]
    box: list[tuple[int, int]] = []
    inner: list[slice | int] = []
    for axis, (part, length) in enumerate(zip(parts, shape, strict=True)):
        if isinstance(part, slice):
            wanted = range(*part.indices(length))
            low, high = (min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]) + 1) if wanted else (0, 0)
            inner.append(slice(None, None, wanted.step) if wanted else slice(None))
        else:
            if not -length <= part < length:
                raise IndexError(f"{shown(name)}: index {part} is out of bounds for axis {axis} of length {length}")
            low, high = part % length, part % length + 1
            inner.append(0)
        box.append((low, high))
    return box, tuple(inner)


def _as_int(part: Any, name: str) -> int:
    if isinstance(part, bool | np.bool_) or not hasattr(part, "__index__"):
        raise IndexError(f"{shown(name)}: expected an index of integers, slices and ..., found {part!r}; {_ANY_INDEX}")
    try:
        return int(part.__index__())
    except TypeError:
        raise IndexError(f"{shown(name)}: expected integers, slices and ..., found {part!r}; {_ANY_INDEX}") from None


_ANY_INDEX = "read() gives an array that takes any index"
