"""A lock that is an object, with a lease: it ends by itself if its holder does not renew it."""

import errno
import logging
import os
import secrets
import threading
import time
import weakref
from contextlib import suppress
from typing import Any

import msgspec

from pytreesaver._io.stores.engine import ChangedError, call, obstore
from pytreesaver._io.stores.handles import new_handle
from pytreesaver._io.stores.objects import put, replacing
from pytreesaver._io.stores.paths import StorePath
from pytreesaver._text import NotJSONError, decode_json

LEASE_SECS = 60.0
"""How long a lock outlives the last renewal, in seconds. It is renewed three times in that time."""

_UNKNOWN = "an unknown process"

logger = logging.getLogger("pytreesaver")


class HeldError(Exception):
    """Another process holds the lock. The message says which one."""


class _Lease(msgspec.Struct):
    """The text of the object.

    Attributes:
        owner: tells the holders apart.
        holder: the process, for messages.
        renewals: how often the lease was renewed. A lock whose number does not change for `seconds` has ended, by the
            clock of the process that looks: the clocks of two machines need not agree.
        seconds: how long it lasts without a renewal.
    """

    owner: str
    holder: str
    renewals: int
    seconds: float


class LeaseHandle:
    """A lease that this process holds. It is renewed until it is released or garbage-collected."""

    def __init__(self, path: StorePath, lease: _Lease, version: Any) -> None:
        self._path = path
        self._lease = lease
        self._version = version
        self._renewed = time.monotonic()
        self._is_lost = False
        self._pid = os.getpid()
        self._stop = threading.Event()
        threading.Thread(
            target=_renew_until, args=(weakref.ref(self), self._stop, lease.seconds / 3), name="lease", daemon=True
        ).start()

    def renew(self) -> None:
        """Renew the lease, or note that it is lost."""
        lease = msgspec.structs.replace(self._lease, renewals=self._lease.renewals + 1)
        try:
            self._version = replacing(put(self._path, msgspec.json.encode(lease), self._version))
        except (ChangedError, FileNotFoundError):
            self._check_owner(lease)
        except OSError as error:
            logger.warning("%s: the lock could not be renewed: %s", self._path, error)
        else:
            self._lease, self._renewed = lease, time.monotonic()

    def _check_owner(self, lease: _Lease) -> None:
        """Note whose lock it is. The answer to a request may have been lost, and the engine has repeated it."""
        try:
            found, version = _read(self._path)
        except FileNotFoundError:
            found, version = _Lease("", "nobody", 0, 0.0), None
        except OSError as error:
            logger.warning("%s: the lock could not be read: %s", self._path, error)
            return
        if found.owner == lease.owner:
            self._lease, self._version, self._renewed = found, version, time.monotonic()
            return
        self._is_lost = True
        logger.error("%s: another process has taken the lock over", self._path)

    def is_held(self) -> bool:
        """Return whether no other process can have taken the lock."""
        return not self._is_lost and os.getpid() == self._pid and time.monotonic() - self._renewed < self._lease.seconds

    def release(self) -> None:
        """Delete the lock, if it still is that of this process. A forked child has no part in it."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        with suppress(OSError):
            if not self._is_lost and _read(self._path)[0].owner == self._lease.owner:
                call(self._path, lambda store, key: obstore().delete(store, key))

    close = release


def _renew_until(handle: "weakref.ref[LeaseHandle]", stop: threading.Event, interval: float) -> None:
    while not stop.wait(interval):
        alive = handle()
        if alive is None or alive._is_lost:
            return
        alive.renew()
        del alive


def _read(path: StorePath) -> tuple[_Lease, Any]:
    def read(store: Any, key: str) -> tuple[bytes, Any]:
        result = obstore().get(store, key)
        return bytes(result.bytes()), result.meta

    content, meta = call(path, read)
    try:
        lease = decode_json(content, _Lease)
    except NotJSONError:
        lease = _Lease("", _UNKNOWN, 0, LEASE_SECS)
    if not lease.holder.isprintable() or len(lease.holder) > 200:
        lease.holder = _UNKNOWN
    return lease, replacing(meta)


def open_lease(path: StorePath, holder: str) -> int:
    """Take a lock, and return a handle that holds it until it is released. Wait for a lock that is not renewed.

    Raises:
        HeldError: if another process holds it.
    """
    lease = _Lease(secrets.token_hex(8), holder, 0, LEASE_SECS)
    mode: Any = "create"
    while True:
        try:
            version = replacing(put(path, msgspec.json.encode(lease), mode))
            return new_handle(LeaseHandle(path, lease, version))
        except ChangedError:
            mode, is_ours = _mode_to_take_over(path, lease.owner)
            if is_ours:
                return new_handle(LeaseHandle(path, lease, mode))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            put(path, msgspec.json.encode(lease))  # the store has no conditional writes: nothing better is possible
            return new_handle(LeaseHandle(path, lease, "overwrite"))


def _mode_to_take_over(path: StorePath, owner: str) -> tuple[Any, bool]:
    """Wait until the holder of a lock renews it, or its lease ends.

    Returns:
        The mode in which to write a new one, and whether this process has taken the lock already: the answer to its
        request may have been lost.
    """
    try:
        found, version = _read(path)
    except FileNotFoundError:
        return "create", False
    if found.owner == owner:
        return version, True
    found.seconds = min(found.seconds, 4 * LEASE_SECS)
    logger.warning("%s is held by %s; waiting up to %.0f s for its lease to end", path, found.holder, found.seconds)
    ends = time.monotonic() + found.seconds
    while time.monotonic() < ends:
        time.sleep(min(1.0, found.seconds / 10))
        try:
            now, version = _read(path)
        except FileNotFoundError:
            return "create", False
        if (now.owner, now.renewals) != (found.owner, found.renewals):
            raise HeldError(now.holder)
    return version, False
