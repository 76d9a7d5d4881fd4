"""Run a command: its errors in one line, its exit code, its warnings, and what happens when somebody hangs up."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from pytreesaver._errors import CheckpointError, CorruptCheckpointError
from pytreesaver._names import printable

FINE, FOUND, WRONG = 0, 1, 2
"""The exit codes: nothing to report; a difference or damage was found; wrong usage, or no such thing."""
INTERRUPTED, HUNG_UP = 128 + signal.SIGINT, 128 + signal.SIGPIPE

_MOST_LINES = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments, by default those of the process. Gives the exit code."""
    return guarded(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def guarded(run: Callable[[], int]) -> int:
    """Run a program; gives its exit code. Errors and warnings are one line each, and what is printed can be printed."""
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
        # Whoever read the output has had enough. Nothing may be written at the end of the process either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return HUNG_UP
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (CheckpointError, ValueError, TypeError, LookupError, OSError, ImportError) as error:
        _complain(_message(error))
        return FOUND if isinstance(error, CorruptCheckpointError) else WRONG


def _run(arguments: list[str]) -> int:
    from typer.exceptions import Abort, TyperException

    from pytreesaver._cli._app import add_commands, app, settings

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
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "pytreesaver"
        _complain(f"{error.format_message()} ({command} --help tells more)")
        return WRONG
    except Exception as error:
        if not isinstance(error, BrokenPipeError) and settings.debug:
            traceback.print_exc()
        raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else FINE


def _message(error: BaseException) -> str:
    # str(KeyError) is the repr of its message.
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__


def _complain(message: str) -> None:
    print(f"error: {one_line(message)}", file=sys.stderr)


def one_line(message: str) -> str:
    """A message of several lines as one, with what it lists, and nothing in it that could move the cursor."""
    first, *rest = [line.strip() for line in message.splitlines() if line.strip()] or [""]
    if len(rest) > _MOST_LINES:
        rest = [*rest[:_MOST_LINES], f"and {len(rest) - _MOST_LINES} more"]
    return printable(" ".join([first, "; ".join(rest)]).strip())


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {one_line(str(message))}", file=sys.stderr)
