"""The Click application, and the arguments and options that several commands share."""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pytreesaver._cli.output import styled, write
from pytreesaver._text import printable

if TYPE_CHECKING:
    from pytreesaver._tree.names.select import Selector

_MODULES = {"convert": "cp"}
_COMMANDS = ("ls", "show", "diff", "verify", "prune", "rm", "cp", "convert", "info", "report", "demo")

Decorated = TypeVar("Decorated", bound=Callable[..., Any] | click.Command)
"""What Click decorates."""


class _Help(click.HelpFormatter):
    """Writes headings in bold on a terminal."""

    def write_heading(self, heading: str) -> None:
        self.write(f"{'':>{self.current_indent}}{styled(f'{heading}:', 'bold')}\n")


class _Context(click.Context):
    formatter_class = _Help


class _Command(click.Command):
    context_class = _Context


class _Commands(click.Group):
    """The commands. The module of each is imported when it is asked for, for a fast start."""

    context_class = _Context
    command_class = _Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for name in [cmd_name] if cmd_name in _COMMANDS else _COMMANDS:
            importlib.import_module(f"pytreesaver._cli.commands.{_MODULES.get(name, name)}")
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = {name: self.get_command(ctx, name) for name in _COMMANDS}
        with formatter.section("Commands"):
            # The first sentence of each, in full.
            formatter.write_dl([(name, each.get_short_help_str(1000)) for name, each in commands.items() if each])


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import pytreesaver

        write(f"pytreesaver {pytreesaver.__version__}")
        context.exit()


def _show_completion(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from pytreesaver._cli.completion import completion_script

        write(completion_script(context.command))
        context.exit()


def _install_completion(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from pytreesaver._cli.completion import install_completion

        write(f"wrote {printable(str(install_completion(context.command)))}, which the next shell loads")
        context.exit()


def _flag(name: str, help: str, callback: Callable[..., None]) -> Callable[[Decorated], Decorated]:
    return click.option(name, is_flag=True, is_eager=True, expose_value=False, help=help, callback=callback)


@click.group(
    "pytreesaver",
    cls=_Commands,
    help="Inspect, compare, verify, convert and prune checkpoints without the program that wrote them.",
    epilog="Exit codes: 0 success; 1 a difference or damage was found; 2 wrong usage, or any other error.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@_flag("--version", "Show the version and exit.", _show_version)
@_flag("--install-completion", "Install completion for the shell in $SHELL: Bash, zsh or fish.", _install_completion)
@_flag("--show-completion", "Show the script that --install-completion installs.", _show_completion)
def app() -> None:
    """Run a command."""


def output_options(command: Decorated) -> Decorated:
    """Add --json and --debug. The latter is read by `pytreesaver._cli.program`."""
    json = click.option("--json", is_flag=True, help="Write JSON instead of text.")
    debug = click.option("--debug", is_flag=True, expose_value=False, help="Print the traceback of an error.")
    return json(debug(command))


def selection_options(command: Decorated) -> Decorated:
    """Add --only and --regex, for `selection_of`."""
    only = click.option(
        "--only",
        multiple=True,
        metavar="GLOB",
        help="Select variables by name: * matches within one component, ** matches any number of components, and a "
        "name without wildcards selects everything under it. May be repeated.",
    )
    regex = click.option(
        "--regex",
        multiple=True,
        metavar="REGEX",
        help="Select variables whose names contain a match of REGEX. May be repeated.",
    )
    return only(regex(command))


def path_or_url(text: str) -> Path:
    """Return the path, or that of the URL, that was given on the command line."""
    from pytreesaver._io.paths import local_path

    return local_path(text)


def path_argument(name: str, help: str, **settings: Any) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds an argument, which is a path or a URL."""
    return click.argument(name, type=path_or_url, help=help, **settings)


def checkpoint_argument(name: str) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds an argument for `checkpoint_path`."""
    what = "A checkpoint, or a run directory, whose newest checkpoint is used."
    return path_argument(name, what, metavar="CHECKPOINT")


def selection_of(only: Sequence[str], regexes: Sequence[str]) -> "Selector | None":
    """Return the union of --only and --regex, or None if neither is given."""
    if not (only or regexes):
        return None
    from pytreesaver._tree.names.select import as_selection, regex

    parts: list[Any] = [*only, *map(regex, regexes)]
    return as_selection(parts)


def checkpoint_path(path: Path) -> Path:
    """Return the newest checkpoint if `path` is a run directory, otherwise `path` itself."""
    from pytreesaver._run.directory import checkpoint_at

    return checkpoint_at(path)


def shows_progress(json: bool) -> bool:
    """Return whether to show a progress bar: only on a terminal, and not with --json."""
    return not json and sys.stderr.isatty()
