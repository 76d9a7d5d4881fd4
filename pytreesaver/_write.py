"""Hand what is to be written to a format, with its errors named and its progress shown."""

from pathlib import Path

from pytreesaver._paths import named_os_errors
from pytreesaver._progress import Progress, reporting
from pytreesaver.formats import TreeContents, native


def write_contents(
    target: Path,
    contents: TreeContents,
    *,
    overwrite: bool,
    durable: bool,
    in_background: bool = False,
    progress: Progress = False,
    what: str | None = None,
) -> Path:
    """Write what `contents_of` made of a tree. Raises what `save` raises. `what` begins the line of the progress."""
    nbytes = 0 if progress is False else contents.nbytes
    with named_os_errors("save to", target), reporting(progress, what or f"saving {target}", nbytes):
        native.write(target, contents, overwrite=overwrite, durable=durable, in_background=in_background)
    return target
