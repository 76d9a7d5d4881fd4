"""``pytreesaver demo``: a run that is saved, killed, resumed, compared and reported on."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from pytreesaver._cli.app import app
from pytreesaver._cli.output import styled, write
from pytreesaver._cli.program import EXIT_FOUND, EXIT_INTERRUPTED, EXIT_OK, main
from pytreesaver._errors import CheckpointError, CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.paths import wrap_os_errors
from pytreesaver._text import printable

_STEPS = 1500
_KILLED_AFTER = 700


@app.command("demo")
@click.argument(
    "directory",
    type=click.Path(path_type=Path),
    metavar="[DIRECTORY]",
    required=False,
    help="A new directory for what it writes.  [default: one in the temporary directory]",
)
def demo(directory: Path | None) -> None:
    """Show in half a minute what pytreesaver does: train a small network, kill it, resume it, and look at the run.

    The program that it trains is shown by: python -m pydoc pytreesaver._cli.demo_training

    For example:

    \b
      pytreesaver demo
    """
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="pytreesaver-demo-"))
    elif filesystem.exists(directory):
        raise CheckpointExistsError(f"{directory}: expected a new directory, found something there")
    else:
        with wrap_os_errors("write to", directory):
            filesystem.make_directory(directory)
    run, whole = directory / "run", directory / "uninterrupted"
    _say("A small network learns a curve. A checkpoint is saved every 100 steps, in the background.")
    with _training(run) as (process, lines):
        for line in lines:
            write(f"  {line}")
            if line.startswith(f"step {_KILLED_AFTER:4}"):
                process.kill()
                write(styled("  killed, with SIGKILL", "red"))
                break
        else:
            raise CheckpointError("the training program ended too early")
    _say("Here is what is left. Each checkpoint is complete: a save that was interrupted does not count.")
    _run("ls", run)
    _say("The same program is started again. It goes on where the newest checkpoint was.")
    _finish(run)
    _say("Did the kill change anything? The same training without one:")
    _finish(whole, is_shown=False)
    _run("diff", run, whole)
    write(styled("  equal, bit for bit: parameters, momentum, random key and step", "green"))
    _say("How did the last 500 steps change the weights?")
    _run("diff", run / f"ckpt-{_STEPS - 500}", run, "--only", "params", expected=EXIT_FOUND)
    _say("A page about the run, with its learning curve, for your browser:")
    _run("report", run, "-o", directory / "report.html")
    write()
    write(f"Everything is in {printable(str(directory))}. Look around:")
    write(f"  open {printable(str(directory / 'report.html'))} in a browser")
    for command, *options in (("ls",), ("show", "--stats"), ("info",), ("verify",)):
        write(styled(f"  {shlex.join(['pytreesaver', command, str(run), *options])}", "bold"))


def _say(text: str) -> None:
    write()
    write(styled(text, "bold"))
    sys.stdout.flush()


def _run(*arguments: str | Path, expected: int = EXIT_OK) -> None:
    """Run a command, as in a shell."""
    words = list(map(str, arguments))
    write(styled(f"$ {shlex.join(['pytreesaver', *words])}", "dim"))
    code = main(words)
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code != expected:
        raise CheckpointError(f"pytreesaver {words[0]}: expected the exit code {expected}, found {code}")


@contextmanager
def _training(run: Path) -> Iterator[tuple["subprocess.Popen[str]", Iterator[str]]]:
    """Start the training program. Yield its process, and the lines that it prints."""
    # -P: Python would look for modules in the current directory first.
    command = [sys.executable, "-P", "-m", "pytreesaver._cli.demo_training", str(run), str(_STEPS)]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield process, (line.rstrip("\n") for line in process.stdout)


def _finish(run: Path, *, is_shown: bool = True) -> None:
    with _training(run) as (process, lines):
        for line in lines:
            if is_shown:
                write(f"  {line}")
    if process.returncode != 0:
        raise CheckpointError(f"the training program failed with exit code {process.returncode}")
