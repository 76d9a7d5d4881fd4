"""Saving into file objects and bytes: a single safetensors file."""

import errno
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jax.typing import DTypeLike

from pytreesaver._checkpoint.saving.casting import cast_error, checked_cast
from pytreesaver._checkpoint.saving.contents import contents_of
from pytreesaver._io.paths import wrap_os_errors
from pytreesaver._progress import Progress, check_progress, reporting
from pytreesaver._tree.casting import LossyCastError
from pytreesaver._tree.names.select import Selection, as_selection
from pytreesaver.formats.registry import STREAM_FORMAT, format_named


class WritableFile(Protocol):
    """A binary file object that can be written."""

    def write(self, data: Any, /) -> Any:
        """Write bytes, and return how many, or None if all."""
        ...


def is_writable_file(target: Any) -> bool:
    """Return whether an argument is a file object, rather than a path."""
    return hasattr(target, "write") and not hasattr(target, "__fspath__")


def save_to_file_object(
    tree: Any,
    file: WritableFile,
    *,
    only: Selection | None,
    metadata: Mapping[str, Any] | None,
    cast: bool | DTypeLike,
    progress: Progress,
) -> None:
    """Write a tree as a single safetensors file into a file object, in order, without seeking.

    Raises what `pytreesaver.save` raises.
    """
    check_progress(progress)
    if isinstance(file, io.TextIOBase):
        raise TypeError('file: expected a binary file, such as one opened with mode "wb", found a text file')
    selection = None if only is None else as_selection(only)
    contents = contents_of(tree, metadata, only=selection, remembers=False, cast=checked_cast(cast))
    name = getattr(file, "name", type(file).__name__)
    writer: Any = format_named(STREAM_FORMAT)
    nbytes = 0 if progress is False else contents.nbytes
    with wrap_os_errors("save to", Path(str(name))), reporting(progress, f"saving to {name}", nbytes):
        try:
            writer.write_stream(contents, _writing_all(file))
        except LossyCastError:
            raise cast_error(contents, f"the tree to save to {name}") from None


def _writing_all(file: WritableFile) -> Callable[[memoryview], None]:
    """Return a function that writes all of a part: a raw file, or a socket, may take less at a time."""

    def write(part: memoryview) -> None:
        rest = part.cast("B") if part.nbytes else part
        while rest.nbytes:
            count = file.write(rest)
            if count is None and not isinstance(file, io.RawIOBase):
                return  # it says nothing, and has taken all
            if count is None:
                raise BlockingIOError(errno.EAGAIN, "the file takes no more at the moment: it is non-blocking")
            if not 0 < count <= rest.nbytes:
                raise OSError(errno.EIO, f"the file has written {count} of {rest.nbytes} bytes")
            rest = rest[count:]

    return write


def to_bytes(
    tree: Any,
    *,
    only: Selection | None = None,
    metadata: Mapping[str, Any] | None = None,
    cast: bool | DTypeLike = False,
) -> bytes:
    """Return a tree as bytes, for databases, queues and remote procedure calls.

    They are a single safetensors file, with checksums, which any reader of safetensors reads. `pytreesaver.from_bytes`
    returns the tree as it was.

    Args:
        tree: as in `pytreesaver.save`.
        only: as in `pytreesaver.save`.
        metadata: as in `pytreesaver.save`.
        cast: as in `pytreesaver.save`.

    Raises:
        UnsupportedLeafError, DuplicateNameError, VariableNotFoundError, MismatchError: as `pytreesaver.save` does.

    Example:
        >>> data = to_bytes({"w": np.ones(3), "step": 7})
        >>> pytreesaver.from_bytes(data)
        {'w': array([1., 1., 1.]), 'step': 7}
    """
    file = io.BytesIO()
    save_to_file_object(tree, file, only=only, metadata=metadata, cast=cast, progress=False)
    return file.getvalue()
