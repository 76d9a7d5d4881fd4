"""Mistakes in a user's program, each of which mypy and pyright refuse.

Every line with an ignore comment must be an error: both checkers report an ignore comment that ignores nothing.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from pathlib import Path
from typing import assert_type

import jax

import pytreesaver as pts

tree = {"w": jax.random.normal(jax.random.key(0), (3,))}


def save() -> None:
    pts.save(tree)  # type: ignore[call-overload]
    pts.save(tree, 3)  # type: ignore[call-overload]
    pts.save(tree, b"model")  # type: ignore[call-overload]
    pts.save(tree, "model", True)  # type: ignore[call-overload]
    pts.save(tree, "model", force=True)  # type: ignore[call-overload]
    pts.save(tree, "model", overwrite="yes")  # type: ignore[call-overload]
    pts.save(tree, "model", metadata=["a"])  # type: ignore[call-overload]
    pts.save(tree, "model", only=3)  # type: ignore[call-overload]
    pts.save(tree, "model", progress=print_name)  # type: ignore[arg-type]
    pts.save_async(tree, "model").path  # type: ignore[attr-defined]
    assert_type(pts.save_async(tree, "model"), Path)  # type: ignore[assert-type]


def print_name(name: str) -> None:
    print(name)


def restore() -> None:
    restored: list[int] = pts.restore("model", tree)  # type: ignore[arg-type]
    pts.restore(tree, "model")  # type: ignore[call-overload]
    pts.restore("model", tree, "params/**")  # type: ignore[call-overload]
    pts.restore("model", template=tree)  # type: ignore[call-overload]
    pts.restore("model", tree, missing="skip")  # type: ignore[call-overload]
    pts.restore("model", tree, missing=True)  # type: ignore[call-overload]
    pts.restore("model", tree, unexpected="keep")  # type: ignore[call-overload]
    pts.restore("model", tree, rename="encoder/")  # type: ignore[arg-type]
    pts.restore("model", tree, rename={"encoder/": 3})  # type: ignore[dict-item]
    pts.restore("model", tree, rename=[("a", "b", "c")])  # type: ignore[list-item]
    pts.restore("model", tree, rename=lambda name: None)  # type: ignore[arg-type, return-value]
    pts.restore("model", tree, sharding=3)  # type: ignore[call-overload]
    pts.restore("model", tree, sharding=lambda name: None)  # type: ignore[arg-type, misc]
    pts.restore("model", tree, only=3.5)  # type: ignore[call-overload]
    pts.restore("model", tree, only=lambda name, shape: True)  # type: ignore[arg-type, misc]
    pts.restore("model", tree, cast="bfloat16", verify="no")  # type: ignore[call-overload]
    print(pts.restore("model", tree)["w"].no_such_attribute)  # type: ignore[attr-defined]
    print(restored)


def select() -> None:
    pts.glob(3)  # type: ignore[arg-type]
    pts.glob("a") | 3  # type: ignore[operator]
    pts.Selection("a")  # type: ignore[operator]


def manage() -> None:
    pts.CheckpointManager()  # type: ignore[call-arg]
    pts.CheckpointManager("run", max_to_keep="all")  # type: ignore[arg-type]
    pts.CheckpointManager("run", keep_best="loss")  # type: ignore[arg-type]
    pts.CheckpointManager("run", keep_best=(3, "loss", "lowest"))  # type: ignore[arg-type]
    pts.CheckpointManager("run", policy=3)  # type: ignore[arg-type]
    with pts.CheckpointManager("run") as manager:
        manager.save(tree, 1)  # type: ignore[arg-type]
        manager.save(1.5, tree)  # type: ignore[arg-type]
        manager.save(1, tree, {"loss": 0.5})  # type: ignore[call-arg]
        manager.save(1, tree, metrics={"loss": "low"})  # type: ignore[dict-item]
        manager.restore(tree, step="last")  # type: ignore[call-overload]
        state: int = manager.restore_or_init(tree)  # type: ignore[assignment]
        step: int = manager.latest_step()  # type: ignore[assignment]
        print(state, step)
    pts.KeepBest(1, "loss", "lowest")  # type: ignore[arg-type]
    pts.KeepLast(3) | "all"  # type: ignore[operator]
    pts.prune("run", 3)  # type: ignore[arg-type]
    pts.latest_checkpoint("run").name  # type: ignore[union-attr]


def inspect() -> None:
    pts.load_checkpoint("model")["w"].sahpe  # type: ignore[attr-defined]
    pts.list_variables(None)  # type: ignore[arg-type]
    pts.load_variable("model")  # type: ignore[call-arg]
    pts.diff("model")  # type: ignore[call-arg]
    pts.no_such_name  # type: ignore[attr-defined]


def like_tensorflow() -> None:
    saver = pts.Saver(max_to_keep="5")  # type: ignore[arg-type]
    saver.save(tree, "run/model", global_step="7")  # type: ignore[arg-type]
    moved: str = saver.restore("run/model", tree)  # type: ignore[assignment]
    pts.warm_start("model", tree)  # type: ignore[arg-type]
    print(moved)
