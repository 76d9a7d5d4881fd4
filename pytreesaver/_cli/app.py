"""The Typer application, and the arguments and options that several commands share."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pytreesaver._tree.names.select import Selector, as_selection, regex

app = typer.Typer(
    name="pytreesaver",
    help="Inspect, compare, verify, convert and prune checkpoints without the program that wrote them.",
    epilog="Exit codes: 0 success; 1 a difference or damage was found; 2 wrong usage, or any other error.",
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
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]

Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="GLOB",
        help="Select variables by name: * matches within one component, ** matches any number of components, and a "
        "name without wildcards selects everything under it. May be repeated.",
    ),
]

Regex = Annotated[
    list[str] | None,
    typer.Option(
        "--regex", metavar="REGEX", help="Select variables whose names contain a match of REGEX. May be repeated."
    ),
]


def path_or_url(text: str) -> Path:
    """Return the path, or that of the URL, that was given on the command line."""
    from pytreesaver._io.paths import local_path

    try:
        return local_path(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


CheckpointPath = Annotated[
    Path,
    typer.Argument(
        parser=path_or_url,
        metavar="CHECKPOINT",
        help="A checkpoint, or a run directory, whose newest checkpoint is used.",
        show_default=False,
    ),
]


def selection_of(only: list[str] | None, regexes: list[str] | None) -> Selector | None:
    """Return the union of --only and --regex, or None if neither is given."""
    parts: list[Any] = [*(only or ()), *map(regex, regexes or ())]
    return as_selection(parts) if parts else None


def checkpoint_path(path: Path) -> Path:
    """Return the newest checkpoint if `path` is a run directory, otherwise `path` itself."""
    from pytreesaver._run.directory import checkpoint_at

    return checkpoint_at(path)


def shows_progress(json: bool) -> bool:
    """Return whether to show a progress bar: only on a terminal, and not with --json."""
    return not json and sys.stderr.isatty()


_MODULES = {"convert": "cp"}
_COMMANDS = ("ls", "show", "diff", "verify", "prune", "rm", "cp", "convert", "info", "report")


def add_commands(arguments: Sequence[str]) -> None:
    """Import only the requested command, for a fast start, or all if the first argument is not a command."""
    wanted = [each for each in arguments[:1] if each in _COMMANDS]
    for command in wanted or _COMMANDS:
        importlib.import_module(f"pytreesaver._cli.commands.{_MODULES.get(command, command)}")
