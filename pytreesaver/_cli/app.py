"""The commands and what they have in common."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pytreesaver._tree.select import Selection, as_selection, regex

app = typer.Typer(
    name="pytreesaver",
    help="Look at checkpoints, compare them, check them, and tidy up a run. Without the program that wrote them.",
    epilog="Exit codes: 0 fine; 1 a difference or damage was found; 2 wrong usage, or no such thing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        import pytreesaver

        typer.echo(f"pytreesaver {pytreesaver.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


Json = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]

Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="GLOB",
        help="Which variables: * stands for anything in one component of a name, ** for any number of components, "
        "and a name for everything under it. May be repeated.",
    ),
]

Regex = Annotated[
    list[str] | None,
    typer.Option(
        "--regex", metavar="REGEX", help="Which variables: those whose names it is found in. May be repeated."
    ),
]

CheckpointPath = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="A checkpoint, or a run directory for its newest one.", show_default=False
    ),
]


def selection_of(only: list[str] | None, regexes: list[str] | None) -> Selection | None:
    """What --only and --regex select together; None if there are neither."""
    parts: list[Any] = [*(only or ()), *map(regex, regexes or ())]
    return as_selection(parts) if parts else None


def checkpoint_path(path: Path) -> Path:
    """The checkpoint at a path, or the newest one of the run directory there.

    Raises:
        CheckpointNotFoundError: there is neither.
    """
    from pytreesaver._errors import CheckpointNotFoundError
    from pytreesaver._run.directory import checkpoint_at

    found = checkpoint_at(path)
    if found == path and not path.exists():
        raise CheckpointNotFoundError(f"{path}: expected a checkpoint or a run directory, found nothing there")
    return found


def shows_progress(json: bool) -> bool:
    """Whether to show how far long work has come: on a terminal, and not to programs."""
    return not json and sys.stderr.isatty()


_COMMANDS = ("ls", "show", "diff", "verify", "prune", "rm", "cp", "info", "report")


def add_commands(arguments: Sequence[str]) -> None:
    """Import the command that is asked for, and with it what it needs; all of them if it is not clear which that is."""
    wanted = [each for each in arguments[:1] if each in _COMMANDS]
    for command in wanted or _COMMANDS:
        importlib.import_module(f"pytreesaver._cli.commands.{command}")
