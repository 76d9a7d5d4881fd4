"""Thousands of NumPy arrays given to JAX with little work for each."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

_BATCH = 16
"""How many arrays one call of a compiled function takes. It compiles in 30 ms; more make that longer, and nothing
faster."""
_WORTH_COMPILING = 1024
"""From so many arrays of one kind on, the function is compiled: each costs a fourth of what `jax.device_put` takes."""
MOST_COPIED_NBYTES = 64 << 10
"""Up to here an array may be copied, which the compiled function does; larger ones are taken over as they lie."""


def jax_arrays(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Uncommitted JAX arrays on the default device, as `jax.device_put` makes them of `arrays`.

    Example:
        >>> jax_arrays([np.ones(2, np.float32)])
        [Array([1., 1.], dtype=float32)]
    """
    if not arrays:
        return []  # without asking JAX, which would take hold of its devices
    if len(arrays) < _WORTH_COMPILING or not _may_compile():
        return list(jax.device_put(list(arrays)))
    by_kind: dict[Any, list[int]] = {}
    for i, array in enumerate(arrays):
        by_kind.setdefault((array.dtype, array.shape), []).append(i)
    batches: list[list[int]] = []
    rest: list[int] = []
    for alike in by_kind.values():
        is_worth_it = len(alike) >= _WORTH_COMPILING and arrays[alike[0]].nbytes <= MOST_COPIED_NBYTES
        first = len(alike) % _BATCH or _BATCH if is_worth_it else len(alike)
        rest += alike[:first]
        batches += [alike[start : start + _BATCH] for start in range(first, len(alike), _BATCH)]
    results: list[Any] = [None] * len(arrays)
    # There is always a rest, and JAX refuses it if such transfers are forbidden; the others are no less explicit.
    _put(results, rest, jax.device_put([arrays[i] for i in rest]))
    with jax.transfer_guard_host_to_device("allow"):
        for batch in batches:
            _put(results, batch, _unchanged(*[arrays[i] for i in batch]))
    return results


def _put(results: list[Any], positions: Sequence[int], values: Sequence[Any]) -> None:
    for i, value in zip(positions, values, strict=True):
        results[i] = value


_unchanged = jax.jit(lambda *arrays: arrays)


def _may_compile() -> bool:
    """Whether a compiled function gives what `jax.device_put` gives: not where the user has results checked, functions
    not compiled, or a mesh over which they are spread."""
    config: Any = jax.config
    is_left_alone = not (config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs)
    return is_left_alone and jax.sharding.get_abstract_mesh().empty
