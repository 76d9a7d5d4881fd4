"""A user's program that mypy and pyright, both strict, accept.

It is never run. Only what JAX leaves untyped (`jax.Device`, `jax.eval_shape`) is Any here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, assert_type

import jax
import numpy as np

import pytreesaver as pts
import pytreesaver.testing as pts_testing


class Moments(NamedTuple):
    mu: jax.Array
    nu: jax.Array


@dataclass
class State:
    params: dict[str, jax.Array]
    moments: Moments
    step: int


def init() -> State:
    w = jax.random.normal(jax.random.key(0), (3,))
    return State({"w": w}, Moments(w, w), 0)


def print_progress(done: int, total: int) -> None:
    print(f"{done} of {total} bytes")


def save(state: State) -> None:
    path = pts.save(state, "model", metadata={"loss": 0.5}, overwrite=True, durable=False, progress=True)
    assert_type(path, Path)
    pts.save(state.params, Path("params"), only="**", progress=print_progress)
    pts.save([1, 2.5, "text", None, b"bytes", np.arange(3)], "values")
    future = pts.save_async(state, path, copy=True)
    assert_type(future, pts.SaveFuture)
    assert_type(future.result(timeout=60), Path)


async def save_and_wait(state: State) -> Path:
    return await pts.save_async(state, "model")


def restore(path: pts.PathLike, abstract: Any) -> None:
    assert_type(pts.restore(path), Any)
    assert_type(pts.restore(path, None), Any)
    assert_type(pts.restore(path, like=None, only="params/**"), Any)
    assert_type(pts.restore(path, abstract), Any)
    state = pts.restore(path, like=init())
    assert_type(state, State)
    assert_type(state.moments.mu, jax.Array)
    assert_type(pts.restore(path, init().moments), Moments)
    assert_type(pts.restore(path, {"w": state.params["w"]}), dict[str, jax.Array])
    assert_type(pts.restore(path, (state, [1.5])), tuple[State, list[float]])
    pts.restore(path, init(), missing="keep", unexpected="ignore", cast=True, reshape=True)
    pts.restore(path, init(), as_numpy=True, mmap=True, verify=False, progress=print_progress)
    pts.restore(path, cast="float16")
    pts.restore(path, cast=np.float32)
    pts.restore(path, cast=np.dtype("float32"))


def is_bias(name: str) -> bool:
    return name.endswith("bias")


def select(path: str) -> None:
    selections: list[pts.Selection] = [
        "encoder/**",
        re.compile("kernel$"),
        is_bias,
        ["encoder", re.compile("w$"), pts.glob("head/*"), is_bias],
        {"encoder": True, "head": [False, True]},
        pts.glob("a") | pts.regex("b") & ~pts.glob("c") | "d",
    ]
    for selection in selections:
        pts.restore(path, only=selection)
        pts.save(init(), path, only=selection)
    pts.restore(path, only=lambda name: "bias" not in name)
    pts.restore(path, only=["encoder", "head"])
    assert_type(pts.glob("a") | "d", pts.Selector)


def rename(path: str) -> None:
    renames: list[pts.Rename] = [
        {"encoder/": "backbone/"},
        [(r"block_(\d+)", r"layers/\1"), (re.compile("a"), "b")],
        str.lower,
    ]
    for each in renames:
        pts.restore(path, init(), rename=each)
    pts.restore(path, init(), rename=lambda name: name.removeprefix("ema/"))


def place(path: str, sharding: jax.sharding.Sharding, device: Any, abstract: Any) -> None:
    def rule(name: str, shape: tuple[int, ...]) -> jax.sharding.Sharding | None:
        return sharding if len(shape) > 1 and name != "head" else None

    rules: list[pts.ShardingRule] = [sharding, rule, {"encoder": sharding, "head": [None, device]}, device]
    for each in rules:
        pts.restore(path, abstract, sharding=each)
    pts.restore(path, sharding=lambda name, shape: sharding)


def inspect(path: str) -> None:
    with pts.load_checkpoint(path) as checkpoint:
        variables: Mapping[str, pts.Variable] = checkpoint
        assert_type(variables["w"].shape, tuple[int, ...])
        assert_type(variables["w"].dtype, np.dtype[Any])
        print(checkpoint.metadata, len(checkpoint), checkpoint)
    for name, shape in pts.list_variables(path):
        assert_type(name, str)
        assert_type(shape, tuple[int, ...])
    pts.verify(path)
    if pts.diff(path, "other"):
        raise SystemExit(1)


def manage(run: Path) -> None:
    assert_type(pts.latest_checkpoint(run), Path | None)
    policy = pts.KeepLast(3) | pts.KeepBest(1, "loss") | pts.KeepEveryHours(2) | KeepOdd()
    for listed in pts.list_checkpoints(run, policy=policy):
        print(listed.path, listed.step, listed.metrics, listed.reasons)
    pts.prune(run, policy, dry_run=True)
    pts.copy_checkpoint(run / "ckpt-1", "copy", only="params/**", rename={"a": "b"})


def train(state: State) -> None:
    with pts.CheckpointManager("run", keep_best=(3, "accuracy", "max"), save_interval_steps=100) as manager:
        assert_type(manager.restore_or_init(init), State)
        state = manager.restore_or_init(state)
        for step in range(state.step, 1000):
            loss = state.moments.mu.mean()
            saved = manager.save(step, state, metrics={"loss": loss, "accuracy": np.float64(1), "epoch": 2})
            assert_type(saved, Path | None)
        assert_type(manager.restore(), Any)
        assert_type(manager.restore(state, step=np.int64(100)), State)
        assert_type(manager.latest_step(), int | None)


class KeepOdd(pts.RetentionPolicy):
    """A policy of the user's own."""

    def kept(self, checkpoints: Sequence[pts.SavedCheckpoint], now: float) -> dict[int, str]:
        return {i: "odd step" for i, checkpoint in enumerate(checkpoints) if checkpoint.step % 2}


def like_tensorflow(state: State) -> None:
    saver = pts.Saver({"weights": "params/w"}, max_to_keep=3)
    path = saver.save(state, "run/model", global_step=np.int64(7))
    assert_type(path, str)
    assert_type(saver.restore(path, state), State)
    assert_type(pts.warm_start(state, path, vars_to_warm_start=["params", re.compile("moments")]), State)
    assert_type(pts.init_from_checkpoint(state, path, {"weights": "params/w"}), State)


def test_round_trip(state: State) -> None:
    pts_testing.assert_trees_equal(pts.restore(pts.save(state, "model")), state)
