"""A description of a tree as JSON, for formats that cannot hold one: names, types, structure, metadata, checksums."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from pytreesaver._errors import CorruptCheckpointError, UnsupportedVersionError
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._text import NotJSONError, decode_json
from pytreesaver._tree.kinds import LeafType, NotPlainError
from pytreesaver.formats.protocol import TreeContents
from pytreesaver.formats.rules import problem_of_objects, problem_of_variables

VERSION = 1


class Description(msgspec.Struct):
    """The columns of a tree, with one entry for each variable.

    Attributes:
        names: the names of the variables.
        types: the distinct types.
        type_of: the positions of the types of the variables.
        shapes: the shapes of the stored arrays.
        keys: what the arrays are called in the format.
        checksums: the xxh3 of the bytes of each array, in hexadecimal digits.
        files: the size and the xxh3 of each other file of the checkpoint, if there are any.
        structure, metadata, record, models: as in `pytreesaver.formats.TreeContents`.
        same_as: as in `pytreesaver.formats.TreeContents`, with the positions as text.
    """

    names: list[str]
    types: list[LeafType]
    type_of: list[int]
    shapes: list[tuple[int, ...]]
    keys: list[str]
    checksums: list[str]
    structure: Any
    metadata: Any
    record: Any = None
    same_as: dict[str, int] = {}
    files: dict[str, tuple[int, str]] = {}
    version: int = VERSION
    models: Any = None


def encode_description(description: Description) -> bytes:
    """Return the JSON text. The last line is the checksum of the others."""
    body = msgspec.json.encode(description).removesuffix(b"}") + b",\n"
    return body + b'"checksum":"%016x"}\n' % checksum(body)


_TAIL = re.compile(rb'"checksum":"([0-9a-f]{16})"\}\n\Z')


def decode_description(content: bytes, where: str) -> Description:
    """Decode a description.

    Raises:
        CorruptCheckpointError: if it is damaged or inconsistent; `where` names it.
        UnsupportedVersionError: if it is of a newer version.
    """
    tail = _TAIL.search(content)
    if tail is None or int(tail[1], 16) != checksum(content[: tail.start()]):
        raise CorruptCheckpointError(f"{where}: its checksum does not match: it is damaged or was edited")
    try:
        description: Description = decode_json(content, Description)
        if description.version > VERSION:
            version = description.version
            raise UnsupportedVersionError(f"{where}: has version {version}; upgrade pytreesaver to read it")
        problem = _problem(description)
    except (NotJSONError, NotPlainError) as error:
        raise CorruptCheckpointError(f"{where}: expected the description of a tree ({error})") from None
    if problem:
        raise CorruptCheckpointError(f"{where}: expected {problem}")
    return description


def described(contents: TreeContents, keys: Sequence[str], checksums: Sequence[str], **others: Any) -> Description:
    """Return the description of a tree whose arrays have these keys and checksums."""
    types = list(dict.fromkeys(contents.types))
    positions = {leaf_type: i for i, leaf_type in enumerate(types)}
    return Description(
        names=list(contents.names),
        types=types,
        type_of=[positions[leaf_type] for leaf_type in contents.types],
        shapes=[tuple(shape) for shape in contents.shapes],
        keys=list(keys),
        checksums=list(checksums),
        structure=contents.structure,
        metadata=contents.metadata,
        record=contents.record,
        models=contents.models,
        same_as={str(position): earlier for position, earlier in contents.same_as.items()},
        **others,
    )


_POSITION = re.compile(r"[0-9]{1,18}")


def _problem(description: Description) -> str | None:
    """Return which rule a description breaks, or None."""
    count = len(description.names)
    if not len(description.keys) == len(description.checksums) == count:
        return f"{count} keys and checksums, as many as names"
    problem = problem_of_variables(description.names, description.types, description.type_of, description.shapes)
    problem = problem or problem_of_objects(description.metadata, description.record, description.models)
    if problem is not None:
        return problem
    for key, earlier in description.same_as.items():
        if not _POSITION.fullmatch(key) or not 0 <= earlier < int(key) < count:
            return "positions of variables in same_as"
        types, shapes = description.type_of, description.shapes
        if (types[int(key)], shapes[int(key)]) != (types[earlier], shapes[earlier]):
            return f"the same type and shape of {description.names[int(key)]} and {description.names[earlier]}"
    return None
