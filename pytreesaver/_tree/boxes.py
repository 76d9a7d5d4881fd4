"""Boxes of row-major arrays and the byte ranges that contain them. Pure functions on shapes."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Box = tuple[tuple[int, int], ...]
"""A rectangular part of an array: (start, stop) for each axis."""


def whole_box(shape: Sequence[int]) -> Box:
    """Return the box that covers an array of this shape."""
    return tuple((0, length) for length in shape)


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the shape of a box.

    Example:
        >>> box_shape(((1, 3), (0, 5)))
        (2, 5)
    """
    return tuple(stop - start for start, stop in box)


def box_index(box: Box) -> Any:
    """Return the index of a box in an array. The result of indexing is a view, even for a 0-d array."""
    return (*(slice(start, stop) for start, stop in box), ...)


def intersection(a: Box, b: Box) -> Box | None:
    """Return the intersection of two boxes, or None if it is empty.

    Example:
        >>> intersection(((0, 4),), ((2, 6),)), intersection(((0, 2),), ((2, 6),))
        (((2, 4),), None)
    """
    shared = tuple((max(low, start), min(high, stop)) for (low, high), (start, stop) in zip(a, b, strict=True))
    return None if any(low >= high for low, high in shared) else shared


def shifted(box: Box, origin: Sequence[int]) -> Box:
    """Return a box relative to another origin.

    Example:
        >>> shifted(((4, 6), (1, 2)), (4, 0))
        ((0, 2), (1, 2))
    """
    return tuple((start - zero, stop - zero) for (start, stop), zero in zip(box, origin, strict=True))


def index_box(index: Sequence[slice] | None, shape: Sequence[int]) -> Box:
    """Return the box of an index of slices without steps, as shardings return it.

    Example:
        >>> index_box((slice(None), slice(2, 4)), (3, 8))
        ((0, 3), (2, 4))
    """
    return tuple(part.indices(length)[:2] for part, length in zip(index or (), shape, strict=True))


def split_box(box: Box, limit: int) -> Iterator[Box]:
    """Split a box into boxes of at most `limit` elements, in row-major order.

    Example:
        >>> list(split_box(((0, 3), (0, 4)), 8))
        [((0, 2), (0, 4)), ((2, 3), (0, 4))]
    """
    size = math.prod(box_shape(box))
    if size <= max(limit, 1):
        yield box
        return
    axis = next(i for i, (start, stop) in enumerate(box) if stop - start > 1)
    start, stop = box[axis]
    rows = max(limit // (size // (stop - start)), 1)
    for low in range(start, stop, rows):
        yield from split_box((*box[:axis], (low, min(low + rows, stop)), *box[axis + 1 :]), limit)


def byte_runs(shape: Sequence[int], itemsize: int, boxes: Iterable[Box], block: int) -> list[tuple[int, int]]:
    """Return the byte ranges (begin, end) of a row-major array that cover the boxes, extended to complete blocks.

    The ranges are sorted and separated by gaps.

    Example:
        >>> byte_runs((100, 100), 8, [((0, 1), (0, 1)), ((50, 52), (0, 100))], block=1024)
        [(0, 1024), (39936, 41984)]
    """
    total = math.prod(shape) * itemsize
    strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    runs: list[tuple[int, int]] = []
    for box in boxes:
        if math.prod(box_shape(box)) == 0:
            continue
        span = itemsize
        outer = len(shape)
        while outer and ((n := box[outer - 1][1] - box[outer - 1][0]) == 1 or strides[outer - 1] - span <= block):
            outer -= 1
            span += (n - 1) * strides[outer]
        begins = np.array([sum(start * stride for (start, _), stride in zip(box, strides, strict=True))])
        for (start, stop), stride in zip(box[:outer], strides, strict=False):
            begins = (begins[:, None] + np.arange(stop - start) * stride).reshape(-1)
        runs += [(int(b) // block * block, min(-(-(int(b) + span) // block) * block, total)) for b in begins]
    runs.sort()
    merged: list[tuple[int, int]] = []
    for begin, end in runs:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def byte_span(shape: Sequence[int], itemsize: int, box: Box) -> tuple[int, int]:
    """Return the byte range (begin, end) of a row-major array from the first to the last byte of a nonempty box.

    Example:
        >>> byte_span((4, 5), 8, ((1, 3), (0, 5))), byte_span((4, 5), 8, ((1, 3), (0, 1)))
        ((40, 120), (40, 88))
    """
    strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    begin = sum(start * stride for (start, _), stride in zip(box, strides, strict=True))
    return begin, sum((stop - 1) * stride for (_, stop), stride in zip(box, strides, strict=True)) + itemsize


class Piece(NamedTuple):
    """A box that is contiguous in a row-major array, and the flat index of its first element."""

    first: int
    box: Box


def pieces_of_run(shape: Sequence[int], begin: int, end: int) -> Iterator[Piece]:
    """Split the elements with flat indices from `begin` to `end` of a row-major array into contiguous boxes.

    Example:
        >>> [piece.box for piece in pieces_of_run((4, 5), 3, 12)]
        [((0, 1), (3, 5)), ((1, 2), (0, 5)), ((2, 3), (0, 2))]
    """
    if not shape:
        if begin < end:
            yield Piece(0, ())
        return
    stride = math.prod(shape[1:])
    while begin < end:
        row, column = divmod(begin, stride)
        if column == 0 and end - begin >= stride:
            rows = (end - begin) // stride
            yield Piece(begin, ((row, row + rows), *whole_box(shape[1:])))
            begin += rows * stride
        else:
            stop = min(stride, column + end - begin)
            for first, box in pieces_of_run(shape[1:], column, stop):
                yield Piece(row * stride + first, ((row, row + 1), *box))
            begin += stop - column


def piece_values(elements: np.ndarray, first: int, box: Box) -> np.ndarray:
    """Return the elements that form a box, from number `first`."""
    shape = box_shape(box)
    return elements[first : first + math.prod(shape)].reshape(shape)


def assign_piece(
    values: np.ndarray,
    piece: Box,
    parts: Iterable[tuple[Box, np.ndarray]],
    assign: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    """Assign to each output its intersection with a piece. The parts are boxes and their outputs."""
    lowest = [start for start, _ in piece]
    for box, output in parts:
        shared = intersection(box, piece)
        if shared is not None:
            into = box_index(shifted(shared, [start for start, _ in box]))
            assign(output[into], values[box_index(shifted(shared, lowest))])
