"""The schedule of saves in a training loop: which steps are due, and which lie before the last one. Does no I/O."""

from collections.abc import Callable
from typing import NamedTuple

from pytreesaver._errors import CheckpointExistsError
from pytreesaver._run.policies.saving import SavePoint, SavePolicy


class LastSave(NamedTuple):
    """The newest save of a run.

    Attributes:
        step: its step, or None if there is none.
        time: when it was saved, in seconds since the epoch.
        serial: the number of saves in the run until then.
        name: the name of the checkpoint.
    """

    step: int | None
    time: float
    serial: int
    name: str = ""


class SaveSchedule:
    """Decides whether a save is due.

    Args:
        policy: decides about the steps after the last save.
        read_last: returns the last save on disk; called if `saved` is None or no longer current.
        is_current: returns whether `saved` still is the last save of the run.
    """

    def __init__(
        self,
        policy: SavePolicy,
        read_last: Callable[[], LastSave],
        is_current: Callable[[LastSave], bool] = lambda last: True,
    ) -> None:
        self._policy = policy
        self._read_last = read_last
        self._is_current = is_current
        self._asked: int | None = None
        self._previous: int | None = None
        self.saved: LastSave | None = None
        """The last complete save; None if it has to be read from disk."""
        self.pending: LastSave | None = None

    @property
    def last(self) -> LastSave:
        """The pending save, or the last complete one if no save is pending."""
        if self.pending is not None:
            return self.pending
        if self.saved is None or not self._is_current(self.saved):
            self.saved = self._read_last()
        return self.saved

    def refuse_to_go_back(self, step: int, where: object) -> None:
        """Raise a CheckpointExistsError if `step` is before the last step of the run."""
        last = self.last.step
        if last is not None and step < last:
            raise CheckpointExistsError(
                f"step {step} is before step {last}, the last one in {where}: call restore first to continue that run, "
                "save into another directory, or pass restart=True to go on from this step (the later checkpoints then "
                "count as old ones, which retention deletes first)"
            )

    def is_due(self, step: int, now: float, *, at_once: bool = False) -> bool:
        """Return whether a save of this step is due. With `at_once`, every step after the last one is.

        A step before the last one is due too: the save then says what is wrong, or goes back.

        Example:
            >>> schedule = SaveSchedule(pytreesaver.SaveEverySteps(100), lambda: LastSave(200, 60.0, 3))
            >>> schedule.is_due(299, now=90.0), schedule.is_due(300, now=90.0)
            (False, True)
        """
        if step != self._asked:
            self._previous, self._asked = self._asked, step
        last = self.last
        if last.step is not None and step <= last.step:
            return step < last.step
        if at_once:
            return True
        last_time = None if last.step is None else last.time
        return self._policy.is_due(SavePoint(step, now, last.step, last_time, self._previous))
