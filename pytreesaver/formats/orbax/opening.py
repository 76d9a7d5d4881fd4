"""Opening of the trees in Orbax checkpoints: their variables, with open arrays or values, and their metadata."""

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pytreesaver._errors import CorruptCheckpointError, StructureWarning
from pytreesaver._io import filesystem
from pytreesaver._text import quoted
from pytreesaver._tree.kinds import LeafType, NotPlainError, cell_bytes, dtype_name, stored_array
from pytreesaver._tree.plain import MAX_DEPTH, encode_value
from pytreesaver.formats.foreign import foreign_record
from pytreesaver.formats.orbax.aggregate import decode_aggregate
from pytreesaver.formats.orbax.arrays import ArrayStore, as_os_error
from pytreesaver.formats.orbax.layout import (
    AGGREGATE,
    ARRAY_METADATA,
    ROOT_FILE,
    SIDECAR,
    STRINGS,
    TREE_FILE,
    Layout,
    read_bytes,
    read_json,
    step_of,
)
from pytreesaver.formats.orbax.sidecar import MARKER
from pytreesaver.formats.orbax.tree import (
    UNKNOWN,
    OrbaxLeaf,
    TreeMetadata,
    leaves_of_aggregate,
    leaves_of_keys,
    leaves_of_metadata,
)

_SCALARS = {"bool": "bool", "int64": "int", "float64": "float"}
_MAX_NBYTES = 2**63


class OrbaxVariable(NamedTuple):
    """A variable: its type, the shape of its stored array, and its value or the open array that holds it."""

    type: LeafType
    shape: tuple[int, ...]
    value: np.ndarray | None
    array: Any


def damage_of(path: Path, failed: Mapping[str, Exception], count: int) -> Exception:
    """Return the error for arrays that TensorStore could not read."""
    for error in failed.values():
        refused = as_os_error(error, path)
        if refused is not None:
            return refused
    reasons = dict.fromkeys(f"{path}: {quoted(name)}: {_first_line(error)}" for name, error in failed.items())
    lines = [*list(reasons)[:5], f"{path}: {len(failed)} of {count} variables damaged:"]
    return CorruptCheckpointError("\n".join([*lines, *(f"  {quoted(name)}" for name in failed)]), damaged=list(failed))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(" [tensorstore_spec=")[0][:600]


def read_tree(directory: Path) -> tuple[list[OrbaxLeaf], list[Any], list[OrbaxVariable]]:
    """Return the leaves of a tree, the places of its empty containers, and its variables.

    Raises:
        CorruptCheckpointError: if the metadata is damaged, or an array cannot be opened.
    """
    entries = set(filesystem.list_directory(directory))
    aggregate: Any = None
    if AGGREGATE in entries and filesystem.is_regular_file(directory / AGGREGATE):
        aggregate = decode_aggregate(read_bytes(directory / AGGREGATE), directory / AGGREGATE)
    zarr3: bool | None = None
    is_complete = False
    empty: list[Any] = []
    if TREE_FILE in entries:
        metadata = read_json(directory / TREE_FILE, TreeMetadata)
        if metadata.custom_metadata == MARKER:
            raise CorruptCheckpointError(f"{directory / SIDECAR}: expected the description of the tree, found no file")
        zarr3, is_complete = metadata.use_zarr3, metadata.store_array_data_equal_to_fill_value
        leaves, empty = leaves_of_metadata(metadata)
        if [leaf.name for leaf in leaves] == [AGGREGATE] and AGGREGATE in entries:  # of `ArraySave`
            leaves = [leaves[0]._replace(path=())]
        if any(len(leaf.path) > MAX_DEPTH for leaf in leaves):
            raise CorruptCheckpointError(f"{directory / TREE_FILE}: expected at most {MAX_DEPTH} levels")
        if aggregate is not None:
            inline = {leaf.name: leaf for leaf in leaves_of_aggregate(aggregate)[0] if leaf.value is not None}
            leaves = [leaf._replace(value=inline[leaf.name].value) if leaf.name in inline else leaf for leaf in leaves]
    elif aggregate is not None:
        leaves, empty = leaves_of_aggregate(aggregate)
    elif entries & {ROOT_FILE, ARRAY_METADATA}:
        raise CorruptCheckpointError(f"{directory / TREE_FILE}: expected the metadata of a tree, found no file")
    else:
        leaves = leaves_of_keys(ArrayStore(directory, zarr3=None, is_complete=False).keys())
    strings: dict[str, str] = {}
    if STRINGS in entries:
        strings = read_json(directory / STRINGS, dict[str, str])
    leaves = [_with_string(leaf, strings, directory) for leaf in leaves]
    stored = [leaf for leaf in leaves if leaf.value is None]
    arrays: dict[str, Any] = {}
    if stored:
        store = ArrayStore(directory, zarr3=zarr3, is_complete=is_complete)
        _refuse_escapes(stored, directory, is_ocdbt=store.is_ocdbt)
        arrays = dict(zip((leaf.key for leaf in stored), store.open([leaf.key for leaf in stored]), strict=True))
    failed = {leaf.name: arrays[leaf.key] for leaf in stored if isinstance(arrays[leaf.key], Exception)}
    if failed:
        raise damage_of(directory, failed, len(leaves))
    impls = _key_impls(directory / ARRAY_METADATA) if ARRAY_METADATA in entries else {}
    variables = []
    for leaf in leaves:
        try:
            variables.append(_variable(leaf, arrays.get(leaf.key), impls.get(leaf.key)))
        except NotPlainError as error:
            raise CorruptCheckpointError(f"{directory}: {quoted(leaf.name)}: {error}", damaged=[leaf.name]) from None
    return leaves, empty, variables


