"""Run the command line."""

import sys
import traceback
from collections.abc import Sequence

from pytreesaver._program import INTERRUPTED, WRONG, complain, guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments, by default those of the process. Gives the exit code."""
    return guarded(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    from typer.exceptions import Abort, TyperException

    from pytreesaver._cli._app import add_commands, app

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
