"""A meeting: the messages that the processes of a program exchange during one call that all of them make.

Process 0 decides, and the others hear of it. Every wait has a deadline, and its error names the processes that are
missing. A process that fails tells the others why, and they raise the same error.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar, cast, get_args

import msgspec

from pytreesaver import _errors
from pytreesaver._errors import CheckpointError, CheckpointIOError, CorruptCheckpointError, ProcessTimeoutError
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.processes.coordinator import (
    Coordinator,
    CoordinatorLostError,
    Processes,
    current_processes,
    next_number,
)

T = TypeVar("T")
WhichProcesses = Literal["all", "this"]
"""The argument `processes`: whether all processes of the program take part in a call, or this one alone."""

ROOT = "pytreesaver"
DEFAULT_TIMEOUT = 600.0
"""How long a process waits for another one, in seconds, if the caller passes nothing else."""

_MAX_GRACE_SECS = 5.0


class _Failure(msgspec.Struct, array_like=True):
    rank: int
    kind: str
    message: str
    errno: int | None = None
    names: list[str] = []
    ranks: list[int] = []

    def as_error(self) -> CheckpointError:
        message = f"process {self.rank}: {self.message}"
        kind: Any = getattr(_errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, CheckpointError)):
            return CheckpointError(f"process {self.rank}: {self.kind}: {self.message}")
        if issubclass(kind, CheckpointIOError):
            return kind(message, self.errno)
        if issubclass(kind, CorruptCheckpointError):
            return kind(message, damaged=self.names)
        return kind(message, missing=self.ranks) if issubclass(kind, ProcessTimeoutError) else kind(message)


class Meeting:
    """The messages of one call.

    Args:
        processes: who takes part.
        what: what the call does, for messages, such as ``"save to model-100"``.
        subject: what it is about. Calls about different subjects may overlap; those about one subject happen in the
            same order in every process.
        timeout: how long to wait for another process, in seconds.
        options: the arguments that have to be the same in all processes.

    Attributes:
        rank: the number of this process.
        count: the number of processes.
        is_first: whether this is process 0, which decides.
        has_failed_first: whether process 0 has said that it failed.
    """

    def __init__(
        self, processes: Processes, what: str, subject: str, timeout: float = DEFAULT_TIMEOUT, options: Any = None
    ) -> None:
        self.rank, self.count, self._coordinator = processes.rank, processes.count, processes.coordinator
        self.is_first = self.rank == 0
        self.what = what
        self._timeout = timeout
        # Each message begins with it, so that messages of different calls are not taken for each other's.
        self._call = checksum(f"{what} {options}".encode()).to_bytes(8, "little")
        digest = f"{checksum(subject.encode()):016x}"
        self._subject = f"{ROOT}/{digest}"
        self._directory = f"{self._subject}/{next_number(self._coordinator, subject)}"
        self._is_announced = False
        self.has_failed_first = False
        self._has_failed = False
        self._has_gathered = False

    def publish(self, key: str, value: bytes) -> None:
        """Send a message to all."""
        self._announce()
        self._coordinator.put(f"{self._directory}/{key}", self._call + value)

    def _content(self, message: bytes, rank: int) -> bytes:
        """Return what a message says. Raises a CheckpointError if it is of another call."""
        if message[: len(self._call)] == self._call:
            return message[len(self._call) :]
        calls: dict[str, bytes] = {}
        with suppress(CheckpointError):
            calls = self._coordinator.list(f"{ROOT}/calls/")
        last = calls.get(f"{ROOT}/calls/{rank}", b"unknown").decode()
        raise CheckpointError(
            f"{self.what}: process {rank} makes another call at this point, or with other arguments (its last call: "
            f"{last}); every process has to make the same calls in the same order"
        )

    def hear(self, key: str, purpose: str) -> bytes:
        """Return the message of process 0 with this key, waiting for it.

        Args:
            key: the key.
            purpose: what process 0 does meanwhile, for messages, such as ``"begin"``.

        Raises:
            ProcessTimeoutError: if it has not come in time.
            The error of another process that failed.
        """
        self._announce()
        value = self._wait(key, self._timeout)
        if value is None:
            late = self._parts_missing()
            also = f", which lacks the parts of {_ranks(late)}" if late else ""
            raise self._late([0], purpose, self._timeout, also)
        return self._content(value, 0)

    def wait_for(self, key: str, rank: int, purpose: str) -> bytes:
        """Return the message of another process with this key, waiting for it. Raises what `hear` raises."""
        value = self._wait(key, self._timeout)
        if value is None:
            raise self._late([rank], purpose, self._timeout)
        return self._content(value, rank)

    def first(self, key: str, make: Callable[[], T], type: type[T], purpose: str) -> T:
        """Return what `make` returns in process 0, in all processes. The value is sent as a message of this type."""
        if not self.is_first:
            return msgspec.msgpack.decode(self.hear(key, purpose), type=type)
        value = make()
        self.publish(key, msgspec.msgpack.encode(value))
        return value

    def gather(self, key: str, value: bytes, purpose: str) -> list[bytes]:
        """Return the messages of all processes in process 0, and nothing in the others.

        Raises:
            ProcessTimeoutError: in process 0, if one has not come in time. It names all of these processes.
            The error of another process that failed.
        """
        if not self.is_first:
            self.publish(f"{key}/{self.rank}", value)
            return []
        self._announce()
        self._has_gathered = True
        values = {0: value}
        seconds = self._timeout - min(self._timeout / 10, _MAX_GRACE_SECS)  # the others hear of it before they give up
        deadline = time.monotonic() + seconds
        prefix = f"{self._directory}/{key}/"
        while True:
            found = self._coordinator.list(prefix)
            for name, message in found.items():
                rank = int(name.rpartition("/")[2])
                values[rank] = self._content(message, rank)
            missing = [rank for rank in range(self.count) if rank not in values]
            if not missing:
                return [values[rank] for rank in range(self.count)]
            self.raise_failure()
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._late(missing, purpose, seconds)
            self._coordinator.get(f"{prefix}{missing[0]}", min(left, self._slice()))

    def raise_flag(self, name: str, value: bytes) -> None:
        """Tell process 0 something about the subject, in this meeting or a later one."""
        self._coordinator.put(f"{self._subject}/{name}/{self.rank}", value, replace=True)

    def flags(self, name: str) -> list[bytes]:
        """Return what the processes have told with `raise_flag`."""
        return list(self._coordinator.list(f"{self._subject}/{name}/").values())

    def lower_flags(self, name: str) -> None:
        """Delete what the processes have told with `raise_flag`."""
        self._coordinator.delete(f"{self._subject}/{name}/")

    def _announce(self) -> None:
        # Only the error of a process that waits in vain reads this.
        if not self._is_announced:
            self._is_announced = True
            self._coordinator.put(f"{ROOT}/calls/{self.rank}", self.what.encode(), replace=True)

    def _slice(self) -> float:
        """How long to wait before looking for failures, in seconds: the coordinator has to answer all processes."""
        return max(0.25, self.count / 2000)

    def _wait(self, key: str, seconds: float) -> bytes | None:
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            value = self._coordinator.get(f"{self._directory}/{key}", max(0.001, min(left, self._slice())))
            if value is not None:
                return value
            self.raise_failure()
            if left <= 0:
                return None

    def raise_failure(self) -> None:
        """Raise the error of another process, if one has failed."""
        failures = self._coordinator.list(f"{self._directory}/failed/")
        own = f"{self._directory}/failed/{self.rank}"
        for name in sorted(failures):
            if name != own:
                failure = msgspec.msgpack.decode(failures[name], type=_Failure)
                self._has_failed, self.has_failed_first = True, failure.rank == 0
                raise failure.as_error()

    def _parts_missing(self) -> list[int]:
        with suppress(CheckpointError):
            names = self._coordinator.list(f"{self._directory}/{PARTS}/")
            found = {int(name.rpartition("/")[2]) for name in names}
            return [rank for rank in range(1, self.count) if rank not in found | {self.rank}]
        return []

    def _late(self, missing: Sequence[int], purpose: str, seconds: float, also: str = "") -> ProcessTimeoutError:
        calls: dict[str, bytes] = {}
        with suppress(CheckpointError):
            calls = self._coordinator.list(f"{ROOT}/calls/")
        notes = []
        for rank in missing[:5]:
            call = calls.get(f"{ROOT}/calls/{rank}", b"none").decode()
            notes.append(f"the last call of process {rank}: {'the same as this one' if call == self.what else call}")
        return ProcessTimeoutError(
            f"{self.what}: {_ranks(missing)} of {self.count} did not {purpose} within {seconds:g} s{also}; "
            f"{'; '.join(notes)}; every process has to make the same calls, and timeout= says how long to wait",
            missing=missing,
        )

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process failed, unless its error is theirs."""
        if self._has_failed or isinstance(error, CoordinatorLostError):
            return
        self._has_failed = True
        number = getattr(error, "errno", None)
        ranks = error.missing if isinstance(error, ProcessTimeoutError) else []
        names = error.damaged if isinstance(error, CorruptCheckpointError) else []
        failure = _Failure(self.rank, type(error).__name__, str(error) or "interrupted", number, names, ranks)
        with suppress(CheckpointError):
            self._coordinator.put(f"{self._directory}/failed/{self.rank}", msgspec.msgpack.encode(failure))

    def forget(self) -> None:
        """Let the messages be deleted: those of the others now, and those of process 0 when all must have read them."""
        if not self.is_first:
            return
        now = time.monotonic()
        with _ended_lock:
            entry = (now + 2 * self._timeout, next(_ended_numbers), self._directory, self._coordinator)
            heapq.heappush(_ended, entry)
            old = [heapq.heappop(_ended) for _ in range(_MOST_FORGOTTEN) if _ended and _ended[0][0] < now]
        with suppress(CheckpointError):
            if self._has_gathered:
                self._coordinator.delete(f"{self._directory}/{PARTS}/")
            for _, _, directory, coordinator in old:
                coordinator.delete(f"{directory}/")


