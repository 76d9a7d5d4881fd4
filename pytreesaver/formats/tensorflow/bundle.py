"""The index of a TensorFlow checkpoint: its tensors by their keys, checked. Pure functions."""

import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._text import quoted
from pytreesaver._tree.boxes import Box, box_shape, whole_box
from pytreesaver._tree.kinds import dtype_from_name
from pytreesaver.formats.description import Description, decode_description
from pytreesaver.formats.rules import is_shape
from pytreesaver.formats.tensorflow.messages import (
    STRING,
    Entry,
    Extent,
    Header,
    decode_entry,
    decode_header,
    name_of_dtype,
)
from pytreesaver.formats.tensorflow.table import DamagedTableError, read_table

DESCRIPTION_KEY = b"pytreesaver.description"
"""The name of the block with the description of the tree, if pytreesaver wrote the checkpoint."""


class Tensor(NamedTuple):
    """A tensor: its entry, and if it is in slices, their boxes and entries."""

    entry: Entry
    slices: Sequence[tuple[Box, Entry]] = ()

    @property
    def dtype(self) -> int:
        """Its dtype, as in `Entry`."""
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.entry.shape

    @property
    def parts(self) -> Sequence[tuple[Box, Entry]]:
        """The boxes of which it consists, with their entries."""
        return self.slices or ((whole_box(self.entry.shape), self.entry),)


class Bundle(NamedTuple):
    """The contents of an index.

    Attributes:
        header: the number of data files, and the byte order.
        tensors: the tensors by their keys.
        description: the description of the tree; None in a checkpoint of another program.
        nbytes: how many bytes of each data file are in use.
    """

    header: Header
    tensors: Mapping[str, Tensor]
    description: Description | None
    nbytes: Sequence[int]


def decode_bundle(content: bytes, where: str) -> Bundle:
    """Decode an index. Messages name its file, `where`.

    Raises:
        CorruptCheckpointError: if it is damaged.
        UnsupportedVersionError: if its description is of a newer version.
    """
    try:
        pairs, stored = read_table(content, DESCRIPTION_KEY)
        if not pairs or pairs[0][0]:
            raise DamagedTableError("a table without the header of a checkpoint")
        header = decode_header(pairs[0][1])
        entries = {key: decode_entry(value) for key, value in pairs[1:]}
        tensors = _tensors(entries)
        nbytes = _checked(tensors, header)
    except DamagedTableError as error:
        raise CorruptCheckpointError(f"{where}: expected the index of a TensorFlow checkpoint, found {error}") from None
    description = None if stored is None else decode_description(stored, where)
    if description is not None and sorted(description.keys) != sorted(tensors):
        raise CorruptCheckpointError(f"{where}: expected the tensors of its description, found others")
    return Bundle(header, tensors, description, nbytes)


def _tensors(entries: Mapping[bytes, Entry]) -> dict[str, Tensor]:
    """Return the tensors by their keys. Their slices are in entries whose keys begin with a NUL byte."""
    tensors: dict[str, Tensor] = {}
    of_slices = {key for key in entries if key.startswith(b"\0")}
    for key, entry in entries.items():
        if key.startswith(b"\0"):
            continue
        try:
            name = key.decode()
        except UnicodeDecodeError as error:
            raise DamagedTableError(f"a key that is not UTF-8: {key[:60]!r} ({error})") from None
        if not entry.slices:
            tensors[name] = Tensor(entry)
            continue
        parts = []
        for extents in entry.slices:
            box, part = _box_of(extents, entry.shape), entries.get(slice_key(key, extents))
            if box is None or part is None or part.slices or (part.dtype, part.shape) != (entry.dtype, box_shape(box)):
                raise DamagedTableError(f"{quoted(name)} without one of its slices, {_described(extents)}")
            of_slices.discard(slice_key(key, extents))
            parts.append((box, part))
        tensors[name] = Tensor(entry, parts)
    if of_slices:
        raise DamagedTableError(f"a slice of no tensor, {min(of_slices)[:60]!r}")
    return tensors


def _box_of(extents: Sequence[Extent], shape: Sequence[int]) -> Box | None:
    """Return the box of a slice, or None if it is not within the shape."""
    if len(extents) != len(shape):
        return None
    box = tuple(
        (extent.start, size if extent.length is None else extent.start + extent.length)
        for extent, size in zip(extents, shape, strict=True)
    )
    inside = all(0 <= low <= high <= size for (low, high), size in zip(box, shape, strict=True))
    return box if inside else None


def _described(extents: Sequence[Extent]) -> str:
    return ":".join("-" if each.length is None else f"{each.start},{each.length}" for each in extents)


def _checked(tensors: Mapping[str, Tensor], header: Header) -> list[int]:
    """Return how many bytes of each data file are in use. Raises a DamagedTableError for an impossible entry."""
    if header.num_shards > MOST_SHARDS:
        raise DamagedTableError(f"a header with {header.num_shards} data files")
    used = [0] * header.num_shards
    for name, tensor in tensors.items():
        for entry in [part for _, part in tensor.slices] or (tensor.entry,):
            _, shape, shard, offset, nbytes, _, _ = entry
            least, most = _sizes(entry.dtype, shape)
            if least < 0:
                raise DamagedTableError(f"{quoted(name)} of the impossible shape {list(shape[:9])}")
            end = offset + nbytes
            if not 0 <= shard < header.num_shards or offset < 0 or nbytes < 0 or end >= 1 << 63:
                raise DamagedTableError(f"{quoted(name)} at the impossible place {shard}:{offset}+{nbytes}")
            if not least <= nbytes <= most:
                raise DamagedTableError(f"{quoted(name)} of the shape {list(shape[:9])} in {nbytes} bytes")
            used[shard] = max(used[shard], end)
    return used


