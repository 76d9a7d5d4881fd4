"""Run the command line."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytreesaver._errors import CheckpointError, CorruptCheckpointError
from pytreesaver._text import printable

FINE, FOUND, WRONG = 0, 1, 2
"""The exit codes: nothing to report; a difference or damage was found; wrong usage, or no such thing."""

INTERRUPTED, HUNG_UP = 128 + signal.SIGINT, 128 + signal.SIGPIPE
_MOST_LINES = 10


def guarded(run: Callable[[], int]) -> int:
    """Run a program; gives its exit code. Errors and warnings are one line each, and what is printed can be printed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = _show_warning
            code = run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()  # whoever read it has had enough
        return HUNG_UP
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (CheckpointError, ValueError, TypeError, LookupError, ArithmeticError, OSError, ImportError) as error:
        complain(_message(error))
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return FOUND if isinstance(error, CorruptCheckpointError) else WRONG
    except Exception as error:
        complain(f"{type(error).__name__}: {_message(error)} (this should not happen; --debug shows where)")
        return WRONG


def _drop_output() -> None:
    """Let what has not been written yet go nowhere, at the end of the process too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(error: BaseException) -> str:
    # str(KeyError) is the repr of its message.
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__


def complain(message: str) -> None:
    """Write an error as one line."""
    print(f"error: {one_line(message)}", file=sys.stderr)


def one_line(message: str) -> str:
    """A message of several lines as one, with what it lists, and nothing in it that could move the cursor."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more"]
    joined = "".join(f"{line} " if line.endswith((":", ";")) else f"{line}; " for line in lines)
    return printable(joined.strip().removesuffix(";"))


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {one_line(str(message))}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments, by default those of the process. Gives the exit code."""
    return guarded(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    from typer.exceptions import Abort, TyperException

    from pytreesaver._cli.app import add_commands, app

    add_commands(arguments)
    try:
        code = app(arguments, prog_name="pytreesaver", standalone_mode=False)
    except Abort:
        raise KeyboardInterrupt from None
    except SystemExit as stopped:
        if isinstance(stopped.__context__, BrokenPipeError):  # which Click hides
            raise stopped.__context__ from None
        raise
    except TyperException as error:
        if not error.format_message():
            return WRONG  # without any arguments the help was shown
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "pytreesaver"
        complain(f"{error.format_message()} ({command} --help tells more)")
        return WRONG
    except Exception as error:
        if not isinstance(error, BrokenPipeError) and "--debug" in arguments:
            traceback.print_exc()
        raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
