"""Writing of trees in msgpack, as Flax does, with an index that other programs do not see."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import block_count, encode_checksums
from pytreesaver._io.files import write_fully
from pytreesaver._io.writing import WriteRanges, write_ranges
from pytreesaver._text import SINGLE_LEAF_NAME
from pytreesaver._tree.boxes import box_index
from pytreesaver._tree.kinds import (
    PYTHON_KINDS,
    Cells,
    LeafType,
    cell_bytes,
    grid_cells,
    joined_bytes,
    python_value,
    storage_dtype,
    stored_array,
)
from pytreesaver._tree.plain import decode_value
from pytreesaver._tree.restructure import node_parts
from pytreesaver.formats.indexed.data import WriteOptions, new_index, taker
from pytreesaver.formats.indexed.index import (
    DataFile,
    Index,
    chunk_counts,
    chunk_nbytes,
    encode_index,
    first_positions,
)
from pytreesaver.formats.msgpack.encoding import (
    CHUNKED,
    array_header,
    bin_header,
    chunk_boundaries,
    encode_value,
    map_header,
)
from pytreesaver.formats.msgpack.files import LENGTH_NBYTES, MAGIC, recognizes
from pytreesaver.formats.protocol import TreeContents
from pytreesaver.formats.single_file import write_single_file


def unsupported(contents: TreeContents) -> Mapping[str, str]:
    """Return the leaf of a tree that is no container. See `pytreesaver.formats.Format.unsupported`."""
    if not contents.names or contents.structure == 0:
        what = "tree of a single leaf" if contents.names else "empty tree"
        return {SINGLE_LEAF_NAME: f"a msgpack file of pytreesaver holds no {what}; put it in a dict"}
    problems: dict[str, str] = {}
    first = str(decode_value(node_parts(contents.structure).keys[0]))
    if len(first.encode("utf-8", "surrogatepass")) > _MAX_NAME_NBYTES:
        problems[first] = f"a msgpack file of pytreesaver begins with a key of at most {_MAX_NAME_NBYTES} bytes"
    columns = zip(contents.names, contents.types, contents.shapes, strict=True)
    values = {name: math.prod(shape) for name, leaf_type, shape in columns if leaf_type.kind in PYTHON_KINDS}
    if 16 * len(values) + sum(values.values()) > _MAX_VALUES_NBYTES:
        problems |= dict.fromkeys(values, f"msgpack holds {_MAX_VALUES_NBYTES} bytes of values of Python together")
    for name in contents.names:
        if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_NBYTES:
            problems[name] = f"a msgpack file of pytreesaver holds no names of more than {_MAX_NAME_NBYTES} bytes"
        elif CHUNKED in name.split("/"):
            problems[name] = f"{CHUNKED} marks arrays in pieces in files of Flax"
    return problems


def write(path: Path, contents: TreeContents, *, overwrite: bool, durable: bool, in_background: bool = False) -> None:
    """Write a tree. See `pytreesaver.formats.Format.write`."""
    write_single_file(
        path,
        lambda descriptor, synced: _write_tree(descriptor, contents, WriteOptions(synced, in_background)),
        what="a tree in msgpack",
        recognizes=recognizes,
        overwrite=overwrite,
        durable=durable,
    )


_MAX_NAME_NBYTES = 1 << 15
_MAX_VALUES_NBYTES = 1 << 31


class _Piece(NamedTuple):
    """A part of the file: some bytes of msgpack, or a chunk of a variable."""

    content: bytes = b""
    chunk: int | None = None


def _write_tree(descriptor: int, contents: TreeContents, options: WriteOptions) -> None:
    contents = contents._replace(cells=[_cells(*each) for each in _columns(contents)])
    index = new_index(contents)
    sizes = chunk_nbytes(index)
    first_chunk = first_positions(chunk_counts(index))
    raw = [_Piece(chunk=first_chunk[i]) for i, each in enumerate(contents.types) if each.kind in PYTHON_KINDS]
    raw_nbytes = sum(sizes[piece.chunk] for piece in raw if piece.chunk is not None)
    count, key, tree = _tree_pieces(contents, index, first_chunk, sizes)

    # The offsets in the index count from its end, so that they do not depend on its length.
    body = [*raw, *tree]
    starts = list(accumulate((_nbytes(piece, sizes) for piece in body), initial=0))
    offsets = {piece.chunk: start for piece, start in zip(body, starts, strict=False) if piece.chunk is not None}
    index.files = [DataFile("", starts[-1], 0, "0" * 16)]
    index.chunk_files = [0] * len(sizes)
    index.chunk_offsets = [offsets[i] for i in range(len(sizes))]
    index.checksums = "0" * 16 * sum(block_count(size) for size in sizes)
    text = encode_index(index)
    head = (
        map_header(count + 1)
        + key
        + bin_header(len(MAGIC) + LENGTH_NBYTES + len(text) + raw_nbytes)
        + MAGIC
        + len(text).to_bytes(LENGTH_NBYTES, "little")
    )

    pieces = [_Piece(head), _Piece(text), *body]
    nbytes = [_nbytes(piece, sizes) for piece in pieces]
    filesystem.reserve(descriptor, sum(nbytes))
    load = _loader(contents, pieces)
    blocks = write_ranges(
        descriptor, WriteRanges(list(accumulate(nbytes, initial=0))[:-1], nbytes, load), **options._asdict()
    )
    first_block = list(accumulate((block_count(size) for size in nbytes), initial=0))
    of_chunk = {piece.chunk: blocks[first_block[i] : first_block[i + 1]] for i, piece in enumerate(pieces)}
    index.checksums = encode_checksums(np.concatenate([of_chunk[i] for i in range(len(sizes))]))
    skeleton = xxhash.xxh3_64(b"".join(piece.content for piece in pieces if piece.content is not text))
    index.files = [DataFile("", starts[-1], 0, f"{skeleton.intdigest():016x}")]
    write_fully(descriptor, [encode_index(index)], len(head))


def _columns(contents: TreeContents) -> Any:
    return zip(contents.cells, contents.types, contents.shapes, strict=True)


def _cells(cells: Cells, leaf_type: LeafType, shape: tuple[int, ...]) -> Cells:
    """Return the cells that Flax expects: the whole array, or one of more than 1 GiB in pieces."""
    boundaries = None if leaf_type.kind in PYTHON_KINDS else chunk_boundaries(shape, storage_dtype(leaf_type).itemsize)
    if boundaries is None and cells.boundaries is None:
        return cells
    whole = _Whole(cells, leaf_type, shape)
    if boundaries is None:
        return Cells([whole])
    boxes = [tuple((a, a + n) for a, n in zip(*cell, strict=True)) for cell in grid_cells(boundaries)]
    shared = _Shared(whole, len(boxes))
    return Cells([_Part(shared, box) for box in boxes], boundaries)


class _Whole:
    """The array that consists of some cells, assembled when it is written."""

    def __init__(self, cells: Cells, leaf_type: LeafType, shape: tuple[int, ...]) -> None:
        self._cells, self._type, self._shape = cells, leaf_type, shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        joined = joined_bytes(self._cells, self._type, self._shape)
        return joined.view(storage_dtype(self._type)).reshape(self._shape)


class _Shared:
    """An array that is loaded for the first of its parts, and released after the last."""

    def __init__(self, whole: Any, parts: int) -> None:
        self._whole, self._parts = whole, parts
        self._loaded: np.ndarray | None = None
        self._lock = threading.Lock()

    def take(self) -> np.ndarray:
        """Return the array. Each part takes it once."""
        with self._lock:
            loaded = np.asarray(self._whole) if self._loaded is None else self._loaded
            self._parts -= 1
            self._loaded = loaded if self._parts else None
        return loaded


class _Part:
    """A box of an array."""

    def __init__(self, shared: _Shared, box: Any) -> None:
        self._shared, self._box = shared, box

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        part: np.ndarray = self._shared.take()[box_index(self._box)]
        return part


def _nbytes(piece: _Piece, sizes: Sequence[int]) -> int:
    return len(piece.content) if piece.chunk is None else sizes[piece.chunk]


def _loader(contents: TreeContents, pieces: Sequence[_Piece]) -> Callable[[int], np.ndarray]:
    types = [leaf_type for leaf_type, cells in zip(contents.types, contents.cells, strict=True) for _ in cells.arrays]
    arrays = [array for cells in contents.cells for array in cells.arrays]
    take = taker(arrays, [piece.chunk for piece in pieces if piece.chunk is not None])

    def load(i: int) -> np.ndarray:
        chunk = pieces[i].chunk
        if chunk is None:
            return np.frombuffer(pieces[i].content, np.uint8)
        return cell_bytes(take(chunk), types[chunk])

    return load


def _tree_pieces(
    contents: TreeContents, index: Index, first_chunk: Sequence[int], sizes: Sequence[int]
) -> tuple[int, bytes, list[_Piece]]:
    """Return the number of keys of the tree, the first of them, and the pieces after its header."""
    pieces: list[_Piece] = []

    def visit(node: Any) -> None:
        if node is None:
            pieces.append(_Piece(b"\xc0"))
            return
        if type(node) is int:
            pieces.extend(_leaf_pieces(contents, index, node, first_chunk[node], sizes))
            return
        for key, child in _children(node):
            pieces.append(_Piece(key))
            visit(child)

    def _children(node: Any) -> list[tuple[bytes, Any]]:
        parts = node_parts(node)
        keys = [encode_value(str(decode_value(key))) for key in parts.keys]
        pieces.append(_Piece(map_header(len(keys))))
        return list(zip(keys, parts.children, strict=True))

    visit(contents.structure)
    _, key, *rest = pieces  # after the header of the map
    return len(node_parts(contents.structure).keys), key.content, _joined_pieces([key, *rest])


def _joined_pieces(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Return pieces with those of msgpack that follow each other joined."""
    result: list[_Piece] = []
    content: list[bytes] = []
    for piece in pieces:
        if piece.chunk is None:
            content.append(piece.content)
            continue
        result += [_Piece(b"".join(content)), piece] if content else [piece]
        content = []
    return [*result, _Piece(b"".join(content))] if content else result


