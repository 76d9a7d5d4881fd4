"""Wait for the checkpoints of a run, as an evaluator does. After `tf.train.checkpoints_iterator`."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytreesaver._paths import PathLike, local_path
from pytreesaver._run_directory import latest_checkpoint

_POLL_EVERY = 1.0


def checkpoints_iterator(
    checkpoint_dir: PathLike,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
) -> Iterator[Path]:
    """Give each new latest checkpoint of a run directory, as it comes. After `tf.train.checkpoints_iterator`.

    The directory is looked at once a second. Checkpoints that come and go in between are passed over; the run may
    delete one while it is being read, and then the read either completes or raises an error.

    Args:
        checkpoint_dir: the run directory, which need not exist yet.
        min_interval_secs: at least how many seconds lie between two checkpoints that are given.
        timeout: how many seconds to wait for the next one; None waits for ever.
        timeout_fn: called after a timeout, and after each checkpoint; the iterator ends when it gives True. Without
            one it ends after the first timeout.

    Raises:
        ValueError: `min_interval_secs` or `timeout` is negative.

    Example:
        >>> path = pytreesaver.Saver().save({"w": np.ones(3)}, "watched/model", global_step=1)
        >>> for path in checkpoints_iterator("watched", timeout=0):
        ...     print(path)
        watched/model-1
    """
    directory = local_path(checkpoint_dir)
    for what, value in (("min_interval_secs", min_interval_secs), ("timeout", timeout)):
        if value is not None and not value >= 0:
            raise ValueError(f"{what}: expected no negative number of seconds, found {value!r}")
    return _checkpoints(directory, min_interval_secs, timeout, timeout_fn)


def _checkpoints(
    directory: Path, min_interval_secs: float, timeout: float | None, timeout_fn: Callable[[], bool] | None
) -> Iterator[Path]:
    path: Path | None = None
    while True:
        new = _wait_for_another(directory, path, timeout)
        if new is None:
            if timeout_fn is None or timeout_fn():
                return
            continue
        path = new
        given = time.monotonic()
        yield path
        rest = given + min_interval_secs - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        if timeout_fn is not None and timeout_fn():
            return


def _wait_for_another(directory: Path, last: Path | None, timeout: float | None) -> Path | None:
    stop = None if timeout is None else time.monotonic() + timeout
    while True:
        path = latest_checkpoint(directory)
        if path is not None and path != last:
            return path
        if stop is not None and time.monotonic() + _POLL_EVERY > stop:
            return None
        time.sleep(_POLL_EVERY)
