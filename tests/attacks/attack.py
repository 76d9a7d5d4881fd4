"""An attack is a checkpoint that breaks one rule: its files, the rule, and the error that every reader owes.

Checkpoints that look hostile but are allowed are in the tables too: all ways to read them work.
"""

import functools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import pytreesaver as pts

FILES = Path(__file__).parent / "files"
OUR_FORMAT = "docs/format.md"
TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32), "step": 3, "name": "run"}
LISTED = ("list_variables",)
"""The ways that work if only the data is damaged."""
ALL = ("all",)
"""The ways that work for a checkpoint that is allowed."""


@dataclass(frozen=True)
class Attack:
    """A checkpoint that breaks a rule.

    Attributes:
        files: the contents of its files, by what follows the name of the attack: ``/index.json``, ``.safetensors``.
        rule: the sentence that it breaks, or that allows it.
        message: a part of the message of the error.
        error: the class of the error.
        works: the ways to read it that work nevertheless.
        newest: of a run directory, the name of its newest checkpoint.
        source: where the sentence is from.
    """

    files: Mapping[str, bytes]
    rule: str
    message: str = ""
    error: str = "CorruptCheckpointError"
    works: tuple[str, ...] = ()
    source: str = OUR_FORMAT
    newest: str = ""

    @property
    def ending(self) -> str:
        """What follows the name of the attack in the path of the checkpoint."""
        (first, *others) = self.files
        return first if not others and "/" not in first else ""


def allowed(files: Mapping[str, bytes], rule: str, *, source: str = OUR_FORMAT) -> Attack:
    """Return a checkpoint that has to be read."""
    return Attack(files, rule, error="", works=ALL, source=source)


def table_of(attacks: Mapping[str, Attack]) -> str:
    """Return the TOML text that describes attacks, each under the path of its checkpoint."""
    return "\n".join(_entry(name, attack) for name, attack in attacks.items())


def _entry(name: str, attack: Attack) -> str:
    lines = [f"[{json.dumps(name + attack.ending)}]", f"rule = {json.dumps(attack.rule)}"]
    if attack.source != OUR_FORMAT:
        lines.append(f"source = {json.dumps(attack.source)}")
    if attack.error:
        lines.append(f"error = {json.dumps(attack.error)}")
    if attack.message:
        lines.append(f"message = {json.dumps(attack.message)}")
    if attack.newest:
        lines.append(f"newest = {json.dumps(attack.newest)}")
    if attack.works:
        lines.append(f"works = {json.dumps(list(attack.works))}")
    return "".join(f"{line}\n" for line in lines)


@functools.cache
def saved(ending: str = "", **options: object) -> Mapping[str, bytes]:
    """Return the files of the sample tree in a format, by what follows the name of the checkpoint."""
    return files_of(TREE, ending, **options)


def files_of(tree: object, ending: str = "", **options: object) -> Mapping[str, bytes]:
    """Return the files of a checkpoint of a tree, by what follows its name, which is ``m``."""
    with tempfile.TemporaryDirectory() as directory:
        pts.save(tree, Path(directory) / f"m{ending}", durable=False, **options)
        found = sorted(file for file in Path(directory).rglob("*") if file.is_file())
        return {file.relative_to(directory).as_posix()[1:]: file.read_bytes() for file in found}
