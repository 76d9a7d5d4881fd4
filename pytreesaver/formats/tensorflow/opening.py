"""Opening of TensorFlow checkpoints.

Tensors of numbers are read through an index like that of the native format. The rest is loaded as a whole: strings,
numbers of the other byte order, and slices that form no grid.
"""

import functools
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.crc32c import Crc32cOfRanges, unmasked
from pytreesaver._text import quoted
from pytreesaver._tree.kinds import LeafType, storage_dtype
from pytreesaver._tree.plain import encode_value
from pytreesaver._tree.restructure import node_parts, structure_of_names
from pytreesaver.formats.description import Description
from pytreesaver.formats.foreign import foreign_record
from pytreesaver.formats.indexed.index import DataFile, Index
from pytreesaver.formats.indexed.reader import IndexedReader
from pytreesaver.formats.joined import JoinedContents, JoinedReader
from pytreesaver.formats.loaded import LoadedReader
from pytreesaver.formats.places import index_file
from pytreesaver.formats.protocol import CheckpointReader, Heading
from pytreesaver.formats.tensorflow.bundle import Bundle, Tensor, decode_bundle, grid_of
from pytreesaver.formats.tensorflow.dtypes import STRING, name_of_dtype
from pytreesaver.formats.tensorflow.files import data_file, read_index_file
from pytreesaver.formats.tensorflow.loading import DataFiles, load_tensor, strings_of
from pytreesaver.formats.tensorflow.messages import decode_object_graph
from pytreesaver.formats.tensorflow.names import OBJECT_GRAPH, names_of_keys
from pytreesaver.formats.tensorflow.strings import scalar_length
from pytreesaver.formats.tensorflow.table import DamagedTableError

NAME = "tensorflow"
VERSION = 2
_NO_BLOCKS = 1 << 62  # each tensor has one checksum
_MOST_PADDED_NBYTES = 16 << 20  # of an array of strings of one length


class _Variable(NamedTuple):
    """A variable: its name and type, its tensor, and how it is stored in it.

    `cells` are the boundaries of a grid and the order of the tensor's parts in it, if they can be read separately.
    `element` is the number of the string that the variable is in its tensor, or None for all of them.
    """

    name: str
    type: LeafType
    shape: tuple[int, ...]
    key: str
    tensor: Tensor
    cells: tuple[list[list[int]], Sequence[int]] | None
    element: int | None = None


def open_bundle(path: Path, *, with_keys: bool = False) -> CheckpointReader:
    """Open a checkpoint. See `pytreesaver.formats.Format.open`.

    With `with_keys`, variables of other programs are called by their keys, and the object graph is one of them.
    """
    while True:
        before = _version(path)
        bundle = decode_bundle(read_index_file(path), str(index_file(path)))
        reader = _open(path, bundle, with_keys)
        if _version(path) == before:
            return reader
        reader.close()  # another program has replaced it meanwhile


def _version(path: Path) -> Any:
    try:
        return filesystem.fingerprint(index_file(path))
    except OSError as error:
        if not filesystem.is_absence(error):
            raise
        return None


def read_heading(path: Path) -> Heading:
    """Return the heading of a checkpoint. See `pytreesaver.formats.Format.read_heading`."""
    content = read_index_file(path)
    index = index_file(path)
    bundle = decode_bundle(content, str(index))
    sizes = {index.name: len(content)} | {file.name: file.nbytes for file in _data_files(path, bundle)}
    if bundle.description is None:
        return Heading(_record_of(path), encode_value({}, classes=False), sizes)
    return Heading(bundle.description.record, bundle.description.metadata, sizes)


def _record_of(path: Path) -> Any:
    """Return the record of a checkpoint of TensorFlow, whose name ends in the step if it has one."""
    match = _STEP.search(path.name)
    return foreign_record(int(match[1])) if match else None


_STEP = re.compile(r"-([0-9]{1,18})\Z")


def _data_files(path: Path, bundle: Bundle) -> list[DataFile]:
    """Return the data files with their expected sizes. TensorFlow does not record these: then more bytes are fine."""
    count = bundle.header.num_shards
    files = []
    for shard in range(count):
        file = data_file(path, shard, count)
        if bundle.description is not None:
            nbytes = bundle.description.files.get(str(shard), (0, ""))[0]
        else:
            nbytes = bundle.nbytes[shard]
            with suppress(OSError):
                nbytes = max(nbytes, filesystem.file_sizes(file)[""])
        files.append(DataFile(file.name, nbytes, 0, ""))
    return files


