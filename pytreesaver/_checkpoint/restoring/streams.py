"""Opening a checkpoint in a file object, or in bytes: a single safetensors file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pytreesaver._io.paths import wrap_os_errors
from pytreesaver._io.stores import buffers
from pytreesaver.formats.protocol import CheckpointReader
from pytreesaver.formats.registry import STREAM_FORMAT, format_named


class ReadableFile(Protocol):
    """A binary file object that can be read."""

    def read(self, nbytes: int = -1, /) -> bytes:
        """Return up to so many bytes, or all that are left."""
        ...


def is_readable_file(source: Any) -> bool:
    """Return whether an argument is a file object, rather than a path."""
    return hasattr(source, "read") and not hasattr(source, "__fspath__")


@contextmanager
def opened_stream(source: Any, format: str | None) -> Iterator[CheckpointReader]:
    """Open a checkpoint in a file object, or in bytes, for a ``with`` block.

    Raises:
        TypeError: if the file is a text file.
        ValueError: if another format is asked for.
        CorruptCheckpointError: if there is no safetensors file, or it is damaged.
    """
    if format not in (None, STREAM_FORMAT):
        raise ValueError(f'format: expected None or "{STREAM_FORMAT}" for a file object, found {format!r}')
    given = getattr(source, "name", None)
    name = Path(given if isinstance(given, str) else f"<{type(source).__name__}>")
    opener: Any = format_named(STREAM_FORMAT)
    with wrap_os_errors("read", name):
        descriptor = buffers.open_file_object(source) if is_readable_file(source) else buffers.open_buffer(source)
        reader = opener.open_stream(descriptor, name)
        try:
            yield reader
        finally:
            reader.close()
