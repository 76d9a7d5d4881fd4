"""The msgpack file in which Orbax before 0.5 kept the structure of a tree, and its small values. After Flax's."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._tree.kinds import NotPlainError, dtype_from_name

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"


def decode_aggregate(content: bytes, file: Path) -> Any:
    """Return the tree in such a file: nested dicts and lists of values.

    Raises:
        CorruptCheckpointError: if it is damaged.
    """
    try:
        return _joined(msgspec.msgpack.decode(content, ext_hook=_decode_extension))
    except (msgspec.MsgspecError, NotPlainError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file}: expected a tree in msgpack, found a damaged one ({error})") from None


def _decode_extension(code: int, data: memoryview) -> Any:
    if code in (_ARRAY, _SCALAR):
        array = _decode_array(bytes(data))
        return array if code == _ARRAY else array[()]
    if code == _COMPLEX:
        real, imaginary = msgspec.msgpack.decode(data, type=tuple[float, float])
        return complex(real, imaginary)
    raise ValueError(f"unknown extension {code}")


def _decode_array(data: bytes) -> np.ndarray:
    shape, name, content = msgspec.msgpack.decode(data, type=tuple[list[int], Any, bytes])
    # The name of the dtype is a msgpack str or, in files of old versions, bytes.
    dtype = dtype_from_name(str(name.decode() if isinstance(name, bytes) else name))
    return np.frombuffer(content, dtype).reshape(shape)


def _joined(node: Any) -> Any:
    """Return a tree with its arrays of more than 2**30 bytes, which were cut in pieces, as one."""
    if isinstance(node, dict):
        if _CHUNKED in node:
            shape = [node["shape"][str(i)] for i in range(len(node["shape"]))]
            chunks = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
            return np.concatenate([np.asarray(chunk).reshape(-1) for chunk in chunks]).reshape(shape)
        return {key: _joined(child) for key, child in node.items()}
    return [_joined(child) for child in node] if isinstance(node, list) else node
