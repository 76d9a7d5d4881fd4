"""Tests of the tests: bugs that are planted in a copy of the library, one by one. The tests have to catch each."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).parents[2]
_SAMPLE = "tests/prove/test_sample.py"
_POWER = "tests/checkpoint/test_power_failures.py"


class Bug(NamedTuple):
    """A bug: a file of the library, a text that occurs in it once, what replaces it, and tests that have to fail."""

    file: str
    right: str
    wrong: str
    tests: tuple[str, ...] = (_SAMPLE,)


_SYNC = "            os.fdatasync(descriptor)\n"
_REPLACED = "    filesystem.sync_directory(path)\n    sync_parents(path)\n"
_DELETED = "    with suppress(OSError, CheckpointError):  # the next save tries again\n"
_DELETED += "        remove_unlisted(path, replaced, layout)\n"

BUGS = {
    "no sync of the data": Bug("_io/filesystem.py", _SYNC, "            pass\n", (_SAMPLE, "-k", "power_cut")),
    "no sync of a directory": Bug(
        "_io/filesystem.py", "        os.fsync(descriptor)\n", "        pass\n", (_SAMPLE, "-k", "power_cut")
    ),
    "no sync of a new parent": Bug(
        "_io/atomic.py",
        "    above = [directory.absolute().parent for directory in reversed(created)]\n",
        "    above: list[Path] = []\n    _durable_directories[parent] = filesystem.generation(parent) or 0\n",
        (_POWER,),
    ),
    "a state file is renamed before its sync": Bug(
        "_io/atomic.py",
        "                filesystem.sync_file(descriptor)\n            filesystem.rename(hidden, path)\n",
        "                filesystem.rename(hidden, path)\n                filesystem.sync_file(descriptor)\n",
        (_SAMPLE, _POWER),
    ),
    "a file is overwritten in place": Bug(
        "formats/single_file.py",
        "            with new_locked_file(temporary, locks) as (descriptor, _):\n",
        "            path.unlink(missing_ok=True)\n            temporary = path\n"
        "            with new_locked_file(temporary, locks) as (descriptor, _):\n",
        (_SAMPLE, "-k", "kill and overwrite"),
    ),
    "a short write is ignored": Bug(
        "_io/files.py", "        left -= written\n", "        left = 0\n", (_SAMPLE, "-k", "fewer")
    ),
    "a failed sync is tried again": Bug(
        "_io/filesystem.py",
        _SYNC,
        "            try:\n                os.fdatasync(descriptor)\n            except OSError:\n"
        "                os.fdatasync(descriptor)\n",
        (_SAMPLE, "-k", "failed_sync"),
    ),
    "the old data is deleted before the new index is durable": Bug(
        "formats/indexed/directory.py", _REPLACED + _DELETED, _DELETED + _REPLACED, (_POWER,)
    ),
    "no checksum in mapped arrays": Bug(
        "formats/indexed/reader.py",
        "            if verify and self._files.has_checksums:\n",
        "            if False:\n",
        (_SAMPLE, "-k", "flipped_bit"),
    ),
    "no checksum in slices and sharded arrays": Bug(
        "formats/indexed/reader.py",
        "        checks = self._files.new_checks() if verify else None\n",
        "        checks = None\n",
        (_SAMPLE, "-k", "flipped_bit"),
    ),
    "no checksum in whole arrays": Bug(
        "formats/indexed/reader.py",
        "self._read_ranges(file, self._files.ranges(chunks, verify))",
        "self._read_ranges(file, self._files.ranges(chunks, False))",
        (_SAMPLE, "-k", "flipped_bit"),
    ),
    "retention deletes the newest": Bug(
        "_run/policies/retention.py", "[-self.count :]", "[: self.count]", ("tests/run/policies/test_retention.py",)
    ),
    "an index is trusted with the data of another checkpoint": Bug(
        "formats/indexed/files.py",
        "        if header_checksum(header.tobytes()) != expected.header_checksum:\n",
        "        if False:\n",
        ("tests/checkpoint/test_crashes.py", "-k", "data_of_another"),
    ),
    "a link is made from a damaged base": Bug(
        "formats/native/base.py",
        "    if not untrusted:\n",
        "    if untrusted is not None:\n",
        ("tests/checkpoint/test_incremental.py",),
    ),
    "leftovers are removed without a lock": Bug(
        "_io/atomic.py",
        "                    if filesystem.try_lock(descriptor) and filesystem.is_linked(descriptor):\n",
        "                    if filesystem.is_linked(descriptor):\n",
        ("tests/checkpoint/test_crashes.py", "-k", "leftovers"),
    ),
    "a pin is not durable": Bug(
        "_io/atomic.py",
        "    filesystem.sync_directory(marker.parent)\n",
        "",
        (_SAMPLE, "-k", "simulated"),
    ),
    "an error of close is ignored": Bug(
        "_io/filesystem.py",
        'failed writes only here."""\n    os.close(descriptor)\n',
        'failed writes only here."""\n    with suppress(OSError):\n        os.close(descriptor)\n',
        ("tests/io/test_lacking_file_systems.py", "-k", "closed"),
    ),
    "the checksum of a state file is ignored": Bug(
        "_run/state_file.py",
        "    if known and _checksum_text(content) not in known and",
        "    if False and",
        ("tests/run/test_state_file.py",),
    ),
}


def is_caught(bug: Bug, directory: Path) -> bool:
    """Plant a bug in a copy of the project, and return whether its tests fail."""
    copy = directory / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "*.pyc", "__pycache__", "corpus", "build", "dist")
    shutil.copytree(_ROOT, copy, ignore=ignored)
    file = copy / "pytreesaver" / bug.file
    text = file.read_text()
    if text.count(bug.right) != 1:
        raise ValueError(f"{bug.file}: expected once, found {text.count(bug.right)} times: {bug.right!r}")
    if bug.tests not in _PASSED:
        if not _passes(copy, bug.tests):
            raise RuntimeError(f"{bug.tests}: expected to pass without the bug")
        _PASSED.add(bug.tests)
    file.write_text(text.replace(bug.right, bug.wrong))
    return not _passes(copy, bug.tests)


_PASSED: set[tuple[str, ...]] = set()
"""Tests that pass in the unchanged copy."""


def _passes(copy: Path, tests: tuple[str, ...]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    finished = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode not in (0, 1):
        raise RuntimeError(f"the tests did not run: {finished.stdout[-2000:]}{finished.stderr[-2000:]}")
    return finished.returncode == 0


def run(names: Iterable[str] = tuple(BUGS)) -> dict[str, bool]:
    """Return whether each bug is caught."""
    with tempfile.TemporaryDirectory() as directory:
        return {name: is_caught(BUGS[name], Path(directory)) for name in names}
