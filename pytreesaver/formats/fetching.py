"""Transfer of arrays from accelerators to host memory, shortly before they are written."""

import threading
from collections.abc import Sequence
from typing import Any

import jax

_WINDOW_NBYTES = 64 << 20
"""The maximum number of bytes in transfer or waiting to be taken."""


def is_on_cpu(array: jax.Array) -> bool:
    """Return whether an array is in host memory."""
    device: Any = next(iter(array.sharding.device_set))  # a sharding is over devices of one kind
    return bool(device.platform == "cpu")


class FetchedAhead:
    """Return arrays one by one and transfer the next ones to the host meanwhile. Thread-safe.

    A host copy is released with the last reference to it. `numpy.asarray` would keep it as long as its array.

    Args:
        arrays: JAX arrays, and any other values, which are returned unchanged.
        order: the positions, in the approximate order in which they will be taken.
    """

    def __init__(self, arrays: Sequence[Any], order: Sequence[int]) -> None:
        self._arrays = arrays
        self._remote = _remote_positions(arrays, order)
        self._next = iter([i for i in order if i in self._remote])
        self._in_flight: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def has_any(self) -> bool:
        """Whether any array has to be fetched."""
        return bool(self._remote)

    def take(self, i: int) -> Any:
        """Return array number `i`. Each array is taken once."""
        if i not in self._remote:
            return self._arrays[i]
        with self._lock:
            fetched = self._in_flight.pop(i, None)
            self._remote.discard(i)
            nbytes = sum(each.nbytes for each in self._in_flight.values())
            while nbytes < _WINDOW_NBYTES:
                following = next(self._next, None)
                if following is None:
                    break
                if following in self._remote:  # not taken yet
                    self._in_flight[following] = _fetch(self._arrays[following])
                    nbytes += self._arrays[following].nbytes
        return _fetch(self._arrays[i]) if fetched is None else fetched


def _remote_positions(arrays: Sequence[Any], positions: Sequence[int]) -> set[int]:
    """Return the positions of the arrays that are not in host memory."""
    if not any(isinstance(arrays[i], jax.Array) for i in positions):
        return set()  # JAX may not have looked for devices yet
    if jax.default_backend() == "cpu":  # then few are, and each is transferred when it is read
        return set()
    return {i for i in positions if isinstance(arrays[i], jax.Array) and not is_on_cpu(arrays[i])}


def fetched(array: jax.Array) -> Any:
    """Return an array in host memory, which is released with the last reference to it."""
    return array if is_on_cpu(array) else _fetch(array)


def _fetch(array: jax.Array) -> Any:
    """Start the transfer of an array to the host."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX runs without the CPU backend
        array.copy_to_host_async()
        return array
    return jax.device_put(array, cpu)
