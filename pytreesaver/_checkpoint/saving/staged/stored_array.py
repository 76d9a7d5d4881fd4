"""An array of an open checkpoint, as contents of another one."""

from typing import Any

import numpy as np

from pytreesaver._io.parallel import unmetered
from pytreesaver._tree.boxes import whole_box
from pytreesaver.formats.protocol import CheckpointReader

_MAPPED_NBYTES = 256 << 20


class StoredArray:
    """A stored array that is read only when it is written, so that few are in memory at a time."""

    def __init__(self, reader: CheckpointReader, position: int) -> None:
        self._reader = reader
        self._position = position

    def read(self) -> np.ndarray:
        """Return the array, verified. A huge one is mapped from the file if possible, and then takes no memory."""
        with unmetered():  # the progress counts the writes
            mapped = None
            if self._reader.nbytes[self._position] > _MAPPED_NBYTES:
                whole = whole_box(self._reader.shapes[self._position])
                (mapped,) = self._reader.map([(self._position, whole)], verify=True)
            return self._reader.read([self._position], verify=True)[0] if mapped is None else mapped

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read()
