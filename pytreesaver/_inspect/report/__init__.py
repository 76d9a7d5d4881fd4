"""HTML reports about runs: the history of the checkpoints and how the variables change."""

from pathlib import Path

from pytreesaver._errors import CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import replace_file
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._progress import Progress, check_progress
from pytreesaver._tree.names.select import Selection


def write_report(
    directory: PathLike,
    path: PathLike = "report.html",
    *,
    against: PathLike | None = None,
    only: Selection | None = None,
    values: bool = True,
    overwrite: bool = False,
    progress: Progress = False,
) -> Path:
    """Write an HTML report about a run directory, a single page that any browser can open offline.

    The report shows the metrics, when each checkpoint was saved and deleted, why retention keeps it, the bytes and the
    time of each save, a treemap of the sizes of the variables, the norm, distribution and drift of each variable, NaN
    and Inf, and damage. Its tables can be sorted and searched.

    Args:
        directory: the run directory.
        path: the file to write. An existing report is replaced.
        against: another run directory. Its metrics, norms and distributions are drawn beside those of the first, and
            the newest checkpoints of both are compared by names, shapes and dtypes.
        only: the variables to include, selected as in `pytreesaver.restore`.
        values: whether to read the values of the variables. If False, no arrays are read, and the report has no norms,
            distributions, drift or NaN counts.
        overwrite: whether to replace a file at `path` that is not a report.
        progress: as in `pytreesaver.save`.

    Returns:
        The path of the report.

    Raises:
        CheckpointNotFoundError: if a run directory does not exist, or if neither it nor its history has a checkpoint.
        CheckpointExistsError: if something other than a report exists at `path`.
        VariableNotFoundError: if `only` selects nothing in any checkpoint.
        CheckpointIOError: if the file cannot be written.

    Example:
        >>> with pytreesaver.CheckpointManager("reported", max_to_keep=2) as manager:
        ...     for step in (1, 2, 3):
        ...         path = manager.save(step, {"w": np.full(3, step)}, metrics={"loss": 1 / step})
        >>> write_report("reported", "report.html")
        PosixPath('report.html')
    """
    check_progress(progress)
    target = local_path(path)
    with wrap_os_errors("look at", target):
        if filesystem.is_link(target):
            target = filesystem.resolved(target)  # replace the target of the link, not the link
    _check_target(target, overwrite=overwrite)

    from pytreesaver._inspect.report.collecting import collect
    from pytreesaver._inspect.report.page import page

    directories = [directory] if against is None else [directory, against]
    text = page([collect(each, only, values=values, progress=progress) for each in directories])
    with wrap_os_errors("write", target):
        replace_file(target, text.encode("utf-8", "backslashreplace"))
    return target


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Raise if `target` cannot be written or must not be replaced, before the values are read."""
    from pytreesaver._inspect.report.page import MARK

    with wrap_os_errors("write", target):
        if not filesystem.exists(target):
            if not filesystem.is_directory(target.absolute().parent):
                raise FileNotFoundError(f"{target.parent}: no such directory")
            return
        if not filesystem.is_regular_file(target):
            found = "a directory" if filesystem.is_directory(target) else "a special file"
            raise CheckpointExistsError(f"{target}: expected a file to write, found {found}")
        if overwrite:
            return
        with target.open("rb") as file:
            if MARK.encode() not in file.readline(200):
                raise CheckpointExistsError(
                    f"{target}: expected no file or an existing report, found another file; overwrite=True replaces it"
                )
