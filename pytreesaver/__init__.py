"""Save and restore any JAX pytree, exactly: ``save(tree, path)`` and ``restore(path)``."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytreesaver._checkpoint.background import SaveFuture
    from pytreesaver._checkpoint.copying import copy_checkpoint
    from pytreesaver._checkpoint.restoring.restore import restore
    from pytreesaver._checkpoint.saving import save, save_async
    from pytreesaver._checkpoint.warm_start.assignment import init_from_checkpoint
    from pytreesaver._checkpoint.warm_start.vocabulary import VocabInfo
    from pytreesaver._checkpoint.warm_start.warm_start import warm_start
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
    from pytreesaver._inspect.checkpoint import Checkpoint, list_variables, load_checkpoint, load_variable, verify
    from pytreesaver._inspect.diff import Diff, VariableChange, diff
    from pytreesaver._inspect.report import write_report
    from pytreesaver._inspect.statistics import Statistics
    from pytreesaver._inspect.type_tree import TypeNode
    from pytreesaver._inspect.variable import Variable
    from pytreesaver._run.deleting import prune, remove_checkpoint
    from pytreesaver._run.directory import (
        checkpoint_exists,
        checkpoints_iterator,
        get_checkpoint_mtimes,
        latest_checkpoint,
    )
    from pytreesaver._run.history import CheckpointEvent, get_checkpoint_history
    from pytreesaver._run.listing import ListedCheckpoint, list_checkpoints
    from pytreesaver._run.policies.retention import (
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
    from pytreesaver._run.state_file import get_checkpoint_state, update_checkpoint_state
    from pytreesaver._run.state_text import CheckpointState
    from pytreesaver._savers.manager import CheckpointManager
    from pytreesaver._savers.saver import Saver
    from pytreesaver._savers.saver_def import SaverDef
    from pytreesaver._tree.select import Selection, glob, regex
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
    "_checkpoint.background": ("SaveFuture",),
    "_checkpoint.copying": ("copy_checkpoint",),
    "_checkpoint.restoring.restore": ("restore",),
    "_checkpoint.saving": ("save", "save_async"),
    "_checkpoint.warm_start.assignment": ("init_from_checkpoint",),
    "_checkpoint.warm_start.vocabulary": ("VocabInfo",),
    "_checkpoint.warm_start.warm_start": ("warm_start",),
    "_inspect.checkpoint": ("Checkpoint", "list_variables", "load_checkpoint", "load_variable", "verify"),
    "_inspect.diff": ("Diff", "VariableChange", "diff"),
    "_inspect.report": ("write_report",),
    "_inspect.statistics": ("Statistics",),
    "_inspect.type_tree": ("TypeNode",),
    "_inspect.variable": ("Variable",),
    "_run.deleting": ("prune", "remove_checkpoint"),
    "_run.directory": ("checkpoint_exists", "get_checkpoint_mtimes", "latest_checkpoint", "checkpoints_iterator"),
    "_run.history": ("CheckpointEvent", "get_checkpoint_history"),
    "_run.listing": ("ListedCheckpoint", "list_checkpoints"),
    "_run.policies.retention": (
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
    "_run.state_file": ("get_checkpoint_state", "update_checkpoint_state"),
    "_run.state_text": ("CheckpointState",),
    "_savers.manager": ("CheckpointManager",),
    "_savers.saver": ("Saver",),
    "_savers.saver_def": ("SaverDef",),
    "_tree.select": ("Selection", "glob", "regex"),
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
