"""Save and restore any JAX pytree, exactly: ``save(tree, path)`` and ``restore(path)``."""

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
