"""``pytreesaver report``: write an HTML report about a run."""

from pathlib import Path
from typing import Annotated

import typer

from pytreesaver._cli.app import Debug, Json, Only, Regex, app, path_or_url, selection_of, shows_progress
from pytreesaver._cli.output import bytes_text, write, write_json
from pytreesaver._inspect.report import write_report
from pytreesaver._text import printable
from pytreesaver.formats import places


@app.command("report")
def report(
    directory: Annotated[
        Path, typer.Argument(parser=path_or_url, metavar="RUN", help="A run directory.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")] = Path(
        "report.html"
    ),
    only: Only = None,
    regex: Regex = None,
    values: Annotated[
        bool, typer.Option("--values/--no-values", help="Read all values, for norms, drift and NaN counts.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE even if it is not a report.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write an HTML report about a run: checkpoints, retention, metrics, and sizes, norms and drift of variables.

    The page is a single file that works offline. An existing report at FILE is replaced. Requires Plotly:
    pip install 'pytreesaver[report]'.

    For example:

    ```
    pytreesaver report runs/a -o report.html
    pytreesaver report runs/a --only 'params/**'
    ```
    """
    written = write_report(
        directory,
        output,
        only=selection_of(only, regex),
        values=values,
        overwrite=overwrite,
        progress=shows_progress(json),
    )
    nbytes = sum(size for _, _, size, _ in places.fingerprint(written))
    if json:
        write_json({"path": str(written), "nbytes": nbytes})
    else:
        write(f"wrote {printable(str(written))}, {bytes_text(nbytes)}")
