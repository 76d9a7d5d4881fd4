"""One process at a time saves into a run directory. Readers need no lock."""

import os
import socket
import threading
import weakref
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pytreesaver._errors import ConcurrentWriterError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import make_durable_directory
from pytreesaver._io.files import write_fully
from pytreesaver._io.paths import wrap_os_errors
from pytreesaver.formats.registry import format_at

LOCK_NAME = ".pytreesaver.lock"


class _Claim:
    """The claim of this process on one run directory, and how many savers share it."""

    def __init__(self, identity: tuple[int, int], descriptor: int) -> None:
        self.identity = identity
        self.descriptor = descriptor
        self.holders = 0
        self.saving = threading.RLock()
        self.last_writer: weakref.ref[object] | None = None


_claims: dict[tuple[int, int], _Claim] = {}
_guard = threading.Lock()

# Locks are let go of by garbage collection too, which may come while this thread has the guard: they only leave word.
_released: deque[_Claim] = deque()


def _let_go() -> None:
    while _released and _guard.acquire(blocking=False):
        try:
            while _released:
                claim = _released.popleft()
                claim.holders -= 1
                if claim.holders == 0:
                    if _claims.get(claim.identity) is claim:
                        del _claims[claim.identity]
                    filesystem.close(claim.descriptor)
        finally:
            _guard.release()


def _forget_claims() -> None:
    # A child process has none of its parent's claims; the lock stays with the parent, which has the file open too.
    global _guard  # noqa: PLW0603
    _guard = threading.Lock()
    _released.clear()
    for claim in _claims.values():
        filesystem.close(claim.descriptor)
    _claims.clear()


os.register_at_fork(after_in_child=_forget_claims)


class RunLock:
    """Holds a run directory for this process until `release`, garbage collection, or the death of the process.

    All savers of one process may hold the same directory; `saving` is a lock for them to take turns.

    Raises:
        ConcurrentWriterError: another live process holds it; the message names that process.
        OSError: the lock file cannot be created.
    """

    def __init__(self, directory: Path) -> None:
        self.identity = filesystem.identity(directory)
        self._pid = os.getpid()
        with _guard:
            claim = _claims.get(self.identity)
            if claim is None or not filesystem.is_linked(claim.descriptor):  # somebody has deleted the lock file
                claim = _claims[self.identity] = _Claim(self.identity, _claim(directory))
            claim.holders += 1
        self._claim = claim
        self.saving = claim.saving
        self._finalizer = weakref.finalize(self, _release, claim, self._pid)
        _let_go()

    def holds(self, directory: Path) -> bool:
        """Whether this is a lock on the directory that is there now, in this process."""
        return (
            self._finalizer.alive
            and self._pid == os.getpid()
            and filesystem.identity(directory) == self.identity
            and filesystem.is_linked(self._claim.descriptor)
        )

    def wrote_last(self, writer: object) -> bool:
        """Whether no other saver of this process has written to the directory since this one did; notes this one."""
        before, self._claim.last_writer = self._claim.last_writer, weakref.ref(writer)
        return before is not None and before() is writer

    def release(self) -> None:
        """Let other processes save into the directory."""
        self._finalizer()


def _claim(directory: Path) -> int:
    descriptor = filesystem.open_or_create(directory / LOCK_NAME)
    try:
        if not filesystem.try_lock_if_supported(descriptor):
            raise ConcurrentWriterError(
                f"{directory}: expected to be the only process that saves into it, found {_holder(descriptor)}; "
                "stop that one, or save into a directory of your own"
            )
        with suppress(OSError):  # it is only for the message
            now = datetime.now(UTC).isoformat(timespec="seconds")
            filesystem.truncate(descriptor)
            write_fully(descriptor, [f"process {os.getpid()} on {socket.gethostname()}, since {now}\n".encode()], 0)
        return descriptor
    except BaseException:
        filesystem.close(descriptor)
        raise


def _holder(descriptor: int) -> str:
    with suppress(OSError, ValueError):
        text = np.zeros(min(filesystem.file_size(descriptor), 200), np.uint8)
        filesystem.read_into(descriptor, text, 0)
        line = text.tobytes().decode(errors="replace").strip()
        if line.isprintable() and line:
            return line
    return "another one"


def _release(claim: _Claim, pid: int) -> None:
    if os.getpid() == pid:
        _released.append(claim)
        _let_go()


def claim(directory: Path, held: RunLock | None) -> RunLock:
    """The lock on a run directory, which is created if need be: `held` if it is that one.

    With a new lock, what killed overwrites have left in its checkpoints is removed.

    Raises:
        ConcurrentWriterError: another live process saves into the directory.
        CheckpointIOError: the directory cannot be created or written to.
    """
    with wrap_os_errors("save to", directory):
        make_durable_directory(directory)
        if held is not None and held.holds(directory):
            return held
        lock = RunLock(directory)
        for entry in filesystem.list_directory(directory):
            if not entry.startswith(".") and (found := format_at(directory / entry)) is not None:
                found.remove_unlisted_files(directory / entry)
        return lock
