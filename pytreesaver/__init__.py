"""Save and restore any JAX pytree, exactly: ``save(tree, path)`` and ``restore(path)``."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytreesaver._assignment import init_from_checkpoint
    from pytreesaver._background import SaveFuture
    from pytreesaver._checkpoint import restore, save, save_async
    from pytreesaver._copying import copy_checkpoint
    from pytreesaver._diff import Diff, VariableChange, diff
    from pytreesaver._errors import (
        CheckpointError,
        CheckpointExistsError,
        CheckpointIOError,
        CheckpointNotFoundError,
        CheckpointPermissionError,
        ConcurrentWriterError,
        CorruptCheckpointError,
        DuplicateNameError,
        MismatchError,
        RetentionWarning,
        SaveTimeoutError,
        StructureWarning,
        UnsupportedLeafError,
        UnsupportedVersionError,
        VariableNotFoundError,
    )
    from pytreesaver._history import CheckpointEvent, get_checkpoint_history
    from pytreesaver._listing import ListedCheckpoint, list_checkpoints
    from pytreesaver._manager import CheckpointManager
    from pytreesaver._report import write_report
    from pytreesaver._retention import (
        Decision,
        KeepAll,
        KeepBest,
        KeepEveryHours,
        KeepEverySteps,
        KeepLast,
        KeepSteps,
        KeepYoungerThan,
        RetentionPolicy,
        SavedCheckpoint,
    )
    from pytreesaver._run_directory import (
        checkpoint_exists,
        get_checkpoint_mtimes,
        get_checkpoint_state,
        latest_checkpoint,
        update_checkpoint_state,
    )
    from pytreesaver._saver import Saver
    from pytreesaver._saver_def import SaverDef
    from pytreesaver._select import Selection, glob, regex
    from pytreesaver._state_file import CheckpointState
    from pytreesaver._statistics import Statistics
    from pytreesaver._tidying import prune, remove_checkpoint
    from pytreesaver._type_tree import TypeNode
    from pytreesaver._variables import Checkpoint, Variable, list_variables, load_checkpoint, load_variable, verify
    from pytreesaver._vocabulary import VocabInfo
    from pytreesaver._warm_start import warm_start
    from pytreesaver._watch import checkpoints_iterator
    from pytreesaver.inspect_checkpoint import print_tensors_in_checkpoint_file

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointEvent",
    "CheckpointExistsError",
    "CheckpointIOError",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "CheckpointPermissionError",
    "CheckpointState",
    "ConcurrentWriterError",
    "CorruptCheckpointError",
    "Decision",
    "Diff",
    "DuplicateNameError",
    "KeepAll",
    "KeepBest",
    "KeepEveryHours",
    "KeepEverySteps",
    "KeepLast",
    "KeepSteps",
    "KeepYoungerThan",
    "ListedCheckpoint",
    "MismatchError",
    "RetentionPolicy",
    "RetentionWarning",
    "SaveFuture",
    "SaveTimeoutError",
    "SavedCheckpoint",
    "Saver",
    "SaverDef",
    "Selection",
    "Statistics",
    "StructureWarning",
    "TypeNode",
    "UnsupportedLeafError",
    "UnsupportedVersionError",
    "Variable",
    "VariableChange",
    "VariableNotFoundError",
    "VocabInfo",
    "checkpoint_exists",
    "checkpoints_iterator",
    "copy_checkpoint",
    "diff",
    "get_checkpoint_history",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "glob",
    "init_from_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "print_tensors_in_checkpoint_file",
    "prune",
    "regex",
    "remove_checkpoint",
    "restore",
    "save",
    "save_async",
    "update_checkpoint_state",
    "verify",
    "warm_start",
    "write_report",
]

_MODULES = {
    "_assignment": ("init_from_checkpoint",),
    "_background": ("SaveFuture",),
    "_checkpoint": ("restore", "save", "save_async"),
    "_copying": ("copy_checkpoint",),
    "_diff": ("Diff", "VariableChange", "diff"),
    "_history": ("CheckpointEvent", "get_checkpoint_history"),
    "_listing": ("ListedCheckpoint", "list_checkpoints"),
    "_manager": ("CheckpointManager",),
    "_report": ("write_report",),
    "_retention": (
        "Decision",
        "KeepAll",
        "KeepBest",
        "KeepEveryHours",
        "KeepEverySteps",
        "KeepLast",
        "KeepSteps",
        "KeepYoungerThan",
        "RetentionPolicy",
        "SavedCheckpoint",
    ),
    "_run_directory": (
        "checkpoint_exists",
        "get_checkpoint_mtimes",
        "get_checkpoint_state",
        "latest_checkpoint",
        "update_checkpoint_state",
    ),
    "_saver": ("Saver",),
    "_saver_def": ("SaverDef",),
    "_select": ("Selection", "glob", "regex"),
    "_state_file": ("CheckpointState",),
    "_statistics": ("Statistics",),
    "_tidying": ("prune", "remove_checkpoint"),
    "_type_tree": ("TypeNode",),
    "_variables": ("Checkpoint", "Variable", "list_variables", "load_checkpoint", "load_variable", "verify"),
    "_vocabulary": ("VocabInfo",),
    "_warm_start": ("warm_start",),
    "_watch": ("checkpoints_iterator",),
    "inspect_checkpoint": ("print_tensors_in_checkpoint_file",),
}


def __getattr__(name: str) -> Any:
    # The modules are imported when one of their names is first used, so that importing pytreesaver costs nothing.
    if name not in __all__:
        raise AttributeError(f"module 'pytreesaver' has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "_errors")
    value = globals()[name] = getattr(importlib.import_module(f"pytreesaver.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
