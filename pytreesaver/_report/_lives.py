"""The life of every checkpoint of a run, from its save to its deletion. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytreesaver._history import CheckpointEvent
from pytreesaver._listing import ListedCheckpoint


@dataclass(frozen=True)
class Life:
    """A checkpoint that is or was in a run directory.

    Attributes:
        name: its name there.
        saved: when it was saved, in seconds since the epoch.
        step: the step that it was saved for, or None.
        metrics: as they were given to the save.
        deleted: when it was deleted; None if it is there, or nobody has noted that.
        listed: what there is of it; None if it is gone.
    """

    name: str
    saved: float
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    deleted: float | None = None
    listed: ListedCheckpoint | None = None

    @property
    def fate(self) -> str:
        """``"kept"``, ``"will be deleted"``, ``"damaged"``, ``"deleted"`` or ``"gone"``."""
        if self.listed is None:
            return "gone" if self.deleted is None else "deleted"
        if self.listed.problem is not None:
            return "damaged"
        return "kept" if self.listed.keep else "will be deleted"


def lives_of(events: Iterable[CheckpointEvent], listed: Sequence[ListedCheckpoint]) -> list[Life]:
    """All lives in the order of their saves, by a run's history and by what there is now.

    Example:
        >>> events = [CheckpointEvent("saved", "a", 1.0, 10), CheckpointEvent("deleted", "a", 2.0)]
        >>> [(life.name, life.step, life.deleted, life.fate) for life in lives_of(events, [])]
        [('a', 10, 2.0, 'deleted')]
    """
    lives: list[Life] = []
    alive: dict[str, int] = {}
    for event in events:
        at = alive.pop(event.name, None)
        if at is not None:  # a save in the place of another one ends that
            lives[at] = replace(lives[at], deleted=event.time)
        if event.kind == "saved":
            alive[event.name] = len(lives)
            lives.append(Life(event.name, event.time, event.step, event.metrics))
    for each in listed:
        at = alive.get(each.path.name)
        if at is None:
            lives.append(Life(each.path.name, each.time, each.step, each.metrics, listed=each))
        else:
            lives[at] = replace(lives[at], listed=each)
    return sorted(lives, key=lambda life: life.saved)