def _open(path: Path, bundle: Bundle, with_keys: bool) -> CheckpointReader:
    files = _data_files(path, bundle)
    paths = [path.with_name(file.name) for file in files]
    data = DataFiles(paths, bundle.header.is_big_endian)
    try:
        others: dict[str, str] = {}
        if bundle.description is not None:
            variables, structure = _described_variables(path, bundle), bundle.description.structure
        else:
            variables, structure, others = _foreign_variables(path, bundle, data, with_keys)
        reader = _reader_of(path, bundle, files, variables, structure, data)
    except BaseException:
        data.close()
        raise
    named: Any = reader
    named.other_names = others
    return reader


def _reader_of(
    path: Path,
    bundle: Bundle,
    files: Sequence[DataFile],
    variables: Sequence[_Variable],
    structure: Any,
    data: DataFiles,
) -> CheckpointReader:
    stored = [variable for variable in variables if variable.cells is not None]
    loaded = [variable for variable in variables if variable.cells is None]
    described = bundle.description
    metadata = encode_value({}, classes=False) if described is None else described.metadata
    record = _record_of(path) if described is None else described.record
    same_as = {} if described is None else {int(key): earlier for key, earlier in described.same_as.items()}
    arrays = _indexed_reader(path, files, stored, structure)
    if not loaded:
        data.close()
        arrays.metadata, arrays.record, arrays.same_as = metadata, record, same_as
        return arrays
    whole = _loaded_reader(path, loaded, data)
    places = [("loaded" if variable.cells is None else "stored") for variable in variables]
    counts = {"loaded": 0, "stored": 0}
    inner = []
    for place in places:
        inner.append((place, counts[place]))
        counts[place] += 1
    contents = JoinedContents([each.name for each in variables], inner, arrays.structure, metadata, record, same_as)
    readers: dict[str, CheckpointReader] = {"stored": arrays, "loaded": whole}
    return JoinedReader(path, readers, contents, format_name=NAME, format_version=VERSION)


def _indexed_reader(
    path: Path, files: Sequence[DataFile], variables: Sequence[_Variable], structure: Any
) -> IndexedReader:
    types: dict[LeafType, int] = {}
    entries = [
        entry
        for variable in variables
        for entry in (
            [variable.tensor.slices[i][1] for i in variable.cells[1]]
            if variable.tensor.slices and variable.cells
            else (variable.tensor.entry,)
        )
    ]
    index = Index(
        names=[variable.name for variable in variables],
        types=[],
        type_of=[types.setdefault(variable.type, len(types)) for variable in variables],
        shapes=[variable.shape for variable in variables],
        grids={str(i): each.cells[0] for i, each in enumerate(variables) if each.cells and len(each.cells[1]) > 1},
        files=list(files),
        chunk_files=[entry.shard for entry in entries],
        chunk_offsets=[entry.offset for entry in entries],
        checksum_block_nbytes=_NO_BLOCKS,
        checksums="",
        structure=structure,
        metadata=None,
    )
    index.types = list(types)
    nonempty = [entry for entry in entries if entry.nbytes]
    expected, sizes = [unmasked(entry.checksum) for entry in nonempty], [entry.nbytes for entry in nonempty]
    return IndexedReader(
        path,
        index,
        [path.with_name(file.name) for file in files],
        format_name=NAME,
        format_version=VERSION,
        new_checks=functools.partial(Crc32cOfRanges, expected, sizes),
    )


def _loaded_reader(path: Path, variables: Sequence[_Variable], data: DataFiles) -> LoadedReader:
    types: dict[LeafType, int] = {}
    description = Description(
        names=[variable.name for variable in variables],
        types=[],
        type_of=[types.setdefault(variable.type, len(types)) for variable in variables],
        shapes=[variable.shape for variable in variables],
        keys=[str(i) for i in range(len(variables))],
        checksums=[""] * len(variables),
        structure=None,
        metadata=None,
    )
    description.types = list(types)

    def load(key: str, leaf_type: LeafType, shape: tuple[int, ...]) -> Any:
        variable = variables[int(key)]
        return load_tensor(data, variable.key, variable.tensor, leaf_type, shape, variable.element)

    return LoadedReader(path, description, load, check_file=lambda: None, close=data.close, format_name=NAME)


def _described_variables(path: Path, bundle: Bundle) -> list[_Variable]:
    """Return the variables of a checkpoint of pytreesaver."""
    described = bundle.description
    assert described is not None
    variables = []
    columns = zip(described.names, described.type_of, described.shapes, described.keys, strict=True)
    for name, type_of, shape, key in columns:
        tensor, leaf_type = bundle.tensors[key], described.types[type_of]
        cells = _cells(path, name, leaf_type, shape, tensor)
        variables.append(_Variable(name, leaf_type, tuple(shape), key, tensor, cells))
    return variables