def _with_string(leaf: OrbaxLeaf, strings: Mapping[str, str], directory: Path) -> OrbaxLeaf:
    if leaf.value_type != "string" or leaf.value is not None:
        return leaf
    if leaf.key not in strings:
        raise CorruptCheckpointError(
            f"{directory / STRINGS}: expected the str {quoted(leaf.name)}, found none", damaged=[leaf.name]
        )
    return leaf._replace(value=strings[leaf.key])


def _refuse_escapes(leaves: Iterable[OrbaxLeaf], directory: Path, *, is_ocdbt: bool) -> None:
    """Raise a CorruptCheckpointError if an array would be read from outside of the directory."""
    for leaf in leaves:
        if not is_ocdbt and ({"..", "."} & set(leaf.key.split("/")) or leaf.key.startswith("/") or "\0" in leaf.key):
            raise CorruptCheckpointError(f"{directory}: expected arrays inside it, found {leaf.key[:60]!r}")


class _ArrayMetadata(msgspec.Struct):
    param_name: str
    ext_metadata: dict[str, Any] | None = None


class _ArrayEntry(msgspec.Struct):
    array_metadata: _ArrayMetadata


class _ArrayMetadatas(msgspec.Struct):
    array_metadatas: list[_ArrayEntry]


def _key_impls(directory: Path) -> dict[str, str]:
    """Return the implementations of the typed PRNG keys, by the keys of their arrays."""
    impls = {}
    for name in sorted(filesystem.list_directory(directory)):
        for entry in read_json(directory / name, _ArrayMetadatas).array_metadatas:
            impl = (entry.array_metadata.ext_metadata or {}).get("random_key_impl")
            if isinstance(impl, str) and impl:
                impls[entry.array_metadata.param_name] = impl
    return impls


