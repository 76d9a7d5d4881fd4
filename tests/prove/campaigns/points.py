"""Which points of a scenario are tried: all, or a sample."""

import random
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def every_nth(tries: Callable[[int], Iterator[T]], step: int) -> Iterator[T]:
    """Yield the outcomes of every `step`-th point from a random one on, or of one point if there are fewer.

    Args:
        tries: yields the outcomes of every `step`-th point from its argument on. The first point is 1.
        step: 1 for all points.

    Example:
        >>> list(every_nth(lambda first: iter(range(first, 6, 1)), 1))
        [1, 2, 3, 4, 5]
        >>> len(list(every_nth(lambda first: iter(range(first, 6, 100)), 100)))
        1
    """
    first = random.randint(1, step)
    while True:
        is_empty = True
        for outcome in tries(first):
            is_empty = False
            yield outcome
        if not is_empty or first == 1:
            return
        first = random.randint(1, first - 1)
