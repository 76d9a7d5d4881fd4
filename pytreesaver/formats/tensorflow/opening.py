"""Opening of TensorFlow checkpoints.

Tensors of numbers are read through an index like that of the native format. The rest is loaded as a whole: strings,
numbers of the other byte order, and slices that form no grid.
"""

import functools
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.crc32c import Crc32cOfRanges, unmasked
from pytreesaver._text import duplicates, quoted
from pytreesaver._tree.kinds import LeafType, is_stored_as_bytes, storage_dtype
from pytreesaver._tree.plain import encode_value
from pytreesaver._tree.restructure import node_parts, structure_of_names
from pytreesaver.formats.description import Description
from pytreesaver.formats.foreign import foreign_record
from pytreesaver.formats.indexed.index import DataFile
from pytreesaver.formats.indexed.mixed import MixedVariable, mixed_reader
from pytreesaver.formats.places import index_file
from pytreesaver.formats.protocol import CheckpointReader, Heading, open_unchanged
from pytreesaver.formats.tensorflow.bundle import Bundle, Tensor, decode_bundle, grid_of
from pytreesaver.formats.tensorflow.files import data_file, read_index_file
from pytreesaver.formats.tensorflow.loading import DataFiles, load_tensor, strings_of, unusable
from pytreesaver.formats.tensorflow.messages import STRING, Entry, decode_object_graph, name_of_dtype
from pytreesaver.formats.tensorflow.names import OBJECT_GRAPH, names_of_keys
from pytreesaver.formats.tensorflow.strings import scalar_length
from pytreesaver.formats.tensorflow.table import DamagedTableError

NAME = "tensorflow"
VERSION = 2
_MOST_PADDED_NBYTES = 16 << 20  # of an array of strings of one length


def open_bundle(path: Path, *, with_keys: bool = False) -> CheckpointReader:
    """Open a checkpoint. See `pytreesaver.formats.Format.open`.

    With `with_keys`, variables of other programs are called by their keys, and the object graph is one of them.
    """
    return open_unchanged(
        lambda: _version(path),
        lambda: _open(path, decode_bundle(read_index_file(path), str(index_file(path))), with_keys),
    )


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
            _refuse_beyond(path, bundle, bundle.description, shard, nbytes)
        else:
            nbytes = bundle.nbytes[shard]
            with suppress(OSError):
                nbytes = max(nbytes, filesystem.file_sizes(file)[""])
        files.append(DataFile(file.name, nbytes, 0, ""))
    return files


def _refuse_beyond(path: Path, bundle: Bundle, description: Description, shard: int, nbytes: int) -> None:
    """Raise a CorruptCheckpointError if tensors end after the `nbytes` bytes that their data file has."""
    if bundle.nbytes[shard] <= nbytes:
        return
    names = dict(zip(description.keys, description.names, strict=True))
    damaged = [
        names.get(key, key)
        for key, tensor in bundle.tensors.items()
        for entry in [part for _, part in tensor.slices] or [tensor.entry]
        if entry.shard == shard and entry.offset + entry.nbytes > nbytes
    ]
    raise CorruptCheckpointError(
        f"{path}: expected at least {bundle.nbytes[shard]} bytes in data file {shard}, found {nbytes}", damaged=damaged
    )


def _open(path: Path, bundle: Bundle, with_keys: bool) -> CheckpointReader:
    files = _data_files(path, bundle)
    data = DataFiles(path, [path.with_name(file.name) for file in files], bundle.header.is_big_endian)
    described = bundle.description
    entries: list[Entry] = []
    others: dict[str, str] = {}
    try:
        if described is not None:
            variables, structure = _described_variables(path, bundle, data, entries), described.structure
        else:
            variables, structure, others = _foreign_variables(path, bundle, data, entries, with_keys)
        for shard in {entry.shard for tensor in bundle.tensors.values() for entry in _loaded_entries(tensor, data)}:
            data.open(shard)
        nonempty = [entry for entry in entries if entry.nbytes]
        expected, sizes = [unmasked(entry.checksum) for entry in nonempty], [entry.nbytes for entry in nonempty]
        reader: Any = mixed_reader(
            path,
            files,
            variables,
            structure=structure,
            metadata=None if described is None else described.metadata,
            record=_record_of(path) if described is None else described.record,
            same_as=None if described is None else {int(key): each for key, each in described.same_as.items()},
            new_checks=functools.partial(Crc32cOfRanges, expected, sizes),
            close=data.close,
            format_name=NAME,
            format_version=VERSION,
        )
    except BaseException:
        data.close()
        raise
    reader.other_names = others
    reader.models = None if described is None else described.models
    dtypes = {tensor.dtype for tensor in bundle.tensors.values()} - {STRING}
    unreadable = {dtype for dtype in dtypes if name_of_dtype(dtype) is None}
    reader.unreadable = {
        others.get(key, key): unusable(tensor.dtype)
        for key, tensor in bundle.tensors.items()
        if tensor.dtype in unreadable
    }
    return cast(CheckpointReader, reader)


def _loaded_entries(tensor: Tensor, data: DataFiles) -> Sequence[Entry]:
    """Return the entries of a tensor that may be loaded as a whole."""
    if tensor.dtype == STRING or data.is_big_endian or tensor.slices:
        return [entry for _, entry in tensor.slices] or [tensor.entry]
    return []


