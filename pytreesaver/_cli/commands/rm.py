"""``pytreesaver rm``: delete checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from pytreesaver._cli.app import app, output_options, path_argument
from pytreesaver._cli.output import write, write_json
from pytreesaver._run.deleting import remove_all
from pytreesaver._text import printable


@app.command("rm")
@path_argument("paths", "The checkpoints to delete.", metavar="CHECKPOINT...", nargs=-1, required=True)
@output_options
def remove(paths: Sequence[Path], json: bool) -> None:
    """Delete checkpoints and remove them from the state files of their runs, without asking for confirmation.

    For example:

    \b
      pytreesaver rm runs/a/ckpt-100
    """
    remove_all(paths)
    if json:
        write_json({"deleted": [str(path) for path in paths]})
        return
    for path in paths:
        write(f"deleted {printable(str(path))}")
