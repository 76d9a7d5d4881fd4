"""The schedule of saves in a training loop: minimum numbers of steps and seconds between them. Does no I/O."""

from collections.abc import Callable
from typing import NamedTuple

from pytreesaver._errors import CheckpointExistsError


class LastSave(NamedTuple):
    """The newest save of a run; `step` is None if there is none, `time` is in seconds since the epoch."""

    step: int | None
    time: float
    serial: int


class SaveSchedule:
    """Decides whether a save is due.

    Args:
        interval_steps: the minimum number of steps between two saves.
        interval_secs: the minimum number of seconds between two saves; None for no minimum.
        read_last: returns the last save on disk; called if `saved` is None.
    """

    def __init__(self, interval_steps: int, interval_secs: float | None, read_last: Callable[[], LastSave]) -> None:
        self._interval_steps = interval_steps
        self._interval_secs = interval_secs
        self._read_last = read_last
        self.saved: LastSave | None = None
        """The last complete save; None if it has to be read from disk."""
        self.pending: LastSave | None = None

    @property
    def last(self) -> LastSave:
        """The pending save, or the last complete one if no save is pending."""
        if self.pending is not None:
            return self.pending
        if self.saved is None:
            self.saved = self._read_last()
        return self.saved

    def refuse_to_go_back(self, step: int, where: object) -> None:
        """Raise a CheckpointExistsError if `step` is before the last step of the run."""
        last = self.last.step
        if last is not None and step < last:
            raise CheckpointExistsError(
                f"step {step} is before step {last}, the last one in {where}: call restore first to continue "
                "that run, save into another directory, or pass force=True"
            )

    def is_due(self, step: int, now: float, *, at_once: bool = False) -> bool:
        """Return whether a save of this step is due. With `at_once`, every step after the last one is.

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
        elapsed = now - last.time
        # If the clock was set back, the elapsed time is unknown.
        long_ago = self._interval_secs is None or elapsed >= self._interval_secs or elapsed < 0
        return step >= last.step + self._interval_steps and long_ago
