"""The index of pytreesaver in the metadata of other files: a safetensors file, or the index of several.

The metadata then begins with a checksum of the whole text, in which the digits of that checksum are zeros.
"""

import re
from collections.abc import Mapping

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver.formats.indexed.index import Index, encode_index, header_checksum

CHECKSUM_KEY = "pytreesaver.checksum"
INDEX_KEY = "pytreesaver.index"
CONTENT_KEY = "pytreesaver.content"
"""In the metadata of a file whose index is another file."""

_ZEROS = "0" * 16
_SEAL = re.compile(rb'\A\{"(?:__)?metadata(?:__)?":\{"pytreesaver\.checksum":"([0-9a-f]{16})"')


def metadata_with_index(index: Index) -> Mapping[str, str]:
    """Return metadata with an index. `sealed` completes the text that contains it."""
    return {CHECKSUM_KEY: _ZEROS, "format": "pt", INDEX_KEY: encode_index(index).decode()}


def sealed(text: bytes) -> bytes:
    """Return a JSON text that starts with such metadata with the right checksum."""
    return text.replace(_ZEROS.encode(), header_checksum(text).encode(), 1)


def is_ours(text: bytes, metadata: Mapping[str, object]) -> bool:
    """Return whether a JSON text is from pytreesaver, even with a flipped bit in one of the keys."""
    return _SEAL.match(text) is not None or CHECKSUM_KEY in metadata or INDEX_KEY in metadata


def embedded_index(text: bytes, metadata: Mapping[str, object], where: str) -> bytes:
    """Return the JSON text of the index in a text, after a comparison with the checksum.

    Raises:
        CorruptCheckpointError: if the text is damaged.
    """
    match = _SEAL.match(text)
    index = metadata.get(INDEX_KEY)
    if match is not None and isinstance(index, str):
        start, stop = match.span(1)
        if header_checksum(text[:start] + _ZEROS.encode() + text[stop:]).encode() == match[1]:
            return index.encode()
    raise CorruptCheckpointError(
        f"{where}: its checksum does not match: the header is damaged, or another program has rewritten the file and "
        "kept the metadata of pytreesaver; load the file with safetensors and save it again without that metadata"
    )