PARTS = "part"
"""The key of the parts of the processes."""

_ended: list[tuple[float, int, str, Coordinator]] = []
_ended_numbers = itertools.count()
_ended_lock = threading.Lock()
_MOST_FORGOTTEN = 2  # meetings at a time: more than one ends, so that they do not pile up


def _ranks(ranks: Sequence[int]) -> str:
    some = ", ".join(map(str, ranks[:20])) + (f" and {len(ranks) - 20} more" if len(ranks) > 20 else "")
    return f"process{'es' * (len(ranks) != 1)} {some}"


@contextmanager
def telling(meeting: Meeting | None) -> Iterator[None]:
    """Tell the other processes if the ``with`` block fails in this one."""
    try:
        yield
    except BaseException as error:
        if meeting is not None:
            meeting.fail(error)
            meeting.forget()
        raise


def is_first(meeting: Meeting | None) -> bool:
    """Return whether this process decides: it is process 0, or there are no others."""
    return meeting is None or meeting.is_first


def check_timeout(timeout: object) -> float:
    """Return the argument `timeout`.

    Raises:
        TypeError, ValueError: if it is not a positive number of seconds.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout: expected a number of seconds, found {timeout!r}")
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout: expected a positive number of seconds, found {timeout!r}")
    return float(timeout)


def check_processes(processes: object) -> WhichProcesses:
    """Return the argument `processes`. Raises a ValueError if it is invalid."""
    if processes not in get_args(WhichProcesses):
        raise ValueError(f'processes: expected "all" or "this", found {processes!r}')
    return cast(WhichProcesses, processes)


def check_taking_part(processes: object, timeout: object) -> tuple[WhichProcesses, float]:
    """Return the arguments `processes` and `timeout`. Raises a TypeError or ValueError if one is invalid."""
    return check_processes(processes), check_timeout(timeout)


def next_of(subject: str) -> int:
    """Return how many times this process has asked for this subject before; 0 if it is the only process."""
    current = current_processes()
    return 0 if current is None else next_number(current.coordinator, subject)


def new_meeting(
    what: str, subject: str, timeout: float, processes: WhichProcesses = "all", options: Any = None
) -> Meeting | None:
    """Return a meeting of the processes of this program, or None if it is the only one, or acts alone.

    Args:
        what: as in `Meeting`.
        subject: as in `Meeting`.
        timeout: as in `Meeting`.
        processes: ``"all"``, or ``"this"`` if this process acts alone.
        options: as in `Meeting`.

    Raises:
        TypeError, ValueError: if an argument is invalid.
    """
    seconds = check_timeout(timeout)
    current = current_processes() if check_processes(processes) == "all" else None
    return None if current is None else Meeting(current, what, subject, seconds, options)
