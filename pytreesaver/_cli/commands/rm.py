"""``pytreesaver rm``: delete checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from pytreesaver._cli.app import Debug, Json, app, path_or_url
from pytreesaver._cli.output import write, write_json
from pytreesaver._run.deleting import remove_all
from pytreesaver._text import printable


@app.command("rm")
def remove(
    paths: Annotated[
        list[Path], typer.Argument(parser=path_or_url, metavar="CHECKPOINT...", help="The checkpoints to delete.")
    ],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Delete checkpoints and remove them from the state files of their runs, without asking for confirmation.

    For example:

    ```
    pytreesaver rm runs/a/ckpt-100
    ```
    """
    remove_all(paths)
    if json:
        write_json({"deleted": [str(path) for path in paths]})
        return
    for path in paths:
        write(f"deleted {printable(str(path))}")
