"""Save and restore any JAX pytree, exactly: ``save(tree, path)`` and ``restore(path)``."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytreesaver._checkpoint import restore, save
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
    from pytreesaver._run_directory import (
        checkpoint_exists,
        get_checkpoint_mtimes,
        get_checkpoint_state,
        latest_checkpoint,
        remove_checkpoint,
        update_checkpoint_state,
    )
    from pytreesaver._state_file import CheckpointState
    from pytreesaver._variables import Checkpoint, Variable, list_variables, load_checkpoint, load_variable, verify

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointIOError",
    "CheckpointNotFoundError",
    "CheckpointPermissionError",
    "CheckpointState",
    "ConcurrentWriterError",
    "CorruptCheckpointError",
    "DuplicateNameError",
    "MismatchError",
    "RetentionWarning",
    "SaveTimeoutError",
    "StructureWarning",
    "UnsupportedLeafError",
    "UnsupportedVersionError",
    "Variable",
    "VariableNotFoundError",
    "checkpoint_exists",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "latest_checkpoint",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "remove_checkpoint",
    "restore",
    "save",
    "update_checkpoint_state",
    "verify",
]

_MODULES = {
    "_checkpoint": ("restore", "save"),
    "_run_directory": (
        "checkpoint_exists",
        "get_checkpoint_mtimes",
        "get_checkpoint_state",
        "latest_checkpoint",
        "remove_checkpoint",
        "update_checkpoint_state",
    ),
    "_state_file": ("CheckpointState",),
    "_variables": ("Checkpoint", "Variable", "list_variables", "load_checkpoint", "load_variable", "verify"),
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
