"""The arguments of a CheckpointManager that are about saving, checked."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, SupportsFloat, get_args

from pytreesaver._io.processes.meeting import WhichProcesses
from pytreesaver._progress import Progress
from pytreesaver._run.policies.retention import check_count, check_duration
from pytreesaver._run.policies.saving import SaveInterval, SavePolicy, check_save_policy
from pytreesaver._savers.session import WriteOptions

WhenBusy = Literal["wait", "skip"]


class SaveArguments(NamedTuple):
    """The arguments of one call of `CheckpointManager.save`."""

    step: int
    tree: Any
    metrics: Mapping[str, SupportsFloat] | None
    metadata: Mapping[str, Any] | None
    force: bool
    restart: bool
    progress: Progress


class SaveSettings(NamedTuple):
    """The arguments of `CheckpointManager` that are about saving, as it documents them."""

    policy: SavePolicy
    processes: WhichProcesses
    timeout: float
    writing: WriteOptions
    when_busy: WhenBusy
    read_only: bool
    clock: Callable[[], float]


class SaverArguments(NamedTuple):
    """The arguments of `Saver` beyond those of `tf.train.Saver`."""

    shard_nbytes: int | None
    incremental: bool
    processes: WhichProcesses
    timeout: float


def checked_save_policy(steps: Any, seconds: Any, policy: SavePolicy | None) -> SavePolicy:
    """Return the save policy of a manager with these arguments.

    Raises:
        TypeError, ValueError: if an argument is invalid, or `policy` is combined with an interval.
    """
    check_count("save_interval_steps", steps, least=1, optional=False)
    check_duration("save_interval_secs", seconds, "seconds")
    if seconds == 0:
        raise ValueError("save_interval_secs: expected a positive number or None, found 0")
    if policy is None:
        return SaveInterval(int(steps), seconds)
    check_save_policy(policy)
    if steps != 1 or seconds is not None:
        raise ValueError(
            "save_policy: cannot be combined with save_interval_steps or save_interval_secs; "
            "add SaveEverySteps or SaveEverySeconds to the policy with | instead"
        )
    return policy


def check_when_busy(when_busy: object) -> None:
    """Raise a ValueError if this is not one of the answers to a save that is due while another one is running."""
    if when_busy not in get_args(WhenBusy):
        raise ValueError(f'when_busy: expected "wait" or "skip", found {when_busy!r}')
