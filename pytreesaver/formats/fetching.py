"""Arrays on an accelerator, brought to the memory of the CPU shortly before they are wanted."""

import threading
from collections.abc import Sequence
from typing import Any

import jax

_WINDOW_NBYTES = 64 << 20
"""How many bytes may be on their way, or have come and wait, at a time."""


def is_on_cpu(array: jax.Array) -> bool:
    """Whether the values of an array are in the memory of the CPU."""
    device: Any = next(iter(array.sharding.device_set))  # a sharding is over devices of one kind
    return bool(device.platform == "cpu")


class FetchedAhead:
    """Gives arrays one by one, and has the next ones come to the CPU meanwhile. For any number of threads.

    What was fetched is not kept with its array, as `numpy.asarray` would keep it: it is dropped when its user drops it.

    Args:
        arrays: JAX arrays, and anything else, which is given as it is.
        order: the positions in the order in which they are wanted, more or less.
    """

    def __init__(self, arrays: Sequence[Any], order: Sequence[int]) -> None:
        self._arrays = arrays
        self._far = _far(arrays, order)
        self._next = iter([i for i in order if i in self._far])
        self._under_way: dict[int, Any] = {}
        self._lock = threading.Lock()

    def take(self, i: int) -> Any:
        """Array number `i`; each is taken once."""
        if i not in self._far:
            return self._arrays[i]
        with self._lock:
            fetched = self._under_way.pop(i, None)
            self._far.discard(i)
            nbytes = sum(each.nbytes for each in self._under_way.values())
            while nbytes < _WINDOW_NBYTES:
                following = next(self._next, None)
                if following is None:
                    break
                if following in self._far:  # nobody has taken it yet
                    self._under_way[following] = _fetch(self._arrays[following])
                    nbytes += self._arrays[following].nbytes
        return _fetch(self._arrays[i]) if fetched is None else fetched


def _far(arrays: Sequence[Any], positions: Sequence[int]) -> set[int]:
    """The positions of those arrays that are not in the memory of the CPU."""
    of_jax = [i for i in positions if isinstance(arrays[i], jax.Array)]
    if not of_jax or jax.default_backend() == "cpu":  # then there are hardly any, and each is fetched when it is read
        return set()
    return {i for i in of_jax if not is_on_cpu(arrays[i])}


def _fetch(array: jax.Array) -> Any:
    """The array on the CPU, or on its way there."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # a JAX without the CPU
        array.copy_to_host_async()
        return array
    return jax.device_put(array, cpu)
