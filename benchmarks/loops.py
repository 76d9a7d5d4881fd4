"""What a save in the background costs the training loop that goes on meanwhile."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import Times, spread
from benchmarks.peers import Contestant, Save, remove


def steps_kept(
    able: list[Contestant], tree: Any, new_path: Callable[[], Path], rounds: int
) -> tuple[dict[str, Times], dict[str, Times]]:
    """For each contestant, which part of its steps in a second a loop keeps while a save goes on, and how many
    seconds of training a save costs in all. The steps are products of matrices, on all cores."""
    weights = jax.random.normal(jax.random.key(0), (1024, 1024)) / 32

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        for _ in range(4):
            x = jnp.tanh(x @ weights)
        return x

    def steps_in_a_second(goes_on: Callable[[float], bool]) -> tuple[float, float]:
        begin = time.perf_counter()
        count, x, taken = 0, weights, 0.0
        while goes_on(taken) or count == 0:
            x = jax.block_until_ready(step(x))
            count += 1
            taken = time.perf_counter() - begin
        return count / taken, taken

    kept: dict[str, list[float]] = {each.name: [] for each in able}
    lost: dict[str, list[float]] = {each.name: [] for each in able}
    alone = lambda: steps_in_a_second(lambda taken: taken < 1.0)[0]  # noqa: E731
    alone()
    for _ in range(rounds):
        for each in able:
            assert each.start is not None
            path = new_path()
            before = alone()
            begin = time.perf_counter()
            save = each.start(tree, path)
            blocked = time.perf_counter() - begin
            meanwhile, taken = steps_in_a_second(partial(_goes_on, save))
            save.wait()
            remove(path)
            rate = meanwhile / ((before + alone()) / 2)
            kept[each.name].append(rate)
            lost[each.name].append(blocked + (1 - rate) * taken)
    return {name: spread(each) for name, each in kept.items()}, {name: spread(each) for name, each in lost.items()}


def _goes_on(save: Save, _: float) -> bool:
    return not save.done()


def next_donating_step(
    able: list[Contestant], tree: Any, new_path: Callable[[], Path], rounds: int
) -> tuple[dict[str, Times], dict[str, Times]]:
    """For each contestant, how long its caller is blocked, and the seconds that the next step takes, which donates the
    tree that is being saved; "no save" is a step without one."""
    step = jax.jit(lambda t: jax.tree.map(lambda x: x * 1.0001, t), donate_argnums=0)
    tree = jax.tree.map(jnp.copy, tree)

    def timed_step() -> float:
        nonlocal tree
        begin = time.perf_counter()
        tree = jax.block_until_ready(step(tree))
        return time.perf_counter() - begin

    timed_step()
    blocked: dict[str, list[float]] = {each.name: [] for each in able}
    taken: dict[str, list[float]] = {name: [] for name in ("no save", *blocked)}
    for _ in range(rounds):
        for each in able:
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
