"""The engine of pytreesaver inside Orbax: a handler for `orbax.checkpoint.CheckpointManager` and checkpointers.

Orbax keeps its steps, its retention and its commit, and pytreesaver writes and reads the items: exactly, with
checksums, and fast also for trees of many leaves. One line of a loop changes::

    manager.save(step, args=pytreesaver.orbax.SaveArgs(state))
    state = manager.restore(step, args=pytreesaver.orbax.RestoreArgs(like=state))

The directory of an item is a checkpoint of pytreesaver: ``pytreesaver.restore("run/100/default")`` reads it without
Orbax.
"""

import dataclasses
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from pytreesaver._checkpoint.restoring.matching import Mismatched, Missing, Unexpected
from pytreesaver._checkpoint.restoring.restore import restore
from pytreesaver._checkpoint.restoring.targets import ShardingRule
from pytreesaver._checkpoint.saving.contents import contents_of
from pytreesaver._checkpoint.saving.snapshot import snapshot
from pytreesaver._errors import not_installed
from pytreesaver._inspect.checkpoint import load_checkpoint
from pytreesaver._inspect.type_tree import TypeNode
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import replace_file
from pytreesaver._tree.names.rename import Rename
from pytreesaver._tree.names.select import Selection, as_selection
from pytreesaver.formats.protocol import TreeContents
from pytreesaver.formats.registry import write_into

try:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import future
except ModuleNotFoundError as error:
    raise not_installed(__name__, error.name or "orbax.checkpoint", "this module", extra="orbax") from None

__all__ = ["CheckpointHandler", "CheckpointableHandler", "RestoreArgs", "SaveArgs"]

_STUB = "_METADATA"
"""`orbax.checkpoint.v1.load` reads only directories with such a file."""


class CheckpointHandler(ocp.AsyncCheckpointHandler):  # type: ignore[misc, unused-ignore]
    """A handler of Orbax that saves and restores trees with pytreesaver.

    Its arguments are `SaveArgs` and `RestoreArgs`. It works in a `CheckpointManager`, alone or in a `Composite`, in a
    `Checkpointer`, and in an `AsyncCheckpointer`.
    A manager that only restores needs it as ``item_handlers`` or in a handler registry, as for every handler of one's
    own.

    Example:
        >>> import orbax.checkpoint as ocp
        >>> import pytreesaver.orbax
        >>> state = {"w": np.ones(2), "opt": (np.zeros(2), {"count": 3})}
        >>> with ocp.CheckpointManager(Path("in-orbax").absolute()) as manager:
        ...     saved = manager.save(100, args=pytreesaver.orbax.SaveArgs(state))
        ...     manager.wait_until_finished()
        ...     restored = manager.restore(100, args=pytreesaver.orbax.RestoreArgs())
        >>> restored["opt"]
        (array([0., 0.]), {'count': 3})
        >>> pytreesaver.restore("in-orbax/100/default", only="w")
        {'w': array([1., 1.])}
    """

    def save(self, directory: Any, args: "SaveArgs") -> None:
        """Save a tree into the directory of an item.

        Raises:
            UnsupportedLeafError, DuplicateNameError: as `pytreesaver.save` does.
        """
        _write(Path(directory), args.contents())

    async def async_save(self, directory: Any, args: "SaveArgs") -> list[future.Future]:
        """Start to save a tree. When this returns, the caller may modify or donate the arrays."""
        contents = snapshot(args.contents())

        async def write() -> None:
            _write(Path(directory), contents)

        return [future.CommitFutureAwaitingContractedSignals(write(), name="pytreesaver")]

    def restore(self, directory: Any, args: "RestoreArgs | None" = None) -> Any:
        """Restore a tree from the directory of an item. Raises what `pytreesaver.restore` raises."""
        given = RestoreArgs() if args is None else args
        return restore(Path(directory), given.like, **given.options())

    def metadata(self, directory: Any) -> TypeNode:
        """Return the types of the leaves, and the containers, without reading the arrays."""
        with load_checkpoint(Path(directory)) as checkpoint:
            return checkpoint.type_tree()

    def finalize(self, directory: Any) -> None:
        """Do nothing: the files are complete and synced."""


