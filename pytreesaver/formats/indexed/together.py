"""Writing of one checkpoint directory by several processes: what they tell each other.

Process 0 makes the directory (`begin`). Each process writes its data files and sends a table of them (`part`). Then
process 0 writes the index, gives the directory its name, and says so (`end`).
"""

from collections.abc import Mapping, Sequence

import msgspec

from pytreesaver._errors import UnsupportedLeafError
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.processes.meeting import PARTS, Meeting
from pytreesaver._text import quoted
from pytreesaver._tree.kinds import cell_bytes
from pytreesaver.formats.indexed.parts import WrittenFile
from pytreesaver.formats.protocol import TreeContents


class Begin(msgspec.Struct):
    """Where the processes write.

    Attributes:
        hidden: the name of a new directory beside the checkpoint; empty if they write into the checkpoint.
        token: as in `DataWriter`.
        durable: whether files are synced.
    """

    hidden: str
    token: str
    durable: bool


class _Part(msgspec.Struct, array_like=True):
    """What one process has written.

    Attributes:
        digest: that of its tree.
        copies: the checksums of the arrays of which each process has its own copy; None for one that it does not have.
        files: its data files.
    """

    digest: str
    copies: list[int | None]
    files: list[WrittenFile]


def send_part(meeting: Meeting, contents: TreeContents, files: list[WrittenFile]) -> None:
    """Tell process 0 what this process has written, and, if its tree is another one, what that is."""
    part = _part(contents, files)
    meeting.gather(PARTS, msgspec.msgpack.encode(part), "")
    differing = meeting.first("differing", list, list[int], "compare the trees")
    if meeting.rank in differing[:_MOST_COMPARED] and contents.shared is not None:
        meeting.publish(f"tree/{meeting.rank}", msgspec.msgpack.encode(dict(contents.shared.describe())))


def collect_parts(meeting: Meeting, contents: TreeContents, files: list[WrittenFile]) -> list[WrittenFile]:
    """Return the data files of all processes, in process 0.

    Raises:
        UnsupportedLeafError: if the processes have different trees, or different copies of an array.
        ProcessTimeoutError: if a process has not sent its part.
    """
    own = _part(contents, files)
    messages = meeting.gather(PARTS, msgspec.msgpack.encode(own), "write their parts")
    parts = [own, *(msgspec.msgpack.decode(message, type=_Part) for message in messages[1:])]
    differing = [rank for rank, part in enumerate(parts) if part.digest != own.digest]
    meeting.publish("differing", msgspec.msgpack.encode(differing))
    if differing:
        raise _different_trees(meeting, contents, differing)
    _refuse_different_copies(contents, [part.copies for part in parts])
    return [file for part in parts for file in part.files]


_MOST_COMPARED = 3


def _part(contents: TreeContents, files: list[WrittenFile]) -> _Part:
    shared = contents.shared
    assert shared is not None
    arrays = [(contents.cells[i].arrays[0], contents.types[i]) for i in shared.copies]
    copies = [None if array is None else checksum(cell_bytes(array, leaf_type)) for array, leaf_type in arrays]
    return _Part(shared.digest, copies, files)


def _different_trees(meeting: Meeting, contents: TreeContents, differing: Sequence[int]) -> UnsupportedLeafError:
    assert contents.shared is not None
    expected = contents.shared.describe()
    lines = []
    for rank in differing[:_MOST_COMPARED]:
        message = meeting.wait_for(f"tree/{rank}", rank, "describe its tree")
        lines.append(f"process {rank}:")
        lines += _differences(expected, msgspec.msgpack.decode(message, type=dict[str, str]))
    which = ", ".join(map(str, differing[:20])) + (" and more" if len(differing) > 20 else "")
    return UnsupportedLeafError(
        f"the processes have to save the same tree; that of process {which} differs from that of process 0:\n"
        + "\n".join(lines)
    )


_MOST_LINES = 20


def _differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    lines = [
        f"  {quoted(name)}: expected {expected[name]}, found {found.get(name, 'no such variable')}"
        for name in expected
        if expected[name] != found.get(name)
    ]
    lines += [f"  {quoted(name)}: expected no such variable, found {found[name]}" for name in found.keys() - expected]
    if not lines:
        lines = ["  the same variables in another order"]
    return [*lines[:_MOST_LINES], *([f"  and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else [])]


def _refuse_different_copies(contents: TreeContents, copies: Sequence[Sequence[int | None]]) -> None:
    assert contents.shared is not None
    lines = []
    for number, position in enumerate(contents.shared.copies):
        ranks = [rank for rank, checksums in enumerate(copies) if checksums[number] not in (None, copies[0][number])]
        if ranks:
            which = ", ".join(map(str, ranks[:10])) + (" and more" if len(ranks) > 10 else "")
            who = f"process {which} has" if len(ranks) == 1 else f"processes {which} have"
            lines.append(f"  {quoted(contents.names[position])}: {who} other values than process 0")
    if lines:
        raise UnsupportedLeafError(
            "arrays that are not spread over the processes have to be equal in all of them; make them global arrays, "
            "or NumPy arrays, of which those of process 0 are saved:\n" + "\n".join(lines)
        )
