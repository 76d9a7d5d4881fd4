"""A scenario: a use of the library, and what has to be true of the disk whenever it is interrupted."""

import ctypes
import fcntl
import os
import re
import signal
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_FLUSHING = 2


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Scenario:
    """One use of the library. Each function runs in the same empty directory, in a process of its own or in one with
    the others.

    Attributes:
        act: the use that is interrupted.
        found: checks the state. Its argument is whether `act` has returned: then the new state is required, else the
            old or the new one is.
        before: makes the state in which `act` begins.
        again: uses the library again, without faults: this removes the leftovers.
        found_again: checks what that has done.
        is_durable: whether the new state survives a power failure once `act` has returned.
        is_foreign: whether another library does the work.
    """

    act: Callable[[], Any]
    found: Callable[[bool], Any]
    before: Callable[[], Any] = nothing
    again: Callable[[], Any] = nothing
    found_again: Callable[[], Any] = nothing
    is_durable: bool = True
    is_foreign: bool = False

    def check(self, finished: str) -> None:
        """Check the state: "yes" if `act` has returned."""
        self.found(finished == "yes")

    def sync(self) -> None:
        """Write everything to the disk of the working directory."""
        descriptor = os.open(".", os.O_RDONLY)
        if ctypes.CDLL(None).syncfs(descriptor):
            raise OSError("cannot sync the disk")
        os.close(descriptor)

    def cut_power(self, disk: str) -> None:
        """Cut the power of a disk, and end the process."""
        descriptor = os.open(disk, os.O_RDONLY)
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING))
        self.die()

    def die(self) -> None:
        """End the process."""
        os.kill(os.getpid(), signal.SIGKILL)

    def listing(self) -> Counter[str]:
        """Return how often each name occurs below the directory. Random parts of names are left out."""
        return Counter(
            re.sub(r"[0-9a-f]{16}", "*", path.relative_to(Path.cwd()).as_posix()) for path in Path.cwd().rglob("*")
        )


def debris(listing: Counter[str], references: Mapping[str, Counter[str]]) -> list[str]:
    """Return the names which neither reference has, or has as often."""
    allowed: Counter[str] = Counter()
    for reference in references.values():
        allowed |= reference
    return sorted((listing - allowed).elements())
