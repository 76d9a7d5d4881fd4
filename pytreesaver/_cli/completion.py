"""Completion of commands, options and names of variables in Bash, zsh and fish."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import click

VARIABLE = "_PYTREESAVER_COMPLETE"
"""A shell sets it to ask for completions."""


class _Files(NamedTuple):
    """Where a shell looks for the script, and the line in its start file that loads it."""

    script: str
    start_file: str = ""
    line: str = ""


_FILES = {
    "bash": _Files(".bash_completions/pytreesaver.sh", ".bashrc", "source ~/.bash_completions/pytreesaver.sh"),
    "zsh": _Files(".zfunc/_pytreesaver", ".zshrc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit"),
    "fish": _Files(".config/fish/completions/pytreesaver.fish"),
}


def complete(app: "click.Command") -> int:
    """Answer the script of a shell that asks for completions, and return the exit code."""
    from click.shell_completion import shell_complete

    return shell_complete(app, {}, "pytreesaver", VARIABLE, os.environ[VARIABLE])


def completion_script(app: "click.Command") -> str:
    """Return the script for the current shell, which is that of the variable SHELL."""
    from click.shell_completion import get_completion_class

    script = get_completion_class(_current_shell())
    assert script is not None, "Click knows these shells"
    return script(app, {}, "pytreesaver", VARIABLE).source()


def install_completion(app: "click.Command") -> Path:
    """Write the script to where the current shell finds it, and return its path."""
    from pytreesaver._io.atomic import make_durable_directory

    files = _FILES[_current_shell()]
    path = Path.home() / files.script
    make_durable_directory(path.parent)
    path.write_text(completion_script(app))
    if files.line:
        with (Path.home() / files.start_file).open("a+") as start_file:
            start_file.seek(0)
            if files.line not in start_file.read():
                start_file.write(f"\n{files.line}\n")
    return path


def _current_shell() -> str:
    shell = Path(os.environ.get("SHELL", "")).name
    if shell not in _FILES:
        import click

        raise click.UsageError(f"expected one of the shells {', '.join(_FILES)} in $SHELL, found {shell!r}")
    return shell
