"""Saving to an object store in a format that can only be written to a disk: write it there, and send its files."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from pytreesaver._errors import CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.files import read_file, read_fully
from pytreesaver._io.parallel import SLICE_NBYTES
from pytreesaver._io.paths import local_path
from pytreesaver._io.stores import objects
from pytreesaver._io.stores.dispatch import is_locked
from pytreesaver._io.stores.engine import ChangedError
from pytreesaver._io.stores.objects import version_to_replace
from pytreesaver.formats import places
from pytreesaver.formats.protocol import Format
from pytreesaver.formats.registry import format_at


def write_and_upload(target: Path, writer: Format, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Write a checkpoint into a temporary directory, then send it to an object store, its index last.

    If that fails, what was sent is deleted. What an interrupted save has left is deleted by the next one to the path
    if no other can be writing it now: this one has the lock of the run, it overwrites, or the objects are an hour old.

    Args:
        target: the path in the store.
        writer: the format.
        write: writes the checkpoint to a path on the disk.
        overwrite: replace an existing checkpoint of the format, if it is a single file.

    Raises:
        CheckpointExistsError: if `target` exists and may not be replaced.
    """
    mode: Any = version_to_replace(cast(Any, target)) if overwrite else "create"
    is_replaced = _refuse(target, writer, overwrite)
    with tempfile.TemporaryDirectory(prefix="pytreesaver-") as directory:
        local = Path(directory) / target.name
        write(local)
        files = _in_order(_files_of(local), local, writer)
        paths = [target.parent / file.relative_to(directory) for file in files]
        if is_replaced and len(files) > 1:
            raise _several_files(target, writer)
        if not is_replaced:
            _remove_leftovers(target, writer, paths, overwrite=overwrite)
        sent: list[Path] = []
        try:
            for file, path in zip(files, paths, strict=True):
                _upload(file, path, mode if file == local else "create")
                sent.append(path)
        except BaseException:
            for path in reversed(sent):
                with suppress(OSError):
                    filesystem.remove_file(path)
            raise


def _in_order(files: Sequence[Path], local: Path, writer: Format) -> list[Path]:
    """Return the files in the order in which they are sent."""
    prepare = getattr(writer, "prepare_upload", None)
    if prepare is not None:
        return [local / name for name in prepare(local)]
    heading = writer.heading_file(local)
    return sorted(files, key=lambda file: (file == heading, file))


def _refuse(target: Path, writer: Format, overwrite: bool) -> bool:
    """Return whether there is a checkpoint, which will be replaced.

    Raises:
        CheckpointExistsError: if it may not be, or something else is there.
    """
    is_checkpoint = writer.recognizes(target)
    if not overwrite and (is_checkpoint or filesystem.is_regular_file(target)):
        raise CheckpointExistsError(f"{target} exists already; pass overwrite=True to replace a checkpoint")
    if is_checkpoint and len(places.file_sizes(target)) > 1:
        raise _several_files(target, writer)
    if not is_checkpoint and filesystem.is_regular_file(target):
        raise _something_else(target, writer)
    return is_checkpoint


def _several_files(target: Path, writer: Format) -> CheckpointExistsError:
    return CheckpointExistsError(
        f"{target}: a checkpoint of several files in the format {writer.name} cannot replace another one in an object "
        "store; remove that first, or save elsewhere"
    )


def _something_else(target: Path, writer: Format) -> CheckpointExistsError:
    return CheckpointExistsError(
        f"{target}: expected a checkpoint of the format {writer.name} to overwrite, found something else; save "
        "elsewhere, or remove it if it is not needed"
    )


_LEFT_OVER_SECS = 3600.0


def _remove_leftovers(target: Any, writer: Format, paths: Sequence[Path], *, overwrite: bool) -> None:
    """Delete the objects of an interrupted save.

    Raises:
        CheckpointExistsError: if there is anything else, or another process may be writing it.
    """
    found = {str(target / name): meta for name, meta in objects.objects_under(target)}
    beside = [cast(Any, path) for path in paths if path.parent == target.parent]
    found |= {str(path): objects.head(path) for path in beside if filesystem.is_regular_file(path)}
    if not found:
        return
    is_left_over = getattr(writer, "is_left_over", None)
    are_ours = set(found) <= set(map(str, paths)) if is_left_over is None else is_left_over(target)
    if not are_ours or format_at(target) is not None:
        raise _something_else(target, writer)
    newest = max(meta["last_modified"].timestamp() for meta in found.values())
    if not (overwrite or is_locked() or time.time() - newest > _LEFT_OVER_SECS):
        raise CheckpointExistsError(
            f"{target}: expected nothing there, found objects of a save that was interrupted, or that is not finished; "
            "pass overwrite=True to delete them"
        )
    for path in found:
        filesystem.remove_file(local_path(path))


def _files_of(path: Path) -> list[Path]:
    if filesystem.is_directory(path):
        return [path / name for name in filesystem.file_sizes(path)]
    return [path] if filesystem.exists(path) else places.files_beside(path)


def _upload(file: Path, target: Any, mode: Any) -> None:
    """Send a file. Up to a size, only if the object still is the version that `mode` names."""
    descriptor = filesystem.open_existing(file)
    try:
        size = filesystem.file_size(descriptor)
        if size <= _MOST_CONDITIONAL_NBYTES:
            objects.put(target, read_file(descriptor), mode)
            return

        def parts() -> Iterator[memoryview]:
            for begin in range(0, size, SLICE_NBYTES):
                part = np.empty(min(SLICE_NBYTES, size - begin), np.uint8)
                read_fully(descriptor, part, begin)
                yield memoryview(part)  # type: ignore[arg-type]

        objects.put_stream(target, parts, size)
    except ChangedError as error:
        raise CheckpointExistsError(f"{target} was written by another process during the save") from error
    finally:
        filesystem.release(descriptor)


_MOST_CONDITIONAL_NBYTES = 64 << 20
"""Larger objects are sent in parts, for which stores know no conditions."""
