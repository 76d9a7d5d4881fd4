"""When a training loop is to save: so many steps, and so many seconds, after the last save. No file, no clock."""

from collections.abc import Callable
from typing import NamedTuple

from pytreesaver._errors import CheckpointExistsError


class LastSave(NamedTuple):
    """The newest save of a run: its step, its time in seconds since the epoch, and its number; no step if none was."""

    step: int | None
    time: float
    serial: int


class SaveSchedule:
    """What is due after the last save.

    Args:
        interval_steps: how many steps lie between two saves at least.
        interval_secs: how many seconds lie between two saves at least.
        look: gives the last save as it is on disk; asked when it is not known.
    """

    def __init__(self, interval_steps: int, interval_secs: float | None, look: Callable[[], LastSave]) -> None:
        self._interval_steps = interval_steps
        self._interval_secs = interval_secs
        self._look = look
        self.saved: LastSave | None = None
        """The last save that is known to be complete; None to look for it."""
        self.under_way: LastSave | None = None

    @property
    def last(self) -> LastSave:
        """The save that is under way, or else the last one."""
        if self.under_way is not None:
            return self.under_way
        if self.saved is None:
            self.saved = self._look()
        return self.saved

    def refuse_to_go_back(self, step: int, where: object) -> None:
        """Raise a CheckpointExistsError if a step lies before the last one of the run."""
        last = self.last.step
        if last is not None and step < last:
            raise CheckpointExistsError(
                f"step {step} lies before step {last}, the last one in {where}: call restore first to go on "
                "with that run, save into another directory, or pass force=True"
            )

    def is_due(self, step: int, now: float, *, at_once: bool = False) -> bool:
        """Whether a step is to be saved: with `at_once`, if it has not been.

        Example:
            >>> schedule = SaveSchedule(100, None, lambda: LastSave(200, 60.0, 3))
            >>> schedule.is_due(299, now=90.0), schedule.is_due(300, now=90.0)
            (False, True)
        """
        last = self.last
        if last.step is None:
            return True
        if step <= last.step or at_once:
            return step > last.step
        passed = now - last.time
        # A clock that was set back says nothing of the time that has passed.
        long_ago = self._interval_secs is None or passed >= self._interval_secs or passed < 0
        return step >= last.step + self._interval_steps and long_ago
