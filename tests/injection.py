"""Makes one system call fail, as on a disk with a bad sector or a network file system."""

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

_BY_PATH = ("open", "stat", "mkdir", "rmdir", "rename", "unlink", "listdir", "scandir")
_BY_DESCRIPTOR = ("fstat", "close", "pwritev", "preadv", "fsync", "fdatasync", "ftruncate", "posix_fallocate")


class FailingCall:
    """Counts the system calls of this process on paths below `root`, and makes the call with number `failing` fail."""

    def __init__(self, root, failing, code):
        self.root = str(Path(root).resolve())
        self.failing = failing
        self.code = code
        self.calls = 0
        self.failed = None

    def is_below(self, where):
        if isinstance(where, int):
            try:
                where = os.readlink(f"/proc/self/fd/{where}")
            except OSError:
                return False
        return os.path.abspath(os.fspath(where)).startswith(self.root)

    def fails(self, name, where):
        if not self.is_below(where):
            return False
        self.calls += 1
        if self.calls == self.failing:
            self.failed = f"{name}({where})"
        return self.calls == self.failing

    def error(self):
        return OSError(self.code, os.strerror(self.code))

    @contextmanager
    def injected(self):
        originals = {name: getattr(os, name) for name in (*_BY_PATH, *_BY_DESCRIPTOR)}
        flock = fcntl.flock

        def wrapped(name, real):
            def call(where, *arguments, **options):
                if self.fails(name, where):
                    if name == "close":  # as in Linux, the descriptor is closed all the same
                        real(where)
                    raise self.error()
                return real(where, *arguments, **options)

            return call

        def failing_flock(descriptor, operation):
            if self.fails("flock", descriptor):
                raise self.error()
            return flock(descriptor, operation)

        try:
            for name, real in originals.items():
                setattr(os, name, wrapped(name, real))
            fcntl.flock = failing_flock
            yield
        finally:
            for name, real in originals.items():
                setattr(os, name, real)
            fcntl.flock = flock


def open_files_below(root):
    """Return the files below a directory that this process has open, with their numbers."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # the descriptor of the directory that is listed
            continue
        if target.startswith(str(Path(root).resolve())):
            found.append((int(descriptor), target))
    return found
