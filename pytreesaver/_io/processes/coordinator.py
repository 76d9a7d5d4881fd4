"""The key-value store of the coordinator of `jax.distributed`, and the processes that share it.

The client is private to JAX; no other module uses it. Messages need no devices, so that a background thread can send
them while a training step runs. `jax.experimental.multihost_utils` has only collectives of devices, without deadlines.
"""

import os
import sys
import threading
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

from pytreesaver._errors import CheckpointError


class CoordinatorLostError(CheckpointError, ConnectionError):
    """The coordinator of `jax.distributed` does not answer: its process has ended, or the network is down."""


class Coordinator(Protocol):
    """A key-value store that all processes share. A key is a path; a directory of keys ends in a slash."""

    def put(self, key: str, value: bytes, *, replace: bool = False) -> None:
        """Set a key. Without `replace`, a key that exists keeps its value."""
        ...

    def get(self, key: str, seconds: float) -> bytes | None:
        """Return the value of a key, waiting for it; None if there is none after `seconds`."""
        ...

    def list(self, directory: str) -> dict[str, bytes]:
        """Return the keys under a directory, and their values."""
        ...

    def delete(self, key: str) -> None:
        """Delete a key, or all keys under a directory."""
        ...


@dataclass(frozen=True)
class Processes:
    """The processes of a program: how many there are, which of them this one is, and how they reach each other."""

    rank: int
    count: int
    coordinator: Coordinator


class JaxCoordinator:
    """The key-value store of a client of `jax.distributed`.

    Raises:
        CoordinatorLostError: from every method, if the coordinator does not answer.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, key: str, value: bytes, *, replace: bool = False) -> None:
        """See `Coordinator.put`."""
        try:
            self._client.key_value_set_bytes(key, value, allow_overwrite=replace)
        except RuntimeError as error:
            if not str(error).startswith("ALREADY_EXISTS"):
                raise _lost(error) from error

    def get(self, key: str, seconds: float) -> bytes | None:
        """See `Coordinator.get`."""
        try:
            value: bytes = self._client.blocking_key_value_get_bytes(key, max(1, int(seconds * 1000)))
        except RuntimeError as error:
            if str(error).startswith("DEADLINE_EXCEEDED"):
                return None
            raise _lost(error) from error
        return value

    def list(self, directory: str) -> dict[str, bytes]:
        """See `Coordinator.list`."""
        try:
            return dict(self._client.key_value_dir_get_bytes(directory))
        except RuntimeError as error:
            raise _lost(error) from error

    def delete(self, key: str) -> None:
        """See `Coordinator.delete`."""
        try:
            self._client.key_value_delete(key)
        except RuntimeError as error:
            raise _lost(error) from error


def _lost(error: RuntimeError) -> CoordinatorLostError:
    reason = str(error).partition("\n")[0]
    return CoordinatorLostError(
        "the coordinator of jax.distributed, which runs in process 0, does not answer: that process has ended, or the "
        f"network is down ({reason})"
    )


def current_processes() -> Processes | None:
    """Return the processes of this program, or None if it is the only one, or a fork of one of them.

    Does not import JAX, and initializes no devices.
    """
    if "jax" not in sys.modules or _forked:
        return None
    from jax._src import distributed

    state = distributed.global_state
    client: Any = state.client
    if client is None or state.num_processes < 2:
        return None
    return Processes(state.process_id, state.num_processes, _coordinator_of(client))


_forked: list[bool] = []
os.register_at_fork(after_in_child=lambda: _forked.append(True))
_guard = threading.Lock()
_known: list[tuple[Any, JaxCoordinator]] = []
_numbers: weakref.WeakKeyDictionary[Coordinator, Counter[str]] = weakref.WeakKeyDictionary()


def _coordinator_of(client: Any) -> JaxCoordinator:
    with _guard:
        if not _known or _known[0][0] is not client:
            _known[:] = [(client, JaxCoordinator(client))]
        return _known[0][1]


def next_number(coordinator: Coordinator, subject: str) -> int:
    """Return how many meetings about a subject this process has had before.

    The processes make the same calls in the same order for each subject, so that this number tells them which calls
    belong together.
    """
    with _guard:
        numbers = _numbers.setdefault(coordinator, Counter())
        numbers[subject] += 1
        return numbers[subject] - 1