def _leaf_pieces(contents: TreeContents, index: Index, position: int, chunk: int, sizes: Sequence[int]) -> list[_Piece]:
    leaf_type, shape = contents.types[position], contents.shapes[position]
    if leaf_type.kind in PYTHON_KINDS:
        content = cell_bytes(contents.cells[position].arrays[0], leaf_type)
        return [_Piece(encode_value(python_value(stored_array(content, leaf_type, shape), leaf_type)))]
    dtype = storage_dtype(leaf_type).name
    boundaries = index.grids.get(str(position))
    if boundaries is None:
        header = array_header(shape, dtype, sizes[chunk], is_scalar=leaf_type.kind == "numpy_scalar")
        return [_Piece(header), _Piece(chunk=chunk)]
    itemsize = storage_dtype(leaf_type).itemsize
    count = len(contents.cells[position].arrays)
    header = map_header(3) + encode_value(CHUNKED) + b"\xc3" + encode_value("shape") + _numbered(list(shape))
    pieces = [_Piece(header + encode_value("chunks") + map_header(count))]
    for i in range(count):
        nbytes = sizes[chunk + i]
        key = encode_value(str(i)) + array_header([nbytes // itemsize], dtype, nbytes)
        pieces += [_Piece(key), _Piece(chunk=chunk + i)]
    return pieces


def _numbered(values: Sequence[int]) -> bytes:
    return map_header(len(values)) + b"".join(
        encode_value(str(i)) + encode_value(each) for i, each in enumerate(values)
    )
