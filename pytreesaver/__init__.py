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
        CorruptCheckpointError,
        DuplicateNameError,
        MismatchError,
        StructureWarning,
        UnsupportedLeafError,
        UnsupportedVersionError,
        VariableNotFoundError,
    )
    from pytreesaver._variables import Checkpoint, Variable, list_variables, load_checkpoint, load_variable, verify

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointIOError",
    "CheckpointNotFoundError",
    "CheckpointPermissionError",
    "CorruptCheckpointError",
    "DuplicateNameError",
    "MismatchError",
    "StructureWarning",
    "UnsupportedLeafError",
    "UnsupportedVersionError",
    "Variable",
    "VariableNotFoundError",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "restore",
    "save",
    "verify",
]

_MODULES = {
    "_checkpoint": ("restore", "save"),
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