def _variable(
    name: str, leaf_type: LeafType, shape: tuple[int, ...], tensor: Tensor, entries: list[Entry]
) -> MixedVariable | None:
    """Return the variable of a tensor whose parts can be read separately, and append these to `entries`."""
    if not tensor.slices:
        entries.append(tensor.entry)
        return MixedVariable(name, leaf_type, shape, ((tensor.entry.shard, tensor.entry.offset),))
    grid = grid_of(tensor)
    if grid is None:
        return None
    boundaries, order = grid
    parts = [tensor.slices[i][1] for i in order]
    entries += parts
    chunks = [(entry.shard, entry.offset) for entry in parts]
    # What TensorFlow has no dtype for has another axis there.
    return MixedVariable(name, leaf_type, shape, chunks, boundaries[: len(shape)] if len(order) > 1 else None)


def _described_variables(path: Path, bundle: Bundle, data: DataFiles, entries: list[Entry]) -> list[MixedVariable]:
    """Return the variables of a checkpoint of pytreesaver."""
    described = bundle.description
    assert described is not None
    variables = []
    columns = zip(described.names, described.type_of, described.shapes, described.keys, strict=True)
    for name, type_of, shape, key in columns:
        tensor, leaf_type = bundle.tensors[key], described.types[type_of]
        if tensor.dtype == STRING and _holds_strings(tensor, leaf_type, shape):
            load = functools.partial(load_tensor, data, key, tensor, leaf_type, shape, None)
            variables.append(MixedVariable(name, leaf_type, shape, load=load))
            continue
        variable = _variable(name, leaf_type, shape, tensor, entries)
        if variable is None or not _is_described(tensor, leaf_type, shape):
            raise CorruptCheckpointError(
                f"{index_file(path)}: {quoted(name)}: expected a tensor of its description, found another",
                damaged=[name],
            )
        variables.append(variable)
    return variables


def _holds_strings(tensor: Tensor, leaf_type: LeafType, shape: tuple[int, ...]) -> bool:
    if is_stored_as_bytes(leaf_type):
        return tensor.shape == ()
    return storage_dtype(leaf_type).kind in "SU" and tensor.shape == shape


def _is_described(tensor: Tensor, leaf_type: LeafType, shape: tuple[int, ...]) -> bool:
    if name_of_dtype(tensor.dtype) == leaf_type.dtype.removeprefix(">") and tensor.shape == shape:
        return True
    # A dtype that TensorFlow lacks is stored as bytes.
    as_bytes = (*shape, storage_dtype(leaf_type).itemsize)
    return name_of_dtype(tensor.dtype) == "uint8" and tensor.shape == as_bytes


def _foreign_variables(
    path: Path, bundle: Bundle, data: DataFiles, entries: list[Entry], with_keys: bool
) -> tuple[list[MixedVariable], Any, dict[str, str]]:
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
    while True:
        entries.clear()
        variables: list[MixedVariable] = []
        branches: list[Any] = []
        for name, key in zip(names, keys, strict=True):
            found, branch = _variables_of(name, key, bundle.tensors[key], data, entries, len(variables))
            variables += found
            branches.append(branch)
        lists = [i for i, branch in enumerate(branches) if type(branch) is not int]
        if not lists or not duplicates([variable.name for variable in variables]):
            break
        for i in lists:  # one of them is beside a tensor with the name of one of its strings
            names[i] += "[]"

    def structure() -> Any:  # listing the variables of a checkpoint needs none
        whole = structure_of_names(names)
        return _with_branches(whole, branches) if lists else whole

    return variables, structure, others


def _variables_of(
    name: str, key: str, tensor: Tensor, data: DataFiles, entries: list[Entry], first: int
) -> tuple[list[MixedVariable], Any]:
    """Return the variables of a tensor of another program, and its part of the structure.

    Args:
        name: the name of the variable.
        key: its key.
        tensor: the tensor.
        data: the data files, from which arrays of strings are read: their longest string is a part of the type.
        entries: what is read separately is appended here.
        first: the number of variables before it.
    """

    def loaded(name: str, leaf_type: LeafType, shape: tuple[int, ...], element: Any = None) -> MixedVariable:
        load = functools.partial(load_tensor, data, key, tensor, leaf_type, shape, element)
        return MixedVariable(name, leaf_type, shape, load=load)

    dtype = name_of_dtype(tensor.dtype)
    if dtype is not None:
        leaf_type = _numpy_type(dtype)
        variable = None if data.is_big_endian else _variable(name, leaf_type, tensor.shape, tensor, entries)
        return [variable or loaded(name, leaf_type, tensor.shape)], first
    nbytes = tensor.entry.nbytes
    if tensor.dtype != STRING or not tensor.shape:
        length = nbytes if tensor.dtype != STRING else scalar_length(nbytes) or 0
        return [loaded(name, _BYTES, (length,))], first
    try:
        strings = strings_of(data, tensor)
    except DamagedTableError:
        # Reading the variable raises it again. Its strings have an unknown length, but not none: then it has no bytes.
        return [loaded(name, LeafType("numpy", "S1"), tensor.shape)], first
    most = max(map(len, strings), default=0)
    padded = most * len(strings)
    if padded <= max(_MOST_PADDED_NBYTES, 16 * nbytes) and not any(string.endswith(b"\0") for string in strings):
        return [loaded(name, LeafType("numpy", f"S{most}"), tensor.shape)], first
    # NumPy would drop the zeros at the end, or need much more memory: a list of bytes is exact.
    indices = np.ndindex(tensor.shape)
    all_strings = functools.cache(lambda: strings_of(data, tensor))  # decoded once for all of them
    variables = [
        loaded(f"{name}/{'/'.join(map(str, at))}", _BYTES, (len(string),), (i, all_strings))
        for i, (at, string) in enumerate(zip(indices, strings, strict=True))
    ]
    branch: Any = (np.arange(len(strings)) + first).reshape(tensor.shape).tolist()
    return variables, branch


_BYTES = LeafType("bytes", "uint8")


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
