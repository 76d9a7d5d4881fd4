"""``pytreesaver report``: write or serve an HTML report about a run."""

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytreesaver._cli.app import (
    app,
    output_options,
    path_argument,
    path_or_url,
    selection_of,
    selection_options,
    shows_progress,
)
from pytreesaver._cli.output import bytes_text, write, write_json
from pytreesaver._inspect.report import write_report
from pytreesaver._text import printable
from pytreesaver.formats import places

if TYPE_CHECKING:
    from pytreesaver._inspect.report.serving import ReportServer

_FILE = "report.html"
_PORT = 8765


@app.command("report")
@path_argument("directory", "A run directory.", metavar="RUN")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"The file to write.  [default: {_FILE}]",
)
@click.option(
    "--against",
    type=path_or_url,
    metavar="RUN",
    help="Another run directory: draw its curves beside those of the first, and compare their newest checkpoints.",
)
@selection_options
@click.option("--values/--no-values", default=True, help="Read all values, for norms, drift and NaN counts.")
@click.option("--overwrite", is_flag=True, help="Replace FILE even if it is not a report.")
@click.option("--serve", is_flag=True, help="Write no file: serve the report to browsers on this machine.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help=f"The port for --serve; 0 for a free one.  [default: {_PORT}]",
)
@output_options
def report(
    directory: Path,
    output: Path | None,
    against: Path | None,
    only: Sequence[str],
    regex: Sequence[str],
    values: bool,
    overwrite: bool,
    serve: bool,
    port: int | None,
    json: bool,
) -> None:
    """Write an HTML report about a run: checkpoints, retention, metrics, and sizes, norms and drift of variables.

    The page is a single file that works offline. An existing report at FILE is replaced.

    With --serve, the page follows a run that is still being trained: it is served on 127.0.0.1 until Ctrl-C, and shows
    each new checkpoint.

    For example:

    \b
      pytreesaver report runs/a -o report.html
      pytreesaver report runs/a --only 'params/**'
      pytreesaver report runs/a --against runs/b
      pytreesaver report runs/a --serve
    """
    selection = selection_of(only, regex)
    if serve:
        if output is not None or overwrite:
            raise click.UsageError("--serve writes no file: expected neither --output nor --overwrite")
        from pytreesaver._inspect.report.serving import ReportServer

        chosen = _PORT if port is None else port
        _serve(ReportServer(directory, against=against, only=selection, values=values, port=chosen), json)
        return
    if port is not None:
        raise click.UsageError("--port: expected --serve, too")
    written = write_report(
        directory,
        _FILE if output is None else output,
        against=against,
        only=selection,
        values=values,
        overwrite=overwrite,
        progress=shows_progress(json),
    )
    nbytes = sum(size for _, _, size, _ in places.fingerprint(written))
    if json:
        write_json({"path": str(written), "nbytes": nbytes})
    else:
        write(f"wrote {printable(str(written))}, {bytes_text(nbytes)}")


def _serve(server: "ReportServer", json: bool) -> None:
    """Serve a report until Ctrl-C."""
    interrupted = threading.Event()
    # A KeyboardInterrupt could be raised in a callback of Python, which would swallow it.
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        with server:
            if json:
                write_json({"url": server.url})
            else:
                write(f"serving {server.url} until Ctrl-C")
            sys.stdout.flush()
            interrupted.wait()
    finally:
        signal.signal(signal.SIGINT, before)
