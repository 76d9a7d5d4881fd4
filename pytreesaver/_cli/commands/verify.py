"""``pytreesaver verify``: verify the checksums of checkpoints."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytreesaver._cli.app import app, output_options, path_argument, shows_progress
from pytreesaver._cli.output import (
    bytes_text,
    styled,
    write,
    write_json,
)
from pytreesaver._cli.program import EXIT_FOUND, EXIT_OK, one_line
from pytreesaver._errors import (
    CheckpointError,
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    MissingPackageError,
)
from pytreesaver._inspect.checkpoint import load_checkpoint
from pytreesaver._io import filesystem
from pytreesaver._run.listing import list_checkpoints
from pytreesaver._text import plural, printable, quoted
from pytreesaver.formats.foreign import foreign_kind
from pytreesaver.formats.registry import is_checkpoint


@app.command("verify")
@path_argument(
    "paths",
    "Checkpoints, or run directories, whose checkpoints are all verified.",
    metavar="PATH...",
    nargs=-1,
    required=True,
)
@output_options
def verify(paths: Sequence[Path], json: bool) -> int:
    """Read every byte of checkpoints and verify all checksums. The exit code is 1 if any is damaged or unreadable.

    For example:

    \b
      pytreesaver verify runs/a/ckpt-100
      pytreesaver verify runs/a runs/b
    """
    results = []
    missing = []
    for path in paths:
        try:
            checkpoints = list(_checkpoints(path))
        except CheckpointNotFoundError as error:  # continue with the other paths
            missing.append(str(error))
            continue
        for checkpoint in checkpoints:
            result = _verify_one(checkpoint, progress=shows_progress(json))
            results.append(result)
            if not json:
                _write_result(result)
    if json and (results or not missing):
        write_json({"checkpoints": results})
    if missing:
        raise CheckpointNotFoundError("\n".join(missing))
    return EXIT_OK if all(result["intact"] for result in results) else EXIT_FOUND


def _checkpoints(path: Path) -> Iterator[Path]:
    if is_checkpoint(path):
        yield path
        return
    listed = list_checkpoints(path) if filesystem.is_directory(path) else []
    if not listed:
        found = foreign_kind(path) or "neither"
        raise CheckpointNotFoundError(f"{path}: expected a checkpoint or a directory of checkpoints, found {found}")
    yield from (each.path for each in listed)


def _verify_one(path: Path, *, progress: bool) -> dict[str, Any]:
    started = time.monotonic()
    result: dict[str, Any] = {
        "path": str(path),
        "intact": True,
        "damaged": [],
        "unreadable": False,
        "problem": None,
        "variables": None,
        "nbytes": None,
    }
    try:
        with load_checkpoint(path) as checkpoint:
            result |= {"variables": len(checkpoint), "nbytes": checkpoint.nbytes}
            checkpoint.verify(progress=progress)
    except MissingPackageError:
        raise
    except CheckpointError as error:  # continue with the other checkpoints
        damaged = list(error.damaged) if isinstance(error, CorruptCheckpointError) else []
        unreadable = isinstance(error, CheckpointIOError)  # by the system: it may be intact
        result |= {"intact": False, "damaged": damaged, "unreadable": unreadable, "problem": str(error)}
    return {**result, "seconds": round(time.monotonic() - started, 3)}


def _write_result(result: dict[str, Any]) -> None:
    if result["intact"]:
        rate = bytes_text(result["nbytes"] / max(result["seconds"], 1e-3))
        facts = f"{plural(result['variables'], 'variable')}, {bytes_text(result['nbytes'])}, {rate}/s"
        write(f"{styled('intact', 'bold green')}   {printable(result['path'])}: {facts}")
        return
    label = "UNREADABLE" if result["unreadable"] else "DAMAGED"
    write(f"{styled(label, 'bold red')}  {one_line(result['problem'].splitlines()[0])}")
    for name in result["damaged"]:
        write(f"         {printable(quoted(name))}")
