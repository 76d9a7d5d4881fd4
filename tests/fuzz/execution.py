"""One execution of a parser, and what must hold: a value or a CheckpointError, soon, in little memory, nothing open."""

import gc
import os
import resource
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fuzz.mutations import changed_bytes

import pytreesaver as pts

MOST_SECS = 1.0
"""How long each way to use an input may take, of the time of the processor."""

MOST_KIB = 256 << 10


class Target(NamedTuple):
    """A parser.

    Attributes:
        seeds: valid inputs.
        run: uses an input as a user would. Every call in it may raise a CheckpointError.
        mutate: returns another input, mostly one with the right checksums. It may fail.
        executions: how many random inputs each run of the tests takes.
    """

    seeds: Sequence[bytes]
    run: Callable[[bytes], object]
    mutate: Callable[[bytes, Any], bytes]
    executions: int = 200


class Violation(AssertionError):
    """An input did what no input may do. The message says what, and where."""


def next_input(target, content, random):
    """Return another input. What cannot be parsed to be changed, or is nested too deeply, has some bytes changed."""
    try:
        return target.mutate(content, random)
    except Exception:  # of any of the decoders
        return changed_bytes(content, random)


def tried(function, *arguments, **options):
    """Call a function, and return its result, or None if it raised a CheckpointError."""
    started = time.process_time()
    try:
        return function(*arguments, **options)
    except pts.CheckpointError as error:
        str(error).encode()  # messages can be printed
        return None
    finally:
        spent = time.process_time() - started
        if spent > MOST_SECS:
            raise Violation(f"{getattr(function, '__name__', 'reading')} took {spent:.1f} s")


def used(path, content=b"", **restored):
    """Use a checkpoint as users do: restore, list, read all, slice, verify. Some are also copied or compared."""
    tried(pts.restore, path, **restored)
    tried(_read_all, path)
    tried(pts.verify, path)
    other = _OTHER_WAYS.get(zlib.crc32(content) % 12)
    if other is not None:
        tried(other, path)


def _read_all(path):
    with pts.load_checkpoint(path) as checkpoint:
        repr((checkpoint.metadata, checkpoint.step, checkpoint.metrics, checkpoint.time))
        for variable in checkpoint.values():
            tried(variable.read)
            if variable.shape:
                tried(variable.__getitem__, slice(0, 1))


def _copied(path):
    target = Path(path).parent / "copied"
    try:
        pts.copy_checkpoint(path, target, durable=False)
        pts.remove_checkpoint(target)
    except pts.CheckpointError:
        assert not target.exists()
        raise


LIKE = {"w": 0.5, "b": {"c": 1}}
_OTHER_WAYS = {
    0: lambda path: pts.restore(path, mmap=True),
    1: _copied,
    2: lambda path: pts.restore(path, only="w"),
    3: lambda path: pts.restore(path, LIKE, missing="keep", unexpected="ignore", mismatched="keep"),
    4: lambda path: pts.diff(path, path),
    5: lambda path: pts.restore(path, verify=False),
    6: pts.list_variables,
}


@contextmanager
def _other_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", pts.StructureWarning)
        warnings.simplefilter("ignore", pts.RetentionWarning)
        yield


def warm_up(target):
    """Run the seeds of a target once, so that what starts threads and connections does so now."""
    with _other_warnings_are_errors():
        for seed in target.seeds:
            target.run(seed)


def checked(run, content):
    """Run an input. Raise a Violation if something else than a value or a CheckpointError comes of it."""
    opened = _descriptors()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        with _other_warnings_are_errors():
            run(content)
    except pts.CheckpointError:
        pass
    except Violation:
        raise
    except Exception as error:
        raise Violation(f"{type(error).__name__}: {str(error)[:200]} at {place_of(error)}") from error
    spent = time.process_time() - started
    if spent > 5 * MOST_SECS:
        raise Violation(f"it took {spent:.1f} s")
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    if more > MOST_KIB:
        raise Violation(f"it took {more >> 10} MiB of memory")
    if _descriptors() > opened:
        gc.collect()
        if _descriptors() > opened:
            raise Violation("it left a file open")


def _descriptors():
    return len(os.listdir("/proc/self/fd"))


def place_of(error):
    """Return the line that raised, and the innermost line of the library in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/pytreesaver/" in frame.filename and "/tests/" not in frame.filename]
    parts = [f"{frame.filename.rpartition('/pytreesaver/')[2]}:{frame.lineno}" for frame in ours[-1:]]
    return " < ".join([f"{Path(frames[-1].filename).name}:{frames[-1].lineno}", *parts])


def limit_memory(nbytes):
    """Let allocations fail that would take much more memory than the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
