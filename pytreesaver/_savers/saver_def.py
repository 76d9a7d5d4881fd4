"""The settings of a Saver as a plain value, and the interpretation of its `var_list`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._checkpoint.saving.contents import contents_of, renamed
from pytreesaver._errors import VariableNotFoundError
from pytreesaver._io.paths import PathLike, local_path
from pytreesaver._io.processes.meeting import Meeting
from pytreesaver._run.policies.retention import check_count, check_duration
from pytreesaver._text import duplicates, lines_with_suggestions
from pytreesaver._tree.names.rename import ByName, Renaming
from pytreesaver._tree.names.select import NameSet, Selection, Selector, as_selection
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.formats.protocol import TreeContents
from pytreesaver.formats.registry import format_named


@dataclass(frozen=True)
class SaverDef:
    """The settings of a `Saver`: plain values, so that ``json.dumps(dataclasses.asdict(saver_def))`` works.

    After TensorFlow's `SaverDef`. The fields are the arguments of `Saver`.
    """

    var_list: Selection | Mapping[str, str] | None = None
    reshape: bool = False
    sharded: bool = False
    max_to_keep: int | None = 5
    keep_checkpoint_every_n_hours: float | None = 10000.0
    name: str | None = None
    restore_sequentially: bool = False
    allow_empty: bool = False
    pad_step_number: bool = False
    save_relative_paths: bool = True
    filename: str | None = None
    format: str | None = None


_FLAGS = ("reshape", "sharded", "restore_sequentially", "allow_empty", "pad_step_number", "save_relative_paths")


def checked_saver_def(settings: SaverDef) -> SaverDef:
    """Return the settings, with their numbers and bools converted to Python's.

    Raises:
        TypeError, ValueError: if a setting is invalid. The message names it.
    """
    count, hours = settings.max_to_keep, settings.keep_checkpoint_every_n_hours
    check_count("max_to_keep", count, least=0)
    check_duration("keep_checkpoint_every_n_hours", hours, "hours")
    format_named(settings.format)  # raises if there is no such format
    if settings.name is not None and not isinstance(settings.name, str):
        raise TypeError(f"name: expected a str, found {settings.name!r}")
    for flag in _FLAGS:
        if not isinstance(getattr(settings, flag), bool | np.bool_):
            raise TypeError(f"{flag}: expected True or False, found {getattr(settings, flag)!r}")
    plain: dict[str, Any] = {flag: bool(getattr(settings, flag)) for flag in _FLAGS}
    plain["max_to_keep"] = None if count is None else int(count)
    plain["keep_checkpoint_every_n_hours"] = None if hours is None else float(hours)
    return replace(settings, **plain)


class VariableList:
    """The meaning of a `var_list`: a selection of variables, saved names for some of them, or all variables.

    Attributes:
        selection: selects variables by their names in the tree; None for all.
        renaming: maps these names to those in the checkpoint; None if they are the same.
    """

    def __init__(self, var_list: Any, allow_empty: bool) -> None:
        self._allow_empty = allow_empty
        self.selection: Selector | None = None
        self.renaming: Renaming | None = None
        self._stored_names: dict[str, str] | None = None
        if isinstance(var_list, Mapping) and all(isinstance(name, str) for name in var_list.values()):
            self._stored_names = _by_variable(var_list)
            self.selection = NameSet(self._stored_names, "var_list")
            self.renaming = ByName(self._stored_names, "var_list")
        elif var_list is not None:
            self.selection = as_selection(var_list)
        if self._stored_names == {} and not allow_empty:
            raise ValueError("No variables to save: var_list is empty; pass allow_empty=True to accept that")

    def selected_by(self, only: Any) -> Selector | None:
        """Return the selection of the variables that both `var_list` and `only` select."""
        if only is None or self.selection is None:
            return self.selection if only is None else as_selection(only)
        return self.selection & as_selection(only)

    def contents(self, tree: Any, metadata: Mapping[str, Any] | None, meeting: Meeting | None) -> TreeContents:
        """Return the contents of the checkpoint of a tree: with a meeting, this process's share of them."""
        may_be_empty = self._allow_empty or self._stored_names is not None
        contents = contents_of(tree, metadata, only=self.selection, may_be_empty=may_be_empty, meeting=meeting)
        absent = set(self._stored_names or ()).difference(contents.names)
        if absent:
            lines = "\n".join(lines_with_suggestions(sorted(absent), flatten_tree(tree).names))
            raise VariableNotFoundError(f"var_list names variables that the tree does not have:\n{lines}")
        if not contents.names and not self._allow_empty:
            raise ValueError("No variables to save: the tree is empty; use Saver(allow_empty=True) to accept that")
        return contents if self._stored_names is None else renamed(contents, self._stored_names)


def path_to_save(settings: SaverDef, save_path: PathLike | None, step: int | None, state_name: str) -> str:
    """Return the path of a new checkpoint, with its step.

    Raises:
        ValueError: if there is no path, or it is that of a directory or of the state file.
    """
    given = settings.filename if save_path is None else save_path
    if given is None:
        raise ValueError("save_path: expected a path, found None; pass save_path here or filename to Saver")
    target = local_path(given)
    if str(given).endswith("/"):
        raise ValueError(f"save_path: expected the path of a checkpoint, found the directory {str(given)!r}")
    if step is None and target.name == state_name:
        raise ValueError(
            f"'latest_filename' collides with 'save_path': {state_name!r} and {str(target)!r}; rename one of them"
        )
    number = "" if step is None else f"-{step:08d}" if settings.pad_step_number else f"-{step}"
    path = f"{target}{number}"
    if Path(path).name == state_name:
        raise ValueError(f"save_path: {path!r} conflicts with the path of the state file; rename one of them")
    return path


def _by_variable(var_list: Mapping[Any, str]) -> dict[str, str]:
    wrong = [name for name in var_list if not isinstance(name, str)]
    if wrong:
        raise TypeError(f"var_list: expected a str for each saved name, found {wrong!r}")
    for name in var_list:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"var_list: expected names that can be written as UTF-8, found {name!r}") from None
    repeated = duplicates(var_list.values())
    if repeated:
        raise ValueError(f"var_list: expected one saved name for each variable, found several for {repeated}")
    return {variable: saved for saved, variable in var_list.items()}
