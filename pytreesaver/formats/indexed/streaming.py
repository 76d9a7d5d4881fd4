"""A data file as a stream of bytes, for what cannot be written at any position: object stores, pipes, sockets."""

from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.parallel import SLICE_NBYTES, advance, unmetered
from pytreesaver._tree.kinds import cell_bytes
from pytreesaver.formats.indexed.data import ChunkTable, WriteOptions, taker, write_data
from pytreesaver.formats.indexed.index import Index


def data_stream(
    name: str,
    table: ChunkTable,
    metadata_of: Callable[[Index], Any],
    *,
    chunks: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Index, Callable[[], Iterator[memoryview]]]:
    """Return the index of a data file, and a function that returns its bytes in parts.

    The arrays are read twice: first to compute their checksums, which the header needs.

    Args:
        name: as in `write_data`.
        table: as in `write_data`.
        metadata_of: as in `write_data`.
        chunks: as in `write_data`. Without it, every variable is stored, also if it is the same as an earlier one.
        options: as in `write_data`.
    """
    from pytreesaver._io.stores.handles import MeasuringHandle, new_handle

    numbers = list(range(len(table.arrays))) if chunks is None else list(chunks)
    measuring = MeasuringHandle()
    descriptor = new_handle(measuring)
    try:
        with unmetered():
            writing = WriteOptions(durable=False, in_background=False)
            index = write_data(descriptor, name, table, writing, metadata_of, chunks=numbers, **options)
    finally:
        filesystem.release(descriptor)
    order = np.argsort(index.chunk_offsets, kind="stable").tolist()
    context = copy_context()

    def parts() -> Iterator[memoryview]:
        yield memoryview(measuring.header)
        take = taker([table.arrays[i] for i in numbers], order)
        for i in order:
            data = cell_bytes(take(i), table.leaf_types[numbers[i]])
            for begin in range(0, data.nbytes, SLICE_NBYTES):
                part = data[begin : begin + SLICE_NBYTES]
                context.run(advance, part.nbytes)  # the receiver may ask for parts in a thread of its own
                yield memoryview(np.ascontiguousarray(part))  # type: ignore[arg-type]

    return index, parts
