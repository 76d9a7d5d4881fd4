"""Which variables of a checkpoint are wanted where there is no template, and the tree that they form. Pure."""

from typing import Any

from pytreesaver._errors import DuplicateNameError, VariableNotFoundError
from pytreesaver._names import listed_with_suggestions, shown
from pytreesaver._prune import TakenNameError, move_structure, prune_structure
from pytreesaver._rename import ByName
from pytreesaver._select import Selection, selected
from pytreesaver.formats import CheckpointReader


def chosen_variables(
    reader: CheckpointReader, only: Selection | None, rename: ByName | None, may_be_empty: bool = False
) -> tuple[list[str], list[int], Any]:
    """The names that the leaves shall have, the positions of their variables, and the structure of their tree.

    Raises:
        VariableNotFoundError: `only` selects nothing, or `rename` names what is not there.
        DuplicateNameError: a leaf and a container would have one name, or a variable has none left.
    """
    names, positions, structure = list(reader.names), list(range(len(reader.names))), reader.structure
    if rename is not None:
        names, positions = _renamed_variables(reader, rename, only)
    if only is not None:
        flags = selected(only, names, str(reader.path), may_be_empty=may_be_empty)
        names = [name for name, flag in zip(names, flags, strict=True) if flag]
        positions = [position for position, flag in zip(positions, flags, strict=True) if flag]
    if rename is not None:
        moved: dict[int, list[tuple[str, int]]] = {}
        for i, (name, position) in enumerate(zip(names, positions, strict=True)):
            moved.setdefault(position, []).append((name, i))
        try:
            structure = move_structure(structure, reader.names, moved, keep_empty=only is None)
        except TakenNameError as error:
            raise DuplicateNameError(
                f"{rename.label}: {shown(str(error))} would be a leaf of {reader.path}, and there are leaves "
                "under that name; rename those too, or leave them out with only="
            ) from None
    elif only is not None:
        structure = prune_structure(structure, {position: i for i, position in enumerate(positions)})
    return names, positions, structure


def _renamed_variables(
    reader: CheckpointReader, renaming: ByName, only: Selection | None
) -> tuple[list[str], list[int]]:
    pairs = [(name, i) for i, stored in enumerate(reader.names) for name in renaming.moved_names(stored)]
    unused = renaming.unused([name for name, _ in pairs])
    if unused:
        lines = listed_with_suggestions([renaming.stored_name(entry) for entry in unused], reader.names)
        raise VariableNotFoundError(f"{reader.path} lacks variables that {renaming.label} names:\n" + "\n".join(lines))
    kept = {position for _, position in pairs}
    lost = [name for i, name in enumerate(reader.names) if i not in kept]
    if lost and only is None:
        raise DuplicateNameError(
            f"{renaming.label} gives names to some variables of {reader.path} and leaves none for others; rename those "
            "too, or select the ones that are wanted with only=:\n" + "\n".join(f"  {shown(name)}" for name in lost)
        )
    return [name for name, _ in pairs], [position for _, position in pairs]
