"""The state file of a run directory, `checkpoint`: a `CheckpointState` in Protocol Buffers' text format. Does no I/O.

The fields and the output are TensorFlow's (`tensorflow/python/training/checkpoint_state.proto`). The parser accepts
every spelling of the text format: https://protobuf.dev/reference/protobuf/textformat-spec.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

STATE_FILE_NAME = "checkpoint"


@dataclass(frozen=True)
class CheckpointState:
    """The contents of a state file. After TensorFlow's `CheckpointState`.

    Attributes:
        model_checkpoint_path: the newest checkpoint.
        all_model_checkpoint_paths: the checkpoints that retention tracks, oldest first.
        all_model_checkpoint_timestamps: the times of their saves, in seconds since the epoch; one for each, or none.
        last_preserved_timestamp: the time of the last checkpoint that is kept permanently.
    """

    model_checkpoint_path: str = ""
    all_model_checkpoint_paths: list[str] = field(default_factory=list)
    all_model_checkpoint_timestamps: list[float] = field(default_factory=list)
    last_preserved_timestamp: float | None = None


def paths_in_order(state: CheckpointState) -> list[str]:
    """Return each path in a state file once, the newest last.

    Example:
        >>> paths_in_order(CheckpointState("m-1", ["m-1", "m-2"]))
        ['m-2', 'm-1']
    """
    older = [path for path in state.all_model_checkpoint_paths if path != state.model_checkpoint_path]
    return list(dict.fromkeys([*older, state.model_checkpoint_path]))


class MalformedStateError(ValueError):
    """The text is not a valid state file. The message says where and why."""


def format_state(state: CheckpointState) -> bytes:
    r"""Return the contents of a state file, as TensorFlow writes it.

    Example:
        >>> print(format_state(CheckpointState("model-2", ["model-1", "model-2"], [60.0, 120.5])).decode(), end="")
        model_checkpoint_path: "model-2"
        all_model_checkpoint_paths: "model-1"
        all_model_checkpoint_paths: "model-2"
        all_model_checkpoint_timestamps: 60.0
        all_model_checkpoint_timestamps: 120.5
    """
    lines = [f"model_checkpoint_path: {_quoted(state.model_checkpoint_path)}"]
    lines += [f"all_model_checkpoint_paths: {_quoted(path)}" for path in state.all_model_checkpoint_paths]
    lines += [f"all_model_checkpoint_timestamps: {float(time)!r}" for time in state.all_model_checkpoint_timestamps]
    if state.last_preserved_timestamp is not None:
        lines.append(f"last_preserved_timestamp: {float(state.last_preserved_timestamp)!r}")
    return "".join(f"{line}\n" for line in lines).encode()


_ESCAPES = {'"': '\\"', "'": "\\'", "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _quoted(path: str) -> str:
    return '"' + "".join(map(_escaped, path)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character < " " or "\x7f" <= character < "\xa0" or "\ud800" <= character <= "\udfff":
        # Control characters, and bytes of a path that are not UTF-8, are escaped byte by byte.
        encoded = os.fsencode(character) if "\udc80" <= character <= "\udcff" else character.encode()
        return "".join(f"\\{byte:03o}" for byte in encoded)
    return character


_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r\n\v\f]+|\#[^\n]*)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>[+-]?(?:inf(?:inity)?|nan|0[xX][0-9a-fA-F]+
          |(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)(?![A-Za-z0-9_.]))
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<punctuation>[:,;\[\]-])""",
    re.VERBOSE,
)

_STRINGS = ("model_checkpoint_path", "all_model_checkpoint_paths")
_REPEATED = ("all_model_checkpoint_paths", "all_model_checkpoint_timestamps")
_FIELDS = (*_STRINGS, "all_model_checkpoint_timestamps", "last_preserved_timestamp")


def parse_state(content: bytes) -> CheckpointState:
    r"""Parse the contents of a state file. If a field that is not repeated has several values, the last one counts.

    Raises:
        MalformedStateError: if the text is not a valid state file.

    Example:
        >>> parse_state(b"model_checkpoint_path: 'm-2'  # newest\nall_model_checkpoint_paths: ['m-1', 'm-2']")
        CheckpointState(model_checkpoint_path='m-2', all_model_checkpoint_paths=['m-1', 'm-2'],
            all_model_checkpoint_timestamps=[], last_preserved_timestamp=None)
    """
    # Latin-1 preserves every byte. Strings are decoded after their escapes are resolved.
    tokens = _Tokens(content.decode("latin-1"))
    values: dict[str, Any] = {name: [] for name in _REPEATED}
    while tokens.kind != "end":
        name = tokens.take("name", "the name of a field")
        if name not in _FIELDS:
            raise tokens.error(f"one of the fields {', '.join(_FIELDS)}, found {name!r}", taken=True)
        if not tokens.take_if(":"):
            tokens.fail("a colon")
        found: list[Any] = []
        if name in _REPEATED and tokens.take_if("["):
            while not tokens.take_if("]"):
                found.append(_value(tokens, name))
                if not tokens.take_if(",") and tokens.text != "]":
                    tokens.fail("a comma or ]")
        else:
            found.append(_value(tokens, name))
        if name in _REPEATED:
            values[name] += found
        else:
            values[name] = found[0]
        if not tokens.take_if(","):
            tokens.take_if(";")
    state = CheckpointState(**values)
    times, paths = state.all_model_checkpoint_timestamps, state.all_model_checkpoint_paths
    if times and len(times) != len(paths):
        raise MalformedStateError(f"expected a timestamp for each of {len(paths)} paths, found {len(times)} timestamps")
    return state