MOST_SHARDS = 10_000
"""The maximum number of data files of a checkpoint."""


@functools.lru_cache(maxsize=4096)
def _sizes(dtype: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many bytes an entry has at least and at most; -1 for an impossible shape."""
    name = name_of_dtype(dtype)
    itemsize = 1 if name is None else dtype_from_name(name).itemsize
    if not is_shape(shape, itemsize):
        return -1, -1
    nbytes = math.prod(shape) * itemsize
    if name is not None:
        return nbytes, nbytes
    return nbytes + 4 if dtype == STRING else 0, 1 << 63


def grid_of(tensor: Tensor) -> tuple[list[list[int]], list[int]] | None:
    """Return the boundaries of the grid that the parts of a tensor form, and their positions in the order of its cells.

    Return None if they form none.

    Example:
        >>> entry = Entry(1, (4, 3), 0, 0, 0, 0)
        >>> grid_of(Tensor(entry, [(((2, 4), (0, 3)), entry), (((0, 2), (0, 3)), entry)]))
        ([[0, 2, 4], [0, 3]], [1, 0])
    """
    boxes = [box for box, _ in tensor.slices]
    if not boxes or boxes == [whole_box(tensor.shape)]:
        return [[0, length] for length in tensor.shape], [0]
    boundaries = [sorted({bound for box in boxes for bound in box[axis]}) for axis in range(len(tensor.shape))]
    spans = [(axis[0], axis[-1]) for axis in boundaries]
    if tuple(spans) != whole_box(tensor.shape) or math.prod(len(axis) - 1 for axis in boundaries) != len(boxes):
        return None
    at = {box: position for position, box in enumerate(boxes)}
    order = [at.get(tuple(cell)) for cell in itertools.product(*map(itertools.pairwise, boundaries))]
    return None if None in order else (boundaries, [position for position in order if position is not None])


def covers(boxes: Sequence[Box], shape: Sequence[int]) -> bool:
    """Return whether boxes that may overlap cover an array of a shape.

    Raises:
        DamagedTableError: if they are too many to tell.

    Example:
        >>> covers([((0, 2), (0, 3)), ((1, 4), (0, 3))], (4, 3)), covers([((0, 2), (0, 3))], (4, 3))
        (True, False)
    """
    filled = {box for box in boxes if 0 not in box_shape(box)}
    size = math.prod(shape)
    if sum(math.prod(box_shape(box)) for box in filled) < size:
        return False
    if size == 0 or whole_box(shape) in filled:
        return True
    boundaries = [sorted({0, length, *(bound for box in filled for bound in box[i])}) for i, length in enumerate(shape)]
    cells = [len(axis) - 1 for axis in boundaries]
    if math.prod(cells) > _MOST_CELLS or math.prod(cells) * len(filled) > 1000 * _MOST_CELLS:
        raise DamagedTableError(f"{len(filled)} slices, which are too many that form no grid")
    numbers = [{bound: number for number, bound in enumerate(axis)} for axis in boundaries]
    covered = np.zeros(cells, bool)
    for box in filled:
        at = (slice(of_axis[low], of_axis[high]) for of_axis, (low, high) in zip(numbers, box, strict=True))
        covered[tuple(at)] = True
    return bool(covered.all())


_MOST_CELLS = 1_000_000


# The keys of slices: the name and the extents, so encoded that their order is that of the bytes. After
# tensorflow/core/lib/strings/ordered_code.cc and tensorflow/core/util/saved_tensor_slice_util.cc.

_HEADERS = ("", "80", "c0", "e0", "f0", "f8", "fc", "fe", "ff", "ff80", "ffc0")


def slice_key(name: bytes, extents: Sequence[Extent]) -> bytes:
    """Return the key of a slice.

    Example:
        >>> slice_key(b"part", [Extent(4, 3), Extent(0, None)])
        b'\\x00part\\x00\\x01\\x01\\x02\\x84\\x83\\x80\\x7f'
    """
    extended = [(each.start, -1 if each.length is None else each.length) for each in extents]
    numbers = b"".join(_signed(start) + _signed(length) for start, length in extended)
    return _unsigned(0) + _text(name) + _unsigned(len(extents)) + numbers


def _unsigned(number: int) -> bytes:
    content = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes([len(content)]) + content


def _text(text: bytes) -> bytes:
    return re.sub(b"[\0\xff]", lambda found: found[0] + bytes([found[0][0] ^ 0xFF]), text) + b"\0\1"


def _signed(number: int) -> bytes:
    magnitude = ~number if number < 0 else number
    if magnitude < 64:
        return bytes([0x80 ^ (number & 0xFF)])
    nbytes = magnitude.bit_length() // 7 + 1
    header = bytes.fromhex(_HEADERS[nbytes]).ljust(nbytes, b"\0")
    content = number.to_bytes(nbytes, "big", signed=True)
    return bytes(a ^ b for a, b in zip(content, header, strict=True))
