"""The lock of a run directory, so that only one process at a time saves into it. Readers need no lock."""

import itertools
import os
import socket
import threading
import weakref
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointIOError, ConcurrentWriterError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import make_durable_directory
from pytreesaver._io.files import write_fully
from pytreesaver._io.paths import wrap_os_errors
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._run.directory import check_run_directory
from pytreesaver._run.recorded import visible_entries
from pytreesaver.formats.registry import format_at, format_named

LOCK_NAME = ".pytreesaver.lock"


class _Claim:
    """The locked file of one run directory. The `RunLock` objects of this process share it; `holders` counts them."""

    def __init__(self, identity: tuple[int, int], descriptor: int) -> None:
        self.identity = identity
        self.descriptor = descriptor
        self.holders = 0
        self.saving = threading.RLock()
        self.version = next(_versions)
        self.state_owners: dict[str, str] = {}


_versions = itertools.count()


_claims: dict[tuple[int, int], _Claim] = {}
_guard = threading.Lock()
_store_guard = threading.Lock()

# Garbage collection may release a lock while this thread holds the guard. So a release only adds to this queue.
_released: deque[_Claim] = deque()


def _drop_released() -> None:
    while _released and _guard.acquire(blocking=False):
        try:
            while _released:
                claim = _released.popleft()
                claim.holders -= 1
                if claim.holders == 0:
                    if _claims.get(claim.identity) is claim:
                        del _claims[claim.identity]
                    filesystem.release(claim.descriptor)
        finally:
            _guard.release()


def _forget_claims() -> None:
    # A forked child holds none of its parent's locks. They stay with the parent, which also has the files open.
    global _guard, _store_guard
    _guard, _store_guard = threading.Lock(), threading.Lock()
    _released.clear()
    for claim in _claims.values():
        filesystem.release(claim.descriptor)
    _claims.clear()


os.register_at_fork(after_in_child=_forget_claims)


class RunLock:
    """Locks a run directory for this process until `release`, garbage collection, or the end of the process.

    All savers of one process may lock the same directory. They take turns with `saving`, a lock between threads.

    Raises:
        ConcurrentWriterError: if another live process holds the lock. The message names that process.
        OSError: if the lock file cannot be created.
    """

    def __init__(self, directory: Path) -> None:
        self.identity = filesystem.identity(directory)
        self._directory = directory
        self._pid = os.getpid()
        self._claim = claim = _held_claim(self.identity, directory)
        self.saving = claim.saving
        self._finalizer = weakref.finalize(self, _release, claim, self._pid)
        _drop_released()

    def holds(self, directory: Path) -> bool:
        """Return whether this process holds this lock, and it is on the directory that now exists at this path."""
        return (
            self._finalizer.alive
            and self._pid == os.getpid()
            and filesystem.identity(directory) == self.identity
            and filesystem.is_linked(self._claim.descriptor)
        )

    def check(self) -> None:
        """Raise a ConcurrentWriterError if this process does not hold the lock any more: its lease has ended."""
        if not filesystem.is_linked(self._claim.descriptor):
            raise _held_error(self._directory, "one that has taken the lock over, since its lease had ended")

    @property
    def version(self) -> int:
        """A number that changes whenever a saver of this process has written to a state file of the directory."""
        return self._claim.version

    def advance(self) -> int:
        """Change the version, after a write to a state file. Return the new one."""
        self._claim.version = next(_versions)
        return self._claim.version

    @property
    def state_owners(self) -> dict[str, str]:
        """The `checkpoint_name` of the managers of this process that use each state file, by its name."""
        return self._claim.state_owners

    def release(self) -> None:
        """Release the lock. Other processes can save once this process has released all its locks on the directory."""
        self._finalizer()


def _held_claim(identity: tuple[int, int], directory: Path) -> _Claim:
    """Return the claim of a directory, with one more holder."""
    if not is_in_store(directory):
        with _guard:
            return _known_claim(identity) or _new_claim(identity, _open_lock_file(directory))
    with _store_guard:  # taking a lease may take a minute, in which directories on disks can be locked
        with _guard:
            known = _known_claim(identity)
        if known is not None:
            return known
        descriptor = _open_lock_file(directory)
        with _guard:
            return _new_claim(identity, descriptor)


def _known_claim(identity: tuple[int, int]) -> _Claim | None:
    claim = _claims.get(identity)
    if claim is None or not filesystem.is_linked(claim.descriptor):  # the lock file was deleted
        return None
    claim.holders += 1
    return claim


def _new_claim(identity: tuple[int, int], descriptor: int) -> _Claim:
    claim = _claims[identity] = _Claim(identity, descriptor)
    claim.holders += 1
    return claim


def _open_lock_file(directory: Path) -> int:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    holder = f"process {os.getpid()} on {socket.gethostname()}, since {now}"
    if is_in_store(directory):
        return _take_lease(directory, holder)
    descriptor = filesystem.open_or_create(directory / LOCK_NAME)
    try:
        if not filesystem.try_lock_if_supported(descriptor):
            raise _held_error(directory, _describe_holder(descriptor))
        with suppress(OSError):  # only messages need this line
            filesystem.truncate(descriptor)
            write_fully(descriptor, [f"{holder}\n".encode()], 0)
        return descriptor
    except BaseException:
        filesystem.release(descriptor)
        raise


def _take_lease(directory: Path, holder: str) -> int:
    from pytreesaver._io.stores.lease import HeldError, open_lease

    path: Any = directory / LOCK_NAME
    try:
        return open_lease(path, holder)
    except HeldError as error:
        raise _held_error(directory, str(error)) from None


def _held_error(directory: Path, holder: str) -> ConcurrentWriterError:
    return ConcurrentWriterError(
        f"{directory}: expected no other process to save into it, found {holder}; "
        "stop that process, or save into another directory"
    )


def _describe_holder(descriptor: int) -> str:
    with suppress(OSError, ValueError):
        text = np.zeros(min(filesystem.file_size(descriptor), 200), np.uint8)
        filesystem.read_into(descriptor, text, 0)
        line = text.tobytes().decode(errors="replace").strip()
        if line.isprintable() and line:
            return line
    return "an unknown one"


def _release(claim: _Claim, pid: int) -> None:
    if os.getpid() == pid:
        _released.append(claim)
        _drop_released()


def claim(directory: Path, held: RunLock | None) -> RunLock:
    """Lock a run directory, which is created if it does not exist. Return `held` if that is its lock already.

    After a new lock is taken, leftovers of interrupted overwrites are removed from the checkpoints.

    Raises:
        ConcurrentWriterError: if another live process is saving into the directory.
        CheckpointIOError: if the directory cannot be created or written to.
        CheckpointExistsError: if there is a checkpoint at the path.
    """
    with wrap_os_errors("save to", directory):
        check_run_directory(directory)
        make_durable_directory(directory)
        if held is not None and held.holds(directory):
            return held
        lock = RunLock(directory)
        try:
            _remove_unlisted_files(directory)
        except BaseException:
            lock.release()
            raise
        return lock


def _remove_unlisted_files(directory: Path) -> None:
    for path in visible_entries(directory):
        with suppress(CheckpointIOError):  # it could not be looked at: the next new lock tries again
            found = format_at(path)
            if found is None and is_in_store(path):
                found = format_named(None)  # an interrupted save, which has no index
            if found is not None:
                found.remove_unlisted_files(path)