def _variable(leaf: OrbaxLeaf, array: Any, key_impl: str | None) -> OrbaxVariable:
    if leaf.value is not None:
        return _inline(leaf.value)
    shape = tuple(int(length) for length in array.shape)
    dtype = np.dtype(array.dtype.numpy_dtype)
    if math.prod(max(length, 1) for length in shape) * dtype.itemsize >= _MAX_NBYTES:
        raise NotPlainError(f"expected fewer than 2**63 bytes, found shape {list(shape)}")
    name = dtype_name(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if key_impl and name == "uint32" and shape:
        return OrbaxVariable(LeafType("key", name, key_impl=key_impl), shape, None, array)
    if leaf.value_type == "scalar" and not shape:
        kind: Any = _SCALARS.get(name, "numpy_scalar")
        return OrbaxVariable(LeafType(kind, name), shape, None, array)
    is_numpy = leaf.value_type in ("np.ndarray", "scalar") or dtype.kind in "USmM"
    is_numpy = is_numpy or (leaf.value_type == UNKNOWN and dtype.itemsize == 8)  # JAX may have no such arrays
    return OrbaxVariable(LeafType("numpy" if is_numpy else "jax", name), shape, None, array)


def as_random_key(
    structure: Any, variables: list[OrbaxVariable], noted: Mapping[str, bool], where: Path
) -> tuple[Any, list[OrbaxVariable]]:
    """Return the structure and the variables of an item of Orbax that is a random key of JAX or NumPy.

    Orbax takes only typed keys of the default implementation of `jax.random`, and does not note which that is. Where
    the default of this process has keys of another shape, the words of the key are an array, with a warning.

    Args:
        structure: the structure of its tree, whose sequences are lists.
        variables: the variables of its tree.
        noted: what Orbax noted of it.
        where: the item, for messages.

    Raises:
        CorruptCheckpointError: if it is no key.
    """
    if noted.get("legacy") and type(structure) is list:
        return {"$tuple": structure}, variables
    if not noted.get("typed"):
        return structure, variables
    found = [f"{each.type.dtype}{list(each.shape)}" for each in variables]
    if len(variables) != 1 or variables[0].type.dtype != "uint32" or not variables[0].shape:
        raise CorruptCheckpointError(f"{where}: expected the words of a random key in uint32, found {', '.join(found)}")
    import jax

    from pytreesaver._tree.leaves import key_data_shape

    impl = str(jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]
    shape = key_data_shape(impl)
    if variables[0].shape[-len(shape) :] == shape:
        return structure, [variables[0]._replace(type=LeafType("key", "uint32", key_impl=impl))]
    message = (
        f"{where}: the random key is read as an array of shape {list(variables[0].shape)}: Orbax does not store its "
        f"implementation, and the default, {impl}, has keys of another shape; jax.random.wrap_key_data(array, "
        "impl=...) makes it a key"
    )
    warnings.warn(message, StructureWarning, stacklevel=5)
    return structure, variables


def _inline(value: Any) -> OrbaxVariable:
    """Return the variable of a value in the metadata."""
    python = {bool: "bool", int: "int64", float: "float64", complex: "complex128", str: "uint8", bytes: "uint8"}
    dtype = python.get(type(value))
    if dtype is None:
        array = np.asarray(value)
        is_scalar = isinstance(value, np.generic)
        return OrbaxVariable(
            LeafType("numpy_scalar" if is_scalar else "numpy", dtype_name(array.dtype)), array.shape, array, None
        )
    kind: Any = type(value).__name__
    if kind == "int" and not -(2**63) <= value < 2**63:
        raise NotPlainError("expected an int of 64 bits")
    leaf_type = LeafType(kind, dtype)
    content = cell_bytes(value, leaf_type)
    shape = (content.size,) if kind in ("str", "bytes") else ()
    return OrbaxVariable(leaf_type, shape, stored_array(content, leaf_type, shape), None)


def metadata_of(path: Path, layout: Layout) -> Any:
    """Return the JSON items of a checkpoint, and the user's metadata, as plain JSON data."""
    metadata = {name: read_json(file) for name, file in layout.json_files.items() if name != "metrics"}
    metrics = _metrics_of(layout)
    if isinstance(metrics, dict):
        metrics = {name: value for name, value in metrics.items() if not _is_number(value)}
    if metrics:
        metadata["metrics"] = metrics
    custom = layout.root.get("custom_metadata")
    if custom:
        metadata["custom_metadata"] = custom
    try:
        return encode_value(metadata, classes=False)
    except NotPlainError as error:
        raise CorruptCheckpointError(f"{path}: metadata: {error}") from None


def _metrics_of(layout: Layout) -> Any:
    return read_json(layout.json_files["metrics"]) if "metrics" in layout.json_files else layout.root.get("metrics")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def record_of(path: Path, layout: Layout) -> Any:
    """Return the step, time and metrics of a checkpoint, as plain JSON data."""
    metrics = _metrics_of(layout)
    try:
        numbers = {
            name: float(value)
            for name, value in (metrics.items() if isinstance(metrics, dict) else ())
            if _is_number(value)
        }
    except OverflowError:
        raise CorruptCheckpointError(f"{path}: metrics: expected numbers of 64 bits") from None
    return foreign_record(step_of(path), layout.time, numbers)
