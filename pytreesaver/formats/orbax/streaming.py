"""Saving through orbax-checkpoint with few arrays in memory at a time.

Orbax copies all arrays of a tree before it writes them. Here it gets leaves that load their arrays when they are
written, and type handlers for them, which Orbax provides for. What its own handler of JAX arrays notes besides is
written afterwards, so that Orbax restores them as JAX arrays.
"""

import asyncio
import base64
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import future, type_handlers

from pytreesaver._io import filesystem
from pytreesaver._io.files import write_fully
from pytreesaver.formats.orbax.layout import ARRAY_METADATA, ROOT_FILE, read_json

_WINDOW_NBYTES = 32 << 20
"""The maximum size of arrays that are written at a time, unless one of them is larger."""


class LazyArray:
    """An array that is loaded when it is written."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], load: Callable[[], np.ndarray]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.load = load

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.size * self.dtype.itemsize


class LazyNumPyArray(LazyArray):
    """One that Orbax restores as a NumPy array."""


class LazyJAXArray(LazyArray):
    """One that Orbax restores as a `jax.Array`, or as a PRNG key array of the implementation `key_impl`."""

    key_impl: str | None = None


class _Handler(type_handlers.NumpyHandler):  # type: ignore[misc, unused-ignore]
    def __init__(self, restored_as: str) -> None:
        super().__init__()
        self._restored_as = restored_as

    def typestr(self) -> str:
        return self._restored_as

    async def serialize(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, values: Sequence[LazyArray], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[future.Future]:
        """Write the arrays in the background, in groups."""
        return [future.CommitFutureAwaitingContractedSignals(self._write(values, infos, args), name="pytreesaver")]

    async def _write(self, values: Sequence[LazyArray], infos: Sequence[Any], args: Sequence[Any] | None) -> None:
        given = args or [ocp.SaveArgs()] * len(values)
        begin = 0
        while begin < len(values):
            end, nbytes = begin, 0
            while end < len(values) and (end == begin or nbytes + values[end].nbytes <= _WINDOW_NBYTES):
                nbytes += values[end].nbytes
                end += 1
            loaded = [value.load() for value in values[begin:end]]
            for written in await super().serialize(loaded, infos[begin:end], given[begin:end]):
                await asyncio.to_thread(written.result)
            begin = end


def save_tree(directory: Path, tree: Any, arrays: Mapping[str, Any], metadata: Any, *, is_step: bool) -> Path:
    """Save a tree of numbers and lazy arrays as a checkpoint of Orbax.

    Args:
        directory: where to.
        tree: the tree.
        arrays: its leaves by their keys in the store of Orbax.
        metadata: custom metadata of the tree.
        is_step: whether to write a step of a manager, with the tree as the item ``default``.

    Returns:
        The directory of the tree.
    """
    alone = _this_process_alone()
    handler = ocp.PyTreeCheckpointHandler(
        multiprocessing_options=alone,
        type_handler_registry=type_handlers.create_type_handler_registry(
            (LazyJAXArray, _Handler("jax.Array")),
            (LazyNumPyArray, _Handler("np.ndarray")),
            (int, type_handlers.get_type_handler(int)),
            (float, type_handlers.get_type_handler(float)),
            (jax.Array, type_handlers.ArrayHandler(array_metadata_store=None)),  # Orbax warns without one
        ),
    )
    args: Any = ocp.args.PyTreeSave(tree, custom_metadata=metadata)
    root: Any = handler
    if is_step:
        args, root = ocp.args.Composite(default=args), _composite(handler, alone)
    with ocp.Checkpointer(root, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(directory.absolute(), args=args)
    item = directory / "default" if is_step else directory
    _write_notes(item, {key: leaf for key, leaf in arrays.items() if isinstance(leaf, LazyJAXArray)})
    # `ocp.CheckpointManager` restores with the handler that this names, and `StandardRestore` needs this one.
    standard = ocp.StandardCheckpointHandler.typestr()
    content = read_json(directory / ROOT_FILE)
    content["item_handlers"] = {"default": standard} if is_step else standard
    _write(directory / ROOT_FILE, content)
    return item


def _this_process_alone() -> ocp.options.MultiprocessingOptions:
    """Return options with which Orbax waits for no other process of the program."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    key = f"pytreesaver-{next(_numbers)}"
    return ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix=key)


_numbers = itertools.count()


def _composite(handler: Any, alone: ocp.options.MultiprocessingOptions) -> Any:
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    return ocp.CompositeCheckpointHandler(composite_options=options, default=handler)


def _write_notes(item: Path, arrays: Mapping[str, LazyJAXArray]) -> None:
    """Write what Orbax notes of JAX arrays: their shardings, and the implementations of PRNG keys."""
    if not arrays:
        return
    sharding = msgspec.json.encode({"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"}).decode()
    _write(item / "_sharding", {base64.b64encode(key.encode()).decode(): sharding for key in arrays})
    entries = [
        {
            "param_name": key,
            "write_shape": array.shape,
            "chunk_shape": array.shape,
            "ext_metadata": {"random_key_impl": array.key_impl} if array.key_impl else None,
        }
        for key, array in arrays.items()
    ]
    filesystem.make_directory(item / ARRAY_METADATA)
    _write(item / ARRAY_METADATA / "process_0", {"array_metadatas": [{"array_metadata": entry} for entry in entries]})


def _write(file: Path, content: Any) -> None:
    descriptor = filesystem.open_or_create(file)
    try:
        filesystem.truncate(descriptor)
        write_fully(descriptor, [msgspec.json.encode(content)], 0)
    except BaseException:
        filesystem.release(descriptor)
        raise
    filesystem.close(descriptor)
