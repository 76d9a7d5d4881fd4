"""The names of variables, from the keys of a TensorFlow checkpoint and from its object graph. Pure functions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from pytreesaver.formats.tensorflow.messages import GraphVariable

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The key of the object graph of a checkpoint of TensorFlow 2."""

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_LISTED_BY_KERAS_3 = re.compile(r"(.*/)?_[a-z_]+/[0-9]+(/.*)?")


def names_of_keys(keys: Sequence[str], graph: Sequence[GraphVariable] | None) -> tuple[list[str], dict[str, str]]:
    """Return the name of the variable with each key, and other names by which it may be called.

    Without an object graph, keys are names. With one, a name is the path of a variable in it: its key without the
    attribute and without escapes. A slot of an optimizer is in the optimizer, under its own name. Keras 3 lists its
    variables by numbers; there, a name is what Keras calls the variable, if that is unique.

    Example:
        >>> value = "/.ATTRIBUTES/VARIABLE_VALUE"
        >>> names_of_keys([f"net/w{value}", f"net/w/.OPTIMIZER_SLOT/adam/m{value}", f"c..d{value}"], [])[0]
        ['net/w', 'adam/m/net/w', 'c.d']
    """
    if graph is None:
        return list(keys), {}
    paths = _unless_ambiguous([_path(key) for key in keys], keys)
    full_names = {variable.key: variable.full_name for variable in graph if variable.full_name}
    called = _unless_ambiguous([full_names.get(key, path) for key, path in zip(keys, paths, strict=True)], paths)
    names = called if any(map(_LISTED_BY_KERAS_3.fullmatch, paths)) else paths
    taken = set(names)
    others: dict[str, str] = {}
    for alternatives in (keys, paths, called):
        for name, alternative in zip(names, alternatives, strict=True):
            if alternative not in taken:
                others.setdefault(alternative, name)
    return names, others


def _path(key: str) -> str:
    variable, slot, rest = key.removesuffix(_VALUE).partition(_SLOT)
    path = _unescaped(variable)
    return f"{_unescaped(rest)}/{path}" if slot and _VALUE in key else path


def _unescaped(path: str) -> str:
    return re.sub(r"\.S|\.\.", lambda found: "/" if found[0] == ".S" else ".", path)


def _unless_ambiguous(names: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    """Return the names, those that are not unique replaced by others."""
    counts: Mapping[str, int] = Counter(names)
    result = [name if counts[name] == 1 else other for name, other in zip(names, otherwise, strict=True)]
    return result if len(set(result)) == len(result) else list(otherwise)
