"""Cost of an asynchronous save to the training loop that runs concurrently."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import Times, spread
from benchmarks.peers import Contestant, Save, remove


def step_rate_during_saves(
    contestants: list[Contestant], tree: Any, new_path: Callable[[], Path], rounds: int
) -> tuple[dict[str, Times], dict[str, Times]]:
    """Return the fraction of the step rate that remains during a save, and the training time that a save costs.

    Both are per contestant. The steps are matrix products on all cores.
    """
    weights = jax.random.normal(jax.random.key(0), (1024, 1024)) / 32

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        for _ in range(4):
            x = jnp.tanh(x @ weights)
        return x

    def step_rate(keep_going: Callable[[float], bool]) -> tuple[float, float]:
        begin = time.perf_counter()
        count, x, taken = 0, weights, 0.0
        while keep_going(taken) or count == 0:
            x = jax.block_until_ready(step(x))
            count += 1
            taken = time.perf_counter() - begin
        return count / taken, taken

    kept: dict[str, list[float]] = {each.name: [] for each in contestants}
    lost: dict[str, list[float]] = {each.name: [] for each in contestants}
    undisturbed_rate = lambda: step_rate(lambda taken: taken < 1.0)[0]  # noqa: E731
    undisturbed_rate()
    for _ in range(rounds):
        for each in contestants:
            assert each.start is not None
            path = new_path()
            before = undisturbed_rate()
            begin = time.perf_counter()
            save = each.start(tree, path)
            blocked = time.perf_counter() - begin
            disturbed_rate, taken = step_rate(partial(_is_running, save))
            save.wait()
            remove(path)
            ratio = disturbed_rate / ((before + undisturbed_rate()) / 2)
            kept[each.name].append(ratio)
            lost[each.name].append(blocked + (1 - ratio) * taken)
    return {name: spread(each) for name, each in kept.items()}, {name: spread(each) for name, each in lost.items()}


def _is_running(save: Save, _: float) -> bool:
    return not save.done()


def next_donating_step(
    contestants: list[Contestant], tree: Any, new_path: Callable[[], Path], rounds: int
) -> tuple[dict[str, Times], dict[str, Times]]:
    """Return how long the caller is blocked, and how long a step takes that donates the tree being saved.

    Both are per contestant, in seconds. "no save" is a step without a save.
    """
    step = jax.jit(lambda t: jax.tree.map(lambda x: x * 1.0001, t), donate_argnums=0)
    tree = jax.tree.map(jnp.copy, tree)

    def timed_step() -> float:
        nonlocal tree
        begin = time.perf_counter()
        tree = jax.block_until_ready(step(tree))
        return time.perf_counter() - begin

    timed_step()
    blocked: dict[str, list[float]] = {each.name: [] for each in contestants}
    taken: dict[str, list[float]] = {name: [] for name in ("no save", *blocked)}
    for _ in range(rounds):
        for each in contestants:
            assert each.start is not None
            path = new_path()
            begin = time.perf_counter()
            save = each.start(tree, path)
            blocked[each.name].append(time.perf_counter() - begin)
            taken[each.name].append(timed_step())
            save.wait()
            remove(path)
            timed_step()
            taken["no save"].append(timed_step())
    return {name: spread(each) for name, each in blocked.items()}, {name: spread(each) for name, each in taken.items()}
