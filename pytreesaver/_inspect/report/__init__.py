"""The report of a run: one page of HTML with what was saved, kept and deleted, and how the variables changed."""

import os
from pathlib import Path
from typing import Any

from pytreesaver._errors import CheckpointExistsError
from pytreesaver._io.atomic import replace_file
from pytreesaver._io.paths import PathLike, local_path, named_os_errors
from pytreesaver._progress import Progress, check_progress


def write_report(
    directory: PathLike,
    path: PathLike = "report.html",
    *,
    only: Any = None,
    values: bool = True,
    overwrite: bool = False,
    progress: Progress = False,
) -> Path:
    """Write a page of HTML about a run directory, which opens in any browser without a network. Gives its path.

    It shows the life of every checkpoint and why retention keeps it, the metrics, the bytes of the variables as a
    treemap, the norm of each variable and how far it has moved from one checkpoint to the next, where there are NaN
    and Inf, what is damaged, and tables to sort and search. Needs Plotly: ``pip install 'pytreesaver[report]'``.

    Args:
        directory: the run directory.
        path: the file to write. An older report there is replaced.
        only: which variables, as in `pytreesaver.restore`.
        values: look at the values of the variables: all bytes are read, at some 200 MB/s. Without it there are no
            norms, and nothing is said of NaN.
        overwrite: replace whatever file is at `path`.
        progress: as in `pytreesaver.save`.

    Raises:
        CheckpointNotFoundError: there is no run directory, or no checkpoint in it.
        CheckpointExistsError: there is something else than a report at `path`.
        VariableNotFoundError: `only` selects nothing.
        CheckpointIOError: the file cannot be written.
        ImportError: Plotly is not installed.

    Example:
        >>> with pytreesaver.CheckpointManager("reported", max_to_keep=2) as manager:
        ...     for step in (1, 2, 3):
        ...         path = manager.save(step, {"w": np.full(3, step)}, metrics={"loss": 1 / step})
        >>> write_report("reported", "report.html")
        PosixPath('report.html')
    """
    check_progress(progress)
    target = local_path(path)
    if target.is_symlink():
        target = target.resolve()  # what it leads to is replaced, not the link
    _check_target(target, overwrite=overwrite)
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise ImportError("a report needs Plotly: pip install 'pytreesaver[report]'") from error

    from pytreesaver._inspect.report.facts import collect
    from pytreesaver._inspect.report.page import page

    text = page(collect(directory, only, values=values, progress=progress))
    with named_os_errors("write", target):
        replace_file(target, text.encode("utf-8", "backslashreplace"))
    return target


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse what is no report before the work begins."""
    from pytreesaver._inspect.report.page import MARK

    with named_os_errors("write", target):
        if os.path.lexists(target) and not target.is_file():
            found = "a directory" if target.is_dir() else "what is no regular file"
            raise CheckpointExistsError(f"{target}: expected a file to write, found {found}")
        if not os.path.lexists(target):
            if not target.absolute().parent.is_dir():
                raise FileNotFoundError(f"{target.parent}: no such directory")
            return
        if overwrite:
            return
        with target.open("rb") as file:
            if MARK.encode() not in file.readline(200):
                raise CheckpointExistsError(
                    f"{target}: expected nothing or an older report, found something else; overwrite=True replaces it"
                )
