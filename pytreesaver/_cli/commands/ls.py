"""``pytreesaver ls``: list the checkpoints of a run, or the variables of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from pytreesaver._cli.app import app, output_options, path_argument, selection_of, selection_options
from pytreesaver._cli.program import EXIT_FOUND, EXIT_OK
from pytreesaver.formats.registry import is_checkpoint


@app.command("ls")
@path_argument("path", "A run directory or a checkpoint. By default, the current directory.", default=".")
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Show N levels of the tree.")
@selection_options
@click.option(
    "--sort", type=click.Choice(["name", "size"]), default="name", help="Sort by name, or by size, largest first."
)
@click.option("--fold", is_flag=True, help="Fold repeated layers into one: layer_{0..47}.")
@click.option("--flat", is_flag=True, help="List full names instead of a tree.")
@output_options
def list_path(
    path: Path,
    depth: int | None,
    only: Sequence[str],
    regex: Sequence[str],
    sort: Literal["name", "size"],
    fold: bool,
    flat: bool,
    json: bool,
) -> int:
    """List the checkpoints of a run directory, or the variables of a checkpoint.

    For a run, shows the step, age, size, metrics and metadata of each checkpoint, and why retention keeps it or that it
    will be deleted; after incremental saves also how much each wrote, and how much deleting it would free. For a
    checkpoint, shows the functions that are stored in it, and the tree of its variables with types, sizes and shares,
    and the totals of each branch. The exit code is 1 if a file is missing or has the wrong size. Use verify to check
    the contents.

    For example:

    \b
      pytreesaver ls runs/a
      pytreesaver ls runs/a/ckpt-100 --depth 2 --sort size
      pytreesaver ls runs/a/ckpt-100 --only 'params/**/kernel' --fold
    """
    if (fold or depth) and (flat or json):
        raise click.BadParameter("--depth and --fold cannot be combined with --flat or --json")
    if is_checkpoint(path):
        from pytreesaver._cli.variable_table import list_variables

        list_variables(path, selection_of(only, regex), depth=depth, sort=sort, fold=fold, flat=flat, json=json)
        return EXIT_OK
    from pytreesaver._cli.run_table import list_run
    from pytreesaver._run.listing import list_checkpoints

    listed = list_checkpoints(path)
    if depth or only or regex or fold or flat or sort != "name":
        newest = f"; the newest one is {listed[-1].path}" if listed else ""
        raise click.BadParameter(f"{path} is a run directory, but these options require a checkpoint{newest}")
    list_run(path, listed, json=json)
    return EXIT_FOUND if any(each.problem for each in listed) else EXIT_OK
