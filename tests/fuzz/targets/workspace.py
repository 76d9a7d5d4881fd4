"""Where targets put the files that a parser needs a path for: a directory in memory."""

import functools
import tempfile
from pathlib import Path

PARENT = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where the directory is. That of a worker is in the directory of the process that started it, which deletes it."""


@functools.cache
def _directory():
    return tempfile.TemporaryDirectory(dir=PARENT, prefix="fuzz-")


def place(name):
    """Return a path in the directory."""
    path = Path(_directory().name) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def laid_out(name, files):
    """Write files, given as pairs of what follows the name and the contents, and return their common path."""
    path = place(name)
    for ending, content in files:
        file = Path(f"{path}{ending}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path
