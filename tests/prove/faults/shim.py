"""The preloaded library that counts calls and makes one of them fail, as Python sees it."""

import ctypes
import enum
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple


class Kinds(enum.IntFlag):
    """What a call does. The numbers are those of shim.c."""

    LOOK = 1
    OPEN = 2
    READ = 4
    NAME = 8
    WRITE = 16
    SYNC = 32
    CLOSE = 64
    LOCK = 128
    MOVE = 256
    """Reads and writes, of which `Action.SHORTEN` makes shorter ones. They are of a kind above too."""


CHANGES = Kinds.NAME | Kinds.WRITE | Kinds.SYNC
"""The calls between which the state of the disk can differ."""

EVERYTHING = Kinds(511)


class Action(enum.IntEnum):
    """What happens at the call. The numbers are those of shim.c."""

    KILL = 1
    CUT_POWER = 2
    FAIL = 3
    SHORTEN = 4


class Fault(NamedTuple):
    """A fault at call `number`, from 1, among those of some kinds. `code` is the errno of `Action.FAIL`."""

    action: Action
    kinds: Kinds
    number: int
    code: int = 0


@functools.cache
def library() -> Path:
    """Compile the library, unless that has been done."""
    source = Path(__file__).with_name("shim.c")
    version = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    target = Path(__file__).parents[3] / "build" / "faults" / f"shim-{version}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        compiled = target.with_suffix(f".{os.getpid()}")
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *flags, "-o", compiled, source, "-ldl"], check=True)
        compiled.replace(target)
    return target


def why_not() -> str:
    """Return why the library cannot be used on this machine, or nothing."""
    if os.uname().sysname != "Linux":
        return "needs Linux"
    return "" if shutil.which("gcc") else "needs gcc"


class Shim:
    """The library in this process, into which it has been preloaded."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.faults_failed.restype = ctypes.c_char_p

    def arm(self, root: Path, fault: Fault, disk: int = -1) -> None:
        """Begin to count the calls on what is below `root`. `disk` is a descriptor of the disk whose power is cut."""
        number = ctypes.c_long(fault.number)
        self._library.faults_arm(os.fsencode(root), int(fault.kinds), number, int(fault.action), fault.code, disk)

    def disarm(self) -> None:
        """Count no more calls."""
        self._library.faults_disarm()

    @property
    def failed(self) -> str:
        """The call that failed, and its file."""
        return os.fsdecode(self._library.faults_failed())
