"""``pytreesaver prune``: delete the checkpoints of a run that a retention policy does not keep."""

import time
from collections.abc import Sequence
from pathlib import Path

import click

from pytreesaver._cli.app import app, output_options, path_argument
from pytreesaver._cli.output import (
    bytes_text,
    styled,
    write,
    write_json,
)
from pytreesaver._cli.run_table import listed_as_json, write_run_table
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
from pytreesaver._text import plural
from pytreesaver.formats import places


@app.command("prune")
@path_argument("directory", "A run directory.", metavar="RUN")
@click.option("--keep-last", type=click.IntRange(min=1), metavar="N", help="Keep the last N checkpoints.")
@click.option(
    "--keep-every-steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the first checkpoint at or after each multiple of N steps.",
)
@click.option(
    "--keep-every-hours",
    type=float,
    metavar="H",
    help="Keep one checkpoint for every H hours, starting with the oldest.",
)
@click.option(
    "--keep-best",
    multiple=True,
    metavar="N:METRIC[:max]",
    help="Keep the N checkpoints with the lowest METRIC, or the highest with :max. May be repeated.",
)
@click.option(
    "--keep-step", type=int, multiple=True, metavar="STEP", help="Keep the checkpoint of STEP. May be repeated."
)
@click.option(
    "--keep-younger-than", metavar="AGE", help="Keep checkpoints saved less than AGE ago: 30s, 10min, 12h, 7d."
)
@click.option("--yes", "-y", is_flag=True, help="Delete. Without this option, nothing is deleted.")
@output_options
def prune(
    directory: Path,
    keep_last: int | None,
    keep_every_steps: int | None,
    keep_every_hours: float | None,
    keep_best: Sequence[str],
    keep_step: Sequence[int],
    keep_younger_than: str | None,
    yes: bool,
    json: bool,
) -> None:
    """Show which checkpoints of a run a policy keeps and why, and with --yes delete the others.

    A checkpoint is kept if any of the --keep options keeps it. Without them, the policy recorded by the run's saver
    applies. The newest checkpoint, pinned ones and damaged ones are always kept.

    For example:

    \b
      pytreesaver prune runs/a --keep-last 3 --keep-best 1:loss
      pytreesaver prune runs/a --keep-every-steps 10000 --yes
    """
    parts: list[RetentionPolicy] = []
    if keep_last is not None:
        parts.append(KeepLast(keep_last))
    if keep_every_steps is not None:
        parts.append(KeepEverySteps(keep_every_steps))
    if keep_every_hours is not None:
        parts.append(KeepEveryHours(keep_every_hours))
    parts += map(parse_best, keep_best)
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
        raise click.BadParameter(f"--keep-best: expected N:METRIC or N:METRIC:max, such as 1:loss, found {text!r}")
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
        raise click.BadParameter(
            f"--keep-younger-than: expected an age such as 30s, 10min, 12h or 7d, found {text!r}"
        ) from None
    return seconds
