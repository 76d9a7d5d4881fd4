"""``pytreesaver prune``: delete the checkpoints of a run that a retention policy does not keep."""

import time
from pathlib import Path
from typing import Annotated

import typer

from pytreesaver._cli.app import Debug, Json, app, path_or_url
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
from pytreesaver.formats import places


@app.command("prune")
def prune(
    directory: Annotated[
        Path, typer.Argument(parser=path_or_url, metavar="RUN", help="A run directory.", show_default=False)
    ],
    keep_last: Annotated[int | None, typer.Option(metavar="N", min=1, help="Keep the last N checkpoints.")] = None,
    keep_every_steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Keep the first checkpoint at or after each multiple of N steps."),
    ] = None,
    keep_every_hours: Annotated[
        float | None, typer.Option(metavar="H", help="Keep one checkpoint for every H hours, starting with the oldest.")
    ] = None,
    keep_best: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N:METRIC[:max]",
            help="Keep the N checkpoints with the lowest METRIC, or the highest with :max. May be repeated.",
        ),
    ] = None,
    keep_step: Annotated[
        list[int] | None, typer.Option(metavar="STEP", help="Keep the checkpoint of STEP. May be repeated.")
    ] = None,
    keep_younger_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Keep checkpoints saved less than AGE ago: 30s, 10min, 12h, 7d.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete. Without this option, nothing is deleted.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which checkpoints of a run a policy keeps and why, and with --yes delete the others.

    A checkpoint is kept if any of the --keep options keeps it. Without them, the policy recorded by the run's saver
    applies. The newest checkpoint, pinned ones and damaged ones are always kept.

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
    parts += map(parse_best, keep_best or [])
    if keep_step:
        parts.append(KeepSteps(keep_step))
    if keep_younger_than is not None:
        parts.append(KeepYoungerThan(parse_age(keep_younger_than)))
    policy = AnyOf(tuple(parts)) if parts else None
    planned = delete_by_policy(directory, policy, dry_run=True)
    files = {each.path: places.stored_files(each.path) for each in planned if not each.keep}
    found = delete_by_policy(directory, policy, dry_run=False) if yes else planned
    to_delete = [each for each in found if not each.keep]
    nbytes = places.freed_nbytes([file for each in to_delete for file in files.get(each.path, ())])
    if json:
        write_json({"path": str(directory), "deleted": yes, "checkpoints": [listed_as_json(each) for each in found]})
        return
    if found:
        write_run_table(found, time.time(), "deleted" if yes else "would be deleted")
    what = f"{plural(len(to_delete), 'checkpoint')}, {bytes_text(nbytes)}"
    if yes:
        write(f"deleted {what}")
    else:
        write(f"would delete {what}" + (f"; use {styled('--yes', 'bold')} to delete" if to_delete else ""))


def parse_best(text: str) -> KeepBest:
    """Parse ``N:METRIC[:max]``.

    Example:
        >>> parse_best("3:loss"), parse_best("1:accuracy:max")
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


def parse_age(text: str) -> float:
    """Return an age such as ``12h`` in seconds.

    Example:
        >>> parse_age("90s"), parse_age("1.5h"), parse_age("7d")
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
