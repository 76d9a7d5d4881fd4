"""A tree that is to be saved in the background, made safe from everything that its owner may do to it meanwhile."""

import weakref
from functools import partial
from typing import Any

import jax
import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.parallel import run_all
from pytreesaver._leaves import Cells
from pytreesaver.formats import TreeContents

_ALIGNMENT = 64
_SLICE_NBYTES = 8 << 20


def snapshot(contents: TreeContents, *, copy: bool = False) -> TreeContents:
    """The same contents, safe from everything that the caller may do to the tree.

    Arrays on an accelerator are fetched, all transfers under way at once. Arrays on the CPU need no copy: they cannot
    be changed, and while something outside of JAX refers to their memory, a donation copies it instead of reusing it.
    With `copy` they are copied all the same, into memory that is kept for the next such snapshot, so that a donation
    finds them free. NumPy arrays are always copied.
    """
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu:
        for cells in contents.cells:
            for array in cells.arrays:
                if isinstance(array, jax.Array):
                    array.copy_to_host_async()
    safe = [Cells([_safe(array) for array in cells.arrays], cells.boundaries) for cells in contents.cells]
    if copy and on_cpu:
        _move(safe)
    else:
        _spare.clear()
    return contents._replace(cells=safe)


def _safe(array: Any) -> Any:
    if isinstance(array, jax.Array):
        return np.asarray(array)
    return np.array(array, subok=False) if isinstance(array, np.ndarray) else array


def _move(cells: list[Cells]) -> None:
    """Put copies into all cells in place of the memory of JAX arrays."""
    of_jax = [(each, i) for each in cells for i, array in enumerate(each.arrays) if _is_of_jax(array)]
    sizes = [-(-each.arrays[i].nbytes // _ALIGNMENT) * _ALIGNMENT for each, i in of_jax]
    memory = _lend(sum(sizes))
    tasks = []
    begin = 0
    for (each, i), size in zip(of_jax, sizes, strict=True):
        array = each.arrays[i]
        source = array.reshape(-1).view(np.uint8)
        target = memory[begin : begin + source.nbytes]
        for start in range(0, source.nbytes, _SLICE_NBYTES):
            part = slice(start, start + _SLICE_NBYTES)
            tasks.append(partial(np.copyto, target[part], source[part]))
        each.arrays[i] = target.view(array.dtype).reshape(array.shape)
        begin += size
    run_all(tasks, begin)


def _is_of_jax(array: Any) -> bool:
    """Whether an array lies where JAX has put it: such an array cannot be written to."""
    in_order = isinstance(array, np.ndarray) and array.flags.c_contiguous and array.nbytes > 0
    return in_order and not array.flags.writeable


_spare: list[np.ndarray] = []
"""The memory of the last snapshot that was copied, unless it is in use."""


def _lend(nbytes: int) -> np.ndarray:
    """The spare memory, or new one, until the last array on it is gone."""
    memory = _spare.pop() if _spare else None
    if memory is None or memory.nbytes < nbytes:
        memory = filesystem.new_memory(nbytes)
    # Through a memoryview: of a view on a view NumPy forgets the middle one, and this array has to outlive all on it.
    lent = np.frombuffer(memoryview(memory), np.uint8)  # type: ignore[arg-type]
    weakref.finalize(lent, _take_back, memory).atexit = False
    return lent


def _take_back(memory: np.ndarray) -> None:
    _spare[:] = [memory]