def _cells(
    path: Path, name: str, leaf_type: LeafType, shape: Sequence[int], tensor: Tensor
) -> tuple[list[list[int]], Sequence[int]] | None:
    """Return the cells of a variable of pytreesaver; None if it consists of strings."""
    if tensor.dtype == STRING:
        return None
    cells = _cells_of(tensor)
    is_described = name_of_dtype(tensor.dtype) == leaf_type.dtype.removeprefix(">") and tensor.shape == tuple(shape)
    if not is_described:  # a dtype that TensorFlow lacks is stored as bytes
        as_bytes = (*shape, storage_dtype(leaf_type).itemsize)
        is_described = name_of_dtype(tensor.dtype) == "uint8" and tensor.shape == as_bytes
    if cells is None or not is_described:
        raise CorruptCheckpointError(
            f"{index_file(path)}: {quoted(name)}: expected a tensor of its description, found another", damaged=[name]
        )
    return cells[0][: len(shape)], cells[1]


def _foreign_variables(
    path: Path, bundle: Bundle, data: DataFiles, with_keys: bool
) -> tuple[list[_Variable], Any, dict[str, str]]:
    """Return the variables of a checkpoint of another program, their structure, and other names of them."""
    keys, graph = list(bundle.tensors), None
    if OBJECT_GRAPH in bundle.tensors and not with_keys:
        keys.remove(OBJECT_GRAPH)
        try:
            (message,) = strings_of(data, bundle.tensors[OBJECT_GRAPH])
            graph = decode_object_graph(message)
        except (DamagedTableError, ValueError) as error:
            raise CorruptCheckpointError(
                f"{path}: {OBJECT_GRAPH}: expected the object graph, found {error}", damaged=[OBJECT_GRAPH]
            ) from None
    names, others = names_of_keys(keys, graph)
    variables: list[_Variable] = []
    branches: list[Any] = []
    for name, key in zip(names, keys, strict=True):
        found, branch = _variables_of(name, key, bundle.tensors[key], data, len(variables))
        variables += found
        branches.append(branch)
    has_lists = len(variables) > len(names)

    def structure() -> Any:  # listing the variables of a checkpoint needs none
        whole = structure_of_names(names)
        return _with_branches(whole, branches) if has_lists else whole

    return variables, structure, others


def _variables_of(name: str, key: str, tensor: Tensor, data: DataFiles, first: int) -> tuple[list[_Variable], Any]:
    """Return the variables of a tensor of another program, and its part of the structure.

    Args:
        name: the name of the variable.
        key: its key.
        tensor: the tensor.
        data: the data files, from which arrays of strings are read: their longest string is a part of the type.
        first: the number of variables before it.
    """
    dtype = name_of_dtype(tensor.dtype)
    if dtype is not None:
        cells = None if data.is_big_endian else _cells_of(tensor)
        return [_Variable(name, _numpy_type(dtype), tensor.shape, key, tensor, cells)], first
    nbytes = tensor.entry.nbytes
    if tensor.dtype != STRING or not tensor.shape:
        length = nbytes if tensor.dtype != STRING else scalar_length(nbytes) or 0
        return [_Variable(name, LeafType("bytes", "uint8"), (length,), key, tensor, None)], first
    try:
        strings = strings_of(data, tensor)
    except DamagedTableError:  # reading the variable raises it again
        strings = []
    most = max(map(len, strings), default=0)
    padded = most * len(strings)
    if padded <= max(_MOST_PADDED_NBYTES, 16 * nbytes) and not any(string.endswith(b"\0") for string in strings):
        return [_Variable(name, LeafType("numpy", f"S{most}"), tensor.shape, key, tensor, None)], first
    # NumPy would drop the zeros at the end, or need much more memory: a list of bytes is exact.
    indices = list(np.ndindex(tensor.shape))
    variables = [
        _Variable(f"{name}/{'/'.join(map(str, at))}", LeafType("bytes", "uint8"), (len(string),), key, tensor, None, i)
        for i, (at, string) in enumerate(zip(indices, strings, strict=True))
    ]
    branch: Any = (np.arange(len(strings)) + first).reshape(tensor.shape).tolist()
    return variables, branch


_WHOLE: tuple[list[list[int]], Sequence[int]] = ([], [0])
"""The cells of a tensor that is not in slices."""


def _cells_of(tensor: Tensor) -> tuple[list[list[int]], Sequence[int]] | None:
    return grid_of(tensor) if tensor.slices else _WHOLE


@functools.cache
def _numpy_type(dtype: str) -> LeafType:
    return LeafType("numpy", dtype)


def _with_branches(node: Any, branches: Sequence[Any]) -> Any:
    """Return a structure with others in place of its leaves."""
    if type(node) is int:
        return branches[node]
    if node is None or not node:
        return node
    parts = node_parts(node)
    return parts.rebuild([_with_branches(child, branches) for child in parts.children])