@ocp.args.register_with_handler(CheckpointHandler, for_save=True)  # type: ignore[untyped-decorator, unused-ignore]
@dataclasses.dataclass
class SaveArgs(ocp.args.CheckpointArgs):  # type: ignore[misc, unused-ignore]
    """What `CheckpointHandler` saves: the arguments of `pytreesaver.save`.

    Attributes:
        tree: the tree.
        only: the variables to save.
        metadata: a dict of plain Python values to store with the tree.
    """

    tree: Any
    only: Selection | None = None
    metadata: Mapping[str, Any] | None = None

    def contents(self) -> TreeContents:
        """Return what to write. Raises what `pytreesaver.save` raises for a tree that it cannot save."""
        return contents_of(self.tree, self.metadata, only=None if self.only is None else as_selection(self.only))


@ocp.args.register_with_handler(CheckpointHandler, for_restore=True)  # type: ignore[untyped-decorator, unused-ignore]
@dataclasses.dataclass
class RestoreArgs(ocp.args.CheckpointArgs):  # type: ignore[misc, unused-ignore]
    """How `CheckpointHandler` restores: the arguments of `pytreesaver.restore`, with the same defaults."""

    like: Any = None
    only: Selection | None = None
    rename: Rename | None = None
    missing: Missing = "error"
    unexpected: Unexpected = "error"
    mismatched: Mismatched = "error"
    cast: bool | DTypeLike = False
    reshape: bool = False
    sharding: ShardingRule | None = None
    as_numpy: bool = False
    mmap: bool = False
    verify: bool = True

    def options(self) -> dict[str, Any]:
        """Return all arguments but the template."""
        names = (field.name for field in dataclasses.fields(self) if field.name != "like")
        return {name: getattr(self, name) for name in names}


class CheckpointableHandler:
    """The same for version 1 of Orbax's API: a `CheckpointableHandler` for trees.

    Register it for the names of the checkpointables that it should handle.

    Example:
        >>> import pytreesaver.orbax
        >>> from orbax.checkpoint import v1
        >>> context = v1.Context()
        >>> registry = v1.handlers.local_registry()
        >>> context.checkpointables.registry = registry.add(
        ...     pytreesaver.orbax.CheckpointableHandler, checkpointable_name="params")
        >>> path = Path("in-orbax-v1").absolute()
        >>> with context:
        ...     v1.save_checkpointables(path, {"params": {"w": np.ones(2), "pair": (1, 2)}})
        ...     v1.load_checkpointables(path)["params"]["pair"]
        (1, 2)
    """

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """Take a snapshot of a tree, and return what writes it in the background."""
        contents = snapshot(contents_of(checkpointable, None))

        async def write() -> None:
            _write(Path(await directory.await_creation()), contents)

        return write()

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        """Return what restores the tree, into a template if there is one."""

        async def read() -> Any:
            return restore(Path(directory), abstract_checkpointable)

        return read()

    async def metadata(self, directory: Any) -> TypeNode:
        """Return the types of the leaves, and the containers, without reading the arrays."""
        with load_checkpoint(Path(directory)) as checkpoint:
            return checkpoint.type_tree()

    def is_handleable(self, checkpointable: Any) -> bool:
        """Return whether a value is a tree with leaves: then this handler can save it."""
        return bool(jax.tree.leaves(checkpointable))

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Return whether a value can be a template."""
        return None if abstract_checkpointable is None else bool(jax.tree.leaves(abstract_checkpointable))


def _write(directory: Path, contents: TreeContents) -> None:
    # Replicated trees are the same in all processes, and others cannot be saved: one process writes.
    if jax.process_index() == 0:
        write_into(directory, contents)
        if not filesystem.exists(directory / _STUB):
            replace_file(directory / _STUB, b"{}")
