"""``pytreesaver cp``: copy a checkpoint or a part of it."""

import re
from pathlib import Path
from typing import Annotated

import typer

from pytreesaver._checkpoint.copying import copy_checkpoint
from pytreesaver._cli.app import (
    CheckpointPath,
    Debug,
    Json,
    Only,
    Regex,
    app,
    checkpoint_path,
    selection_of,
    shows_progress,
)
from pytreesaver._cli.output import bytes_text, plural, write, write_json
from pytreesaver._inspect.checkpoint import load_checkpoint
from pytreesaver._io import filesystem
from pytreesaver._text import duplicates, printable, quoted
from pytreesaver.formats.registry import is_checkpoint


@app.command("cp")
def copy(
    source: CheckpointPath,
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="The path of the copy, or a directory to copy into.", show_default=False),
    ],
    only: Only = None,
    regex: Regex = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help=r"Rename a variable, or a prefix with OLD/=NEW/. Write \\= for = in a name. May be repeated.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at TARGET.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy a checkpoint or a part of it. Every byte that is copied is verified.

    --only and --regex apply to the names in the copy.

    For example:

    ```
    pytreesaver cp runs/a/ckpt-100 backup/
    pytreesaver cp runs/a/ckpt-100 encoder --rename 'params/encoder/=encoder/' --only encoder
    ```
    """
    path = checkpoint_path(source)
    destination = Path(target)
    if target.endswith("/") or (filesystem.is_directory(destination) and not is_checkpoint(destination)):
        destination = destination / path.absolute().name
    pairs = [parse_rename(each) for each in rename or []]
    renamed = {new: old for old, new in pairs}
    for which, names in (("old", [old for old, _ in pairs]), ("new", [new for _, new in pairs])):
        if repeated := duplicates(names):
            raise typer.BadParameter(f"--rename: repeated {which} name: {', '.join(map(quoted, repeated))}")
    written = copy_checkpoint(
        path,
        destination,
        only=selection_of(only, regex),
        rename=renamed or None,
        overwrite=overwrite,
        progress=shows_progress(json),
    )
    with load_checkpoint(written) as checkpoint:
        if json:
            write_json(
                {"source": str(path), "target": str(written), "variables": len(checkpoint), "nbytes": checkpoint.nbytes}
            )
        else:
            size = f"{plural(len(checkpoint), 'variable')}, {bytes_text(checkpoint.nbytes)}"
            write(f"copied {printable(str(path))} to {printable(str(written))}: {size}")


def parse_rename(text: str) -> tuple[str, str]:
    r"""Split OLD=NEW into the two names.

    Example:
        >>> parse_rename("encoder/=backbone/")
        ('encoder/', 'backbone/')
        >>> parse_rename(r"a\=b=c")
        ('a=b', 'c')
    """
    parts = [part.replace("\\=", "=") for part in re.split(r"(?<!\\)=", text)]
    old, new = (parts[0], parts[-1]) if len(parts) == 2 else ("", "")
    if not (old and new):
        raise typer.BadParameter(f"--rename: expected OLD=NEW, found {text!r}")
    if old.endswith("/") != new.endswith("/"):
        raise typer.BadParameter(f"--rename: expected two names, or two prefixes that end in /, found {text!r}")
    return old, new
