"""A tree that is to be saved in the background, made safe from everything that its owner may do to it meanwhile."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.parallel import SLICE_NBYTES, run_all
from pytreesaver._tree.kinds import Cells
from pytreesaver.formats.fetching import is_on_cpu
from pytreesaver.formats.protocol import TreeContents

_ALIGNMENT = 64  # of the copies, for the sake of fast copying


def snapshot(contents: TreeContents, *, copy: bool = False) -> TreeContents:
    """The same contents, safe from everything that the caller may do to the tree.

    Arrays on an accelerator are fetched, all transfers under way at once. Arrays on the CPU need no copy: they cannot
    be changed, and while something outside of JAX refers to their memory, a donation copies it instead of reusing it.
    With `copy` they are copied all the same, into memory that is kept for the next such snapshot, so that a donation
    finds them free. NumPy arrays are always copied.
    """
    for cells in contents.cells:
        for array in cells.arrays:
            if isinstance(array, jax.Array) and not is_on_cpu(array):
                array.copy_to_host_async()
    to_copy: list[tuple[list[Any], int]] = []
    safe: list[Cells] = []
    for cells in contents.cells:
        arrays = [_safe(array) for array in cells.arrays]
        safe.append(Cells(arrays, cells.boundaries))
        if copy:
            to_copy += [(arrays, i) for i, array in enumerate(cells.arrays) if _lies_with_jax(array)]
    if copy:
        _replace_by_copies(to_copy)
    else:
        _pools[:] = [[]]
    return contents._replace(cells=safe)


def _safe(array: Any) -> Any:
    if isinstance(array, jax.Array):
        return np.asarray(array)
    return np.array(array, subok=False) if isinstance(array, np.ndarray) else array


def _lies_with_jax(array: Any) -> bool:
    return isinstance(array, jax.Array) and array.nbytes > 0 and is_on_cpu(array)


def _replace_by_copies(places: Sequence[tuple[list[Any], int]]) -> None:
    """Put copies into lists of NumPy arrays, at the given positions."""
    sizes = [-(-arrays[i].nbytes // _ALIGNMENT) * _ALIGNMENT for arrays, i in places]
    memory = _lend(sum(sizes))
    tasks: list[Callable[[], None]] = []
    begin = 0
    for (arrays, i), size in zip(places, sizes, strict=True):
        source = np.ascontiguousarray(arrays[i])
        target = memory[begin : begin + source.nbytes].view(source.dtype).reshape(source.shape)
        arrays[i] = target
        tasks += _copies(target.reshape(-1).view(np.uint8), source.reshape(-1).view(np.uint8))
        begin += size
    run_all(tasks, begin)


def _copies(target: np.ndarray, source: np.ndarray) -> Iterator[Callable[[], None]]:
    for start in range(0, source.nbytes, SLICE_NBYTES):
        part = slice(start, start + SLICE_NBYTES)
        yield partial(np.copyto, target[part], source[part])


_pools: list[list[np.ndarray]] = [[]]
"""A list of the list with the memory of the last snapshot that was copied, which is empty while that is in use."""


def _lend(nbytes: int) -> np.ndarray:
    """The spare memory, or new one, until the last array on it is gone."""
    pool = _pools[0]
    try:
        memory = pool.pop()
    except IndexError:
        memory = filesystem.new_memory(nbytes)
    if memory.nbytes < nbytes:
        memory = filesystem.new_memory(nbytes)
    # Through a memoryview: of a view on a view NumPy forgets the middle one, and this array has to outlive all on it.
    lent = np.frombuffer(memoryview(memory), np.uint8)  # type: ignore[arg-type]
    weakref.finalize(lent, _take_back, pool, memory).atexit = False
    return lent


def _take_back(pool: list[np.ndarray], memory: np.ndarray) -> None:
    pool[:] = [max([*pool, memory], key=lambda each: each.nbytes)]
