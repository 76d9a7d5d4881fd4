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
_SMALL_NBYTES = 64 << 10
"""Up to here an array is copied, which the compiled function does; larger ones are taken over as they lie."""


def jax_arrays(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Uncommitted JAX arrays on the default device, as `jax.device_put` makes them of `arrays`.

    Example:
        >>> jax_arrays([np.ones(2, np.float32)])
        [Array([1., 1.], dtype=float32)]
    """
    if len(arrays) < _WORTH_COMPILING or not _may_compile():
        return list(jax.device_put(list(arrays)))
    by_kind: dict[Any, list[int]] = {}
    for i, array in enumerate(arrays):
        by_kind.setdefault((array.dtype, array.shape), []).append(i)
    results: list[Any] = [None] * len(arrays)
    rest: list[int] = []
    for (dtype, _), alike in by_kind.items():
        if len(alike) < _WORTH_COMPILING or arrays[alike[0]].nbytes > _SMALL_NBYTES or dtype.kind not in "biufc":
            rest += alike
            continue
        whole = len(alike) // _BATCH * _BATCH
        with jax.transfer_guard_host_to_device("allow"):
            for start in range(0, whole, _BATCH):
                batch = alike[start : start + _BATCH]
                for i, result in zip(batch, _unchanged(*[arrays[i] for i in batch]), strict=True):
                    results[i] = result
        rest += alike[whole:]
    for i, result in zip(rest, jax.device_put([arrays[i] for i in rest]), strict=True):
        results[i] = result
    return results


_unchanged = jax.jit(lambda *arrays: arrays)


def _may_compile() -> bool:
    """Whether a compiled function gives what `jax.device_put` gives: not where the user has it checked or left out."""
    return not (jax.config.jax_disable_jit or jax.config.jax_debug_nans or jax.config.jax_debug_infs)  # type: ignore[attr-defined]
