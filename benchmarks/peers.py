"""The contestants behind a common interface. A peer that is not installed is skipped."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import pytreesaver as pts
from benchmarks import raw
from benchmarks.trees import named_leaves


class Save(NamedTuple):
    """An asynchronous save."""

    done: Callable[[], bool]
    wait: Callable[[], Any]


class Contestant(NamedTuple):
    """One way to save a tree to a path that does not exist and to restore it.

    `save` returns when the save is complete. `restore` receives the saved tree, or its shapes, as a template. `start`
    starts an asynchronous save. `restore_cold` is set if another way to restore is faster when nothing is cached.
    """

    name: str
    save: Callable[[Any, Path], Any]
    restore: Callable[[Path, Any], Any]
    start: Callable[[Any, Path], Save] | None = None
    restore_cold: Callable[[Path, Any], Any] | None = None


def contestants(*, durable: bool) -> list[Contestant]:
    """Return the contestants whose saves are durable, or those whose saves are not, each with the raw loop."""
    limit = Contestant(
        "raw",
        lambda tree, path: raw.write(str(path), [np.asarray(leaf) for leaf in jax.tree.leaves(tree)], durable=durable),
        lambda path, tree: raw.read(str(path)),
        restore_cold=lambda path, tree: raw.read(str(path), direct=True),
    )
    ours = Contestant(
        "pytreesaver",
        lambda tree, path: pts.save(tree, path, durable=durable),
        pts.restore,
        lambda tree, path: _started(pts.save_async(tree, path, durable=durable)),
    )
    others = [_in_format(format, durable=durable) for format in ("tensorflow", "msgpack")] if durable else []
    return [limit, ours, *others, *(_durable_peers() if durable else _other_peers())]


def _in_format(format: str, *, durable: bool) -> Contestant:
    return Contestant(
        f"pytreesaver, {format}",
        lambda tree, path: pts.save(tree, path, durable=durable, format=format),
        pts.restore,
    )


def copying() -> Contestant:
    """Return pytreesaver with asynchronous saves that copy the arrays."""
    return Contestant(
        "pytreesaver, copy",
        pts.save,
        pts.restore,
        lambda tree, path: _started(pts.save_async(tree, path, copy=True)),
    )


def _started(future: pts.SaveFuture) -> Save:
    return Save(future.done, future.result)


def _durable_peers() -> list[Contestant]:
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        return []

    def save(tree: Any, path: Path) -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree)
            checkpointer.wait_until_finished()

    def start(tree: Any, path: Path) -> Save:
        checkpointer = ocp.StandardCheckpointer()
        checkpointer.save(path.absolute(), tree)
        # Orbax has no way to ask whether a save has finished.
        waiting = threading.Thread(target=checkpointer.wait_until_finished)
        waiting.start()

        def wait() -> None:
            waiting.join()
            checkpointer.close()

        return Save(lambda: not waiting.is_alive(), wait)

    def restore(path: Path, tree: Any) -> Any:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path.absolute(), tree)

    return [Contestant("orbax", save, restore, start)]


def _other_peers() -> list[Contestant]:
    found = []
    try:
        import safetensors.flax

        found.append(
            Contestant(
                "safetensors",
                lambda tree, path: safetensors.flax.save_file(named_leaves(tree), str(path)),
                lambda path, tree: safetensors.flax.load_file(str(path)),
            )
        )
    except ImportError:
        pass
    try:
        import flax.serialization

        found.append(
            Contestant(
                "flax msgpack",
                lambda tree, path: path.write_bytes(flax.serialization.to_bytes(tree)),
                lambda path, tree: flax.serialization.from_bytes(tree, path.read_bytes()),
            )
        )
    except ImportError:
        pass
    try:
        import equinox

        found.append(
            Contestant(
                "equinox",
                lambda tree, path: equinox.tree_serialise_leaves(str(path) + ".eqx", tree),
                lambda path, tree: equinox.tree_deserialise_leaves(str(path) + ".eqx", tree),
            )
        )
    except ImportError:
        pass
    return found


def remove(path: Path) -> None:
    """Delete what a contestant saved."""
    for each in (path, *path.parent.glob(f"{path.name}.*")):
        if each.is_dir():
            shutil.rmtree(each)
        elif each.exists():
            os.unlink(each)
