"""A snapshot of a tree for an asynchronous save: the caller may modify or donate the tree meanwhile."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.memory import collection_paused
from pytreesaver._io.parallel import SLICE_NBYTES, run_all
from pytreesaver._tree.kinds import ArrayPart, Cells, SourceArray, source_of
from pytreesaver.formats.fetching import is_on_cpu
from pytreesaver.formats.protocol import TreeContents

_ALIGNMENT = 64  # of the copies: aligned memory is copied faster


@collection_paused()
def snapshot(contents: TreeContents, *, copy: bool = False) -> TreeContents:
    """Return the same contents, unaffected by anything that the caller does to the tree.

    Arrays on an accelerator are fetched, with all transfers in flight at once. Arrays on the CPU need no copy: they are
    immutable, and while anything outside of JAX refers to their memory, a donation copies it instead of reusing it.
    With `copy` they are copied nevertheless, so that a donation can reuse their memory; the memory of the copies is
    kept for the next such snapshot. NumPy arrays are always copied. Arrays that are unchanged since an earlier
    checkpoint stay where they are.
    """
    has_arrays = any(leaf_type.kind in ("jax", "key") for leaf_type in set(contents.types))
    # If the default is the CPU, few arrays are elsewhere, and each is fetched when it is read.
    if has_arrays and jax.default_backend() != "cpu":
        for position, cells in enumerate(contents.cells):
            for array in cells.arrays if position not in contents.unchanged else ():
                source = source_of(array)
                if isinstance(source, jax.Array) and not is_on_cpu(source):
                    source.copy_to_host_async()
    to_copy: list[tuple[list[Any], int]] = []
    safe: list[Cells] = []
    for position, cells in enumerate(contents.cells):
        if position in contents.same_as:
            safe.append(safe[contents.same_as[position]])
            continue
        if position in contents.unchanged:
            safe.append(cells)
            continue
        given = cells.arrays
        arrays = [_safe(given[0])] if len(given) == 1 else list(map(_safe, given))
        safe.append(Cells(arrays, cells.boundaries, cells.devices))
        if copy:
            to_copy += [(arrays, i) for i, array in enumerate(cells.arrays) if _is_in_cpu_memory_of_jax(array)]
    if copy:
        _replace_by_copies(to_copy)
    else:
        _pools[:] = [[]]
    return contents._replace(cells=safe)


def _safe(array: Any) -> Any:
    if isinstance(array, jax.Array | SourceArray):
        return np.asarray(array)
    return np.array(array, subok=False) if isinstance(array, np.ndarray) else array


def _is_in_cpu_memory_of_jax(array: Any) -> bool:
    if isinstance(array, ArrayPart):
        return True
    return isinstance(array, jax.Array) and array.nbytes > 0 and is_on_cpu(array)


def _replace_by_copies(places: Sequence[tuple[list[Any], int]]) -> None:
    """Replace NumPy arrays by copies. Each place is a list and a position in it."""
    sizes = [-(-arrays[i].nbytes // _ALIGNMENT) * _ALIGNMENT for arrays, i in places]
    memory = _borrow_memory(sum(sizes))
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
"""Holds the current pool: the memory of the last snapshot that copied, or nothing while that is in use.

A snapshot that does not copy replaces the pool, so that memory that is still in use is freed when it is returned.
"""


def _borrow_memory(nbytes: int) -> np.ndarray:
    """Return memory, from the pool if possible. It goes back to the pool when the last array that uses it is gone."""
    pool = _pools[0]
    try:
        memory = pool.pop()
    except IndexError:
        memory = filesystem.new_memory(nbytes)
    if memory.nbytes < nbytes:
        memory = filesystem.new_memory(nbytes)
    # A view of a NumPy view refers only to the base array; through a memoryview, views of `borrowed` keep it alive.
    borrowed = np.frombuffer(memoryview(memory), np.uint8)  # type: ignore[arg-type]
    weakref.finalize(borrowed, _return_memory, pool, memory).atexit = False
    return borrowed


def _return_memory(pool: list[np.ndarray], memory: np.ndarray) -> None:
    pool[:] = [max([*pool, memory], key=lambda each: each.nbytes)]