class _Tokens:
    """The tokens of a text, one at a time. `kind` and `text` describe the next token."""

    def __init__(self, text: str) -> None:
        self._line = self._taken_line = 1
        self._tokens = self._split(text)
        self._advance()

    def _split(self, text: str) -> Iterator[tuple[str, str]]:
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"a field of a state file, found {text[position : position + 20]!r}")
            if match.lastgroup != "skip":
                yield str(match.lastgroup), match.group()
            self._line += match.group().count("\n")
            position = match.end()
        yield "end", ""

    def _advance(self) -> None:
        self._taken_line = self._line
        self.kind, self.text = next(self._tokens)

    def take(self, kind: str, expected: str) -> str:
        """Take the next token and return its text. Raise a MalformedStateError if it is of another kind."""
        if self.kind != kind:
            self.fail(expected)
        text = self.text
        self._advance()
        return text

    def take_if(self, punctuation: str) -> bool:
        """Take the next token if it is this punctuation mark. Return whether it was."""
        if (self.kind, self.text) != ("punctuation", punctuation):
            return False
        self._advance()
        return True

    def fail(self, expected: str) -> bool:
        """Raise a MalformedStateError about the next token."""
        raise self.error(f"{expected}, found {self.text[:20]!r}" if self.text else f"{expected}, found the end of file")

    def error(self, expected: str, taken: bool = False) -> MalformedStateError:
        """Return the error for the line of the next token, or of the last one if `taken`."""
        return MalformedStateError(f"line {self._taken_line if taken else self._line}: expected {expected}")


def _value(tokens: _Tokens, name: str) -> Any:
    if name in _STRINGS:
        raw = _unescaped(tokens.take("string", f"a quoted path for {name}"))
        while tokens.kind == "string":
            raw += _unescaped(tokens.take("string", ""))
        path = os.fsdecode(raw)
        if "\0" in path:
            raise tokens.error(f"a path for {name}, found one with a NUL character", taken=True)
        return path
    minus = tokens.take_if("-")
    if tokens.kind == "name" and tokens.text.lower() in ("inf", "infinity", "nan"):
        number = float(tokens.take("name", ""))
    else:
        text = tokens.take("number", f"a number for {name}").lower()
        try:
            number = float(int(text, 16)) if "0x" in text else float(text if text.endswith("inf") else text.rstrip("f"))
        except OverflowError:
            number = math.nan
    if math.isnan(number):
        raise tokens.error(f"a number for {name}, found NaN or one that is too large", taken=True)
    return -number if minus else number


_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_UNESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _unescaped(quoted: str) -> bytes:
    def resolved(match: re.Match[str]) -> str:
        octal, hexadecimal, short, long, character = match.groups()
        if octal or hexadecimal:
            return chr(int(octal, 8) & 0xFF if octal else int(hexadecimal, 16))
        if short or long:
            code_point = int(short or long, 16)
            if code_point > 0x10FFFF:
                raise MalformedStateError(f"expected a Unicode character, found the escape {match.group()}")
            return chr(code_point).encode("utf-8", "surrogatepass").decode("latin-1")
        if character in _UNESCAPES:
            return _UNESCAPES[character]
        if character not in "\\'\"?":
            raise MalformedStateError(f"expected an escape of Protocol Buffers' text format, found \\{character}")
        return character

    return _ESCAPE.sub(resolved, quoted[1:-1]).encode("latin-1")


def state_file_name(latest_filename: str | None) -> str:
    """Return the name of a state file, `checkpoint` by default.

    Raises:
        ValueError: if `latest_filename` is not a plain file name.
    """
    if latest_filename is None:
        return STATE_FILE_NAME
    if latest_filename in ("", ".", ".."):
        raise ValueError(f"latest_filename: expected a file name, found {latest_filename!r}")
    if os.path.basename(latest_filename) != latest_filename or "\0" in latest_filename:  # noqa: PTH119
        raise ValueError(f"'latest_filename' must not contain path components, found {latest_filename!r}")
    return latest_filename
