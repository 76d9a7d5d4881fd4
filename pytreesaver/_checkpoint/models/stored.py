"""What a checkpoint says about a function that is stored in it. Does not import JAX."""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._text import quoted


class StoredModel(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """A function that `jax.export` has made independent of its code.

    Attributes:
        signature: its arguments, without the parameters, and its result, as text.
        parameters: the names of the variables that it takes as its first arguments, in their order.
        arguments: the containers of the other arguments, as `pytreesaver._tree.structure.FlatTree.structure` has them:
            a list of all.
        argument_names: the names of the leaves of that.
        result: the containers of the result.
        platforms: the platforms that it was exported for, such as ``cpu``, ``cuda`` and ``tpu``.
        devices: the number of devices.
        calling_convention: the version of the calling convention of `jax.export`.
        jax: the version of JAX that exported it.
        exported: what `jax.export.Exported.serialize` returned, compressed with zlib, as base64.
    """

    signature: str
    parameters: list[str]
    arguments: Any
    argument_names: list[str]
    result: Any
    platforms: list[str]
    devices: int
    calling_convention: int
    jax: str
    exported: str

    def serialized(self) -> bytearray:
        """Return what `jax.export.deserialize` needs. Raises a ValueError if it is damaged, or suspiciously large."""
        content = base64.b64decode(self.exported, validate=True)
        most = _most_decompressed(content)
        decompressor = zlib.decompressobj()
        try:
            serialized = decompressor.decompress(content, most)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if not decompressor.eof:
            raise ValueError(f"expected at most {most} bytes, or it is cut short")
        return bytearray(serialized)


_LEAST_LIMIT = 64 << 20
_MOST_COMPRESSION = 50  # code is compressed less; more would be an attempt to fill the memory


def compressed(serialized: bytes | bytearray) -> str:
    """Return the text of `StoredModel.exported`."""
    content = zlib.compress(bytes(serialized), level=6)
    if len(serialized) > _most_decompressed(content):
        content = zlib.compress(bytes(serialized), level=0)
    return base64.b64encode(content).decode()


def _most_decompressed(content: bytes) -> int:
    """Return how large what was compressed to this may be."""
    return _LEAST_LIMIT + _MOST_COMPRESSION * len(content)


def stored_models(encoded: Any, where: Any) -> Mapping[str, StoredModel]:
    """Decode the models of a checkpoint, as its reader gives them.

    Raises:
        CorruptCheckpointError: if they are malformed; `where` names the checkpoint.
    """
    try:
        return msgspec.convert(encoded or {}, dict[str, StoredModel])
    except msgspec.ValidationError as error:
        raise CorruptCheckpointError(f"{where}: expected models, found malformed ones ({error})") from None


def described(models: Mapping[str, StoredModel]) -> dict[str, str]:
    """Return {name: signature and platforms}, for display."""
    return {name: f"{each.signature}  ({', '.join(each.platforms)})" for name, each in models.items()}


def models_text(models: Mapping[str, StoredModel]) -> str:
    """Return the signatures on one line, for messages."""
    return ", ".join(f"{quoted(name)}{each.signature}" for name, each in models.items())
