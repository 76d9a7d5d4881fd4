"""``pytreesaver cp`` and ``convert``: write a checkpoint or a part of it elsewhere, in another format."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pytreesaver._checkpoint.copying import copy_checkpoint
from pytreesaver._cli.app import (
    Decorated,
    app,
    checkpoint_argument,
    checkpoint_path,
    output_options,
    path_argument,
    selection_of,
    selection_options,
    shows_progress,
)
from pytreesaver._cli.output import (
    bytes_text,
    write,
    write_json,
)
from pytreesaver._inspect.checkpoint import load_checkpoint
from pytreesaver._io import filesystem
from pytreesaver._io.paths import local_path
from pytreesaver._text import duplicates, plural, printable, quoted
from pytreesaver.formats.registry import is_checkpoint


def _copy_options(command: Decorated) -> Decorated:
    """Add the options that cp and convert share."""
    rename = click.option(
        "--rename",
        multiple=True,
        metavar="OLD=NEW",
        help=r"Rename a variable, or a prefix with OLD/=NEW/. Write \= for = in a name. May be repeated.",
    )
    overwrite = click.option("--overwrite", is_flag=True, help="Replace the checkpoint at TARGET.")
    return selection_options(rename(overwrite(command)))


@app.command("cp")
@checkpoint_argument("source")
@click.argument("target", help="The path of the copy, or a directory to copy into.")
@_copy_options
@output_options
def copy(
    source: Path,
    target: str,
    only: Sequence[str],
    regex: Sequence[str],
    rename: Sequence[str],
    overwrite: bool,
    json: bool,
) -> None:
    """Copy a checkpoint or a part of it. Every byte that is copied is verified.

    The ending of TARGET chooses the format of the copy: .safetensors, .npz, .msgpack, or else native. convert writes
    others. --only and --regex apply to the names in the copy.

    For example:

    \b
      pytreesaver cp runs/a/ckpt-100 backup/
      pytreesaver cp runs/a/ckpt-100 encoder --rename 'params/encoder/=encoder/' --only encoder
    """
    path = checkpoint_path(source)
    destination = local_path(target)
    if target.endswith("/") or (filesystem.is_directory(destination) and not is_checkpoint(destination)):
        destination = destination / path.absolute().name
    written = copy_checkpoint(
        path,
        destination,
        only=selection_of(only, regex),
        rename=_renamed(rename),
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


@app.command("convert")
@path_argument("source", "A checkpoint of any format, or a run directory.")
@click.argument("target", help="Where to write.")
@click.option(
    "--format",
    metavar="FORMAT",
    help="native, safetensors, npz, msgpack, tensorflow or orbax. By default, the ending of TARGET decides: "
    ".safetensors, .npz, .msgpack, or else native.",
)
@_copy_options
@click.option("--cast", metavar="DTYPE", help="Convert all floating-point arrays to this dtype.")
@click.option(
    "--shard-nbytes",
    type=int,
    metavar="N",
    help="With safetensors or tensorflow, write several files of at most N bytes each.",
)
@click.option("--lossy", is_flag=True, help="Leave out what the format cannot hold.")
@output_options
def convert(
    source: Path,
    target: str,
    format: str | None,
    only: Sequence[str],
    regex: Sequence[str],
    rename: Sequence[str],
    overwrite: bool,
    cast: str | None,
    shard_nbytes: int | None,
    lossy: bool,
    json: bool,
) -> None:
    """Convert a checkpoint, or all checkpoints of a run directory, to another format.

    --only and --regex apply to the names in the result. Everything that has a checksum is verified.

    For example:

    \b
      pytreesaver convert runs/a/ckpt-100 model.safetensors --only params --cast bfloat16
      pytreesaver convert orbax-run runs/b
    """
    from pytreesaver._checkpoint.converting import convert as convert_checkpoint
    from pytreesaver._run.listing import list_checkpoints

    written = convert_checkpoint(
        source,
        target,
        format=format,
        only=selection_of(only, regex),
        rename=_renamed(rename),
        cast=False if cast is None else cast,
        lossy=lossy,
        overwrite=overwrite,
        shard_nbytes=shard_nbytes,
        progress=shows_progress(json),
    )
    result: dict[str, Any] = {"source": str(source), "target": str(written)}
    if is_checkpoint(written):
        with load_checkpoint(written) as checkpoint:
            result |= {"variables": len(checkpoint), "nbytes": checkpoint.nbytes}
            size = f"{plural(len(checkpoint), 'variable')}, {bytes_text(checkpoint.nbytes)}"
    else:
        listed = list_checkpoints(written)
        result |= {"checkpoints": len(listed), "nbytes": sum(each.nbytes for each in listed)}
        size = f"{plural(len(listed), 'checkpoint')}, {bytes_text(result['nbytes'])}"
    if json:
        write_json(result)
    else:
        write(f"converted {printable(str(source))} to {printable(str(written))}: {size}")


def _renamed(given: Sequence[str]) -> dict[str, str] | None:
    """Return the old names by the new ones."""
    pairs = [parse_rename(each) for each in given]
    for which, names in (("old", [old for old, _ in pairs]), ("new", [new for _, new in pairs])):
        if repeated := duplicates(names):
            raise click.BadParameter(f"--rename: repeated {which} name: {', '.join(map(quoted, repeated))}")
    return {new: old for old, new in pairs} or None


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
        raise click.BadParameter(f"--rename: expected OLD=NEW, found {text!r}")
    if old.endswith("/") != new.endswith("/"):
        raise click.BadParameter(f"--rename: expected two names, or two prefixes that end in /, found {text!r}")
    return old, new
