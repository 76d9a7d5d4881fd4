"""``pytreesaver prune`` and ``rm``: delete checkpoints."""

import time
from pathlib import Path
from typing import Annotated

import typer

from pytreesaver._cli.app import Debug, Json, app
from pytreesaver._cli.commands.ls import listed_as_json, write_run_table
from pytreesaver._cli.output import bytes_text, plural, styled, write, write_json
from pytreesaver._run.deleting import prune as delete_by_policy
from pytreesaver._run.policies.retention import (
    AnyOf,
    KeepBest,
    KeepEveryHours,
    KeepEverySteps,
    KeepLast,
    KeepSteps,
    KeepYoungerThan,
    RetentionPolicy,
)


@app.command("prune")
def prune(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    keep_last: Annotated[int | None, typer.Option(metavar="N", min=1, help="Keep the last N checkpoints.")] = None,
    keep_every_steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Keep those whose step is a multiple of N.")
    ] = None,
    keep_every_hours: Annotated[
        float | None, typer.Option(metavar="H", help="Keep one for every H hours, from the oldest on.")
    ] = None,
    keep_best: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N:METRIC[:max]", help="Keep the N best by a metric: the least, or with :max the largest."
        ),
    ] = None,
    keep_step: Annotated[list[int] | None, typer.Option(metavar="STEP", help="Keep the checkpoint of a step.")] = None,
    keep_younger_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Keep those saved less than AGE ago: 30s, 10min, 12h, 7d.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete. Without it nothing is deleted.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a policy keeps of a run and why, and what it lets go; with --yes, delete that.

    What any of the options keeps is kept; without any, what the run's own saver has recorded that it keeps. The newest
    checkpoint, pinned ones, and damaged ones always stay.

    For example:

    ```
    pytreesaver prune runs/a --keep-last 3 --keep-best 1:loss
    pytreesaver prune runs/a --keep-every-steps 10000 --yes
    ```
    """
    parts: list[RetentionPolicy] = []
    if keep_last is not None:
        parts.append(KeepLast(keep_last))
    if keep_every_steps is not None:
        parts.append(KeepEverySteps(keep_every_steps))
    if keep_every_hours is not None:
        parts.append(KeepEveryHours(keep_every_hours))
    parts += map(parsed_best, keep_best or [])
    if keep_step:
        parts.append(KeepSteps(keep_step))
    if keep_younger_than is not None:
        parts.append(KeepYoungerThan(parsed_age(keep_younger_than)))
    found = delete_by_policy(directory, AnyOf(tuple(parts)) if parts else None, dry_run=not yes)
    doomed = [each for each in found if not each.keep]
    nbytes = sum(each.nbytes for each in doomed)
    if json:
        write_json({"path": str(directory), "deleted": yes, "checkpoints": [listed_as_json(each) for each in found]})
        return
    if found:
        write_run_table(found, time.time(), "deleted" if yes else "would be deleted")
    what = f"{plural(len(doomed), 'checkpoint')}, {bytes_text(nbytes)}"
    if yes:
        write(f"deleted {what}")
    else:
        write(f"would delete {what}" + (f"; {styled('--yes', 'bold')} deletes" if doomed else ""))


def parsed_best(text: str) -> KeepBest:
    """The policy that ``N:METRIC[:max]`` stands for.

    Example:
        >>> parsed_best("3:loss"), parsed_best("1:accuracy:max")
        (KeepBest(count=3, metric='loss', mode='min'), KeepBest(count=1, metric='accuracy', mode='max'))
    """
    count, colon, metric = text.partition(":")
    mode = "min"
    for each in ("min", "max"):
        if metric.endswith(f":{each}"):
            metric, mode = metric.removesuffix(f":{each}"), each
    if not (count.isdigit() and int(count) and colon and metric):
        raise typer.BadParameter(f"--keep-best: expected N:METRIC or N:METRIC:max, such as 1:loss, found {text!r}")
    return KeepBest(int(count), metric, "min" if mode == "min" else "max")


_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parsed_age(text: str) -> float:
    """How many seconds ``12h`` are.

    Example:
        >>> parsed_age("90s"), parsed_age("1.5h"), parsed_age("7d")
        (90.0, 5400.0, 604800.0)
    """
    unit = text.lstrip("0123456789.")
    try:
        seconds = float(text.removesuffix(unit)) * _SECONDS[unit.strip()]
    except (KeyError, ValueError):
        raise typer.BadParameter(
            f"--keep-younger-than: expected an age such as 30s, 10min, 12h or 7d, found {text!r}"
        ) from None
    return seconds
