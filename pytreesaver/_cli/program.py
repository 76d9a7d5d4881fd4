"""The entry point of the command-line interface: error handling and exit codes."""

import io
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

EXIT_OK, EXIT_FOUND, EXIT_ERROR = 0, 1, 2
"""Exit codes: success; a difference or damage was found; wrong usage, or any other error."""

EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 128 + signal.SIGINT, 128 + getattr(signal, "SIGPIPE", 13)
_MAX_LINES = 10


def run_program(run: Callable[[], int]) -> int:
    """Run a command-line program and return its exit code. Each error and warning is printed as one line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the descriptor is closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = _show_warning
            code = run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()  # the reader closed the pipe
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (CheckpointError, ValueError, TypeError, LookupError, ArithmeticError, OSError, ImportError) as error:
        print_error(_error_text(error))
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
        return EXIT_FOUND if isinstance(error, CorruptCheckpointError) else EXIT_ERROR
    except Exception as error:
        print_error(f"{type(error).__name__}: {_error_text(error)} (unexpected error; --debug prints the traceback)")
        return EXIT_ERROR


def _discard_output() -> None:
    """Redirect stdout to /dev/null, so that the flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _error_text(error: BaseException) -> str:
    # str(KeyError) is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__
    for argument, option in (("overwrite=True", "--overwrite"), ("with only=", "with --only")):
        text = text.replace(argument, option)
    return text


def print_error(message: str) -> None:
    """Print an error to stderr as one line."""
    print(f"error: {one_line(message)}", file=sys.stderr)


def one_line(message: str) -> str:
    """Join up to 10 lines of a message into one line without control characters."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES], f"and {len(lines) - _MAX_LINES} more"]
    joined = "".join(f"{line} " if line.endswith((":", ";")) else f"{line}; " for line in lines)
    return printable(joined.strip().removesuffix(";"))


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {one_line(str(message))}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with `arguments`, by default ``sys.argv[1:]``, and return its exit code."""
    return run_program(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    # NumPy's linear algebra starts a thread for each core when it is imported, which takes a fifth of the time of `ls`.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import click

    from pytreesaver._cli.app import app
    from pytreesaver._cli.completion import VARIABLE, complete

    try:
        if VARIABLE in os.environ:
            return complete(app)
        with app.make_context("pytreesaver", arguments) as context:
            code = app.invoke(context)
    except click.exceptions.Exit as stopped:
        return stopped.exit_code
    except click.exceptions.NoArgsIsHelpError as without:
        print(without.format_message())
        return EXIT_ERROR
    except click.ClickException as error:
        used = error.ctx if isinstance(error, click.UsageError) else None
        command = used.command_path if used is not None else "pytreesaver"
        print_error(f"{error.format_message()} (see {command} --help)")
        return EXIT_ERROR
    except Exception as error:
        if not isinstance(error, BrokenPipeError) and "--debug" in arguments:
            traceback.print_exc()
        raise
    return code if isinstance(code, int) else EXIT_OK
