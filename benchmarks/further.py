"""Incremental saves beside full ones, and models beside pickled functions that are traced again."""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pytreesaver as pts
from benchmarks.measure import Times, seconds, spread, take_turns, touch_memory

Row = tuple[str, str, Mapping[str, Times], str]
"""The tree, the operation, the times of each contestant, and their unit."""

_PARTS = 20
_LAYERS = 24


def incremental(directory: Path, scale: float, rounds: int) -> Iterator[Row]:
    """Yield the rows of incremental saves: 5 % of 1 GiB changed, nothing changed, and everything."""
    count = max(int((1 << 28) * scale) // _PARTS, 1 << 15)
    tree = {f"part_{i:02}": jnp.full(count, i, jnp.float32) for i in range(_PARTS)}
    nbytes = 4 * count * _PARTS
    for what, changed in (("5 % changed", 1), ("nothing changed", 0), ("all changed", _PARTS)):
        yield from _rows(directory, f"incremental, {nbytes >> 20} MiB in {_PARTS} arrays", what, tree, changed, rounds)
    many = {f"layer_{i}": jnp.full(64, i, jnp.float32) for i in range(max(int(10_000 * scale), 200))}
    yield from _rows(directory, f"incremental, {len(many):,} arrays of 256 bytes", "nothing changed", many, 0, rounds)


def _rows(directory: Path, name: str, what: str, tree: Any, changed: int, rounds: int) -> Iterator[Row]:
    nbytes = sum(leaf.nbytes for leaf in tree.values())
    written: dict[str, list[float]] = {}

    def save(contestant: str) -> float:
        later = {name: leaf + 1 if i < changed else leaf for i, (name, leaf) in enumerate(tree.items())}
        jax.block_until_ready(later)
        base = directory / "base" if contestant == "pytreesaver" else None
        target = directory / "next"
        os.sync()
        taken = seconds(lambda: pts.save(later, target, base=base))
        with pts.load_checkpoint(target) as checkpoint:
            size = sum(file.stat().st_size for file in target.iterdir()) - checkpoint.shared_nbytes
        written.setdefault(contestant, []).append(size)
        shutil.rmtree(target)
        return taken

    pts.save(tree, directory / "base")
    names = ("pytreesaver", "pytreesaver, full save")
    for each in names:  # a warm-up
        save(each)
    written.clear()
    times = take_turns({each: partial(save, each) for each in names}, rounds, lambda: touch_memory(nbytes))
    yield name, f"save, {what}", times, "s"
    yield name, f"bytes written, {what}", {each: spread(sizes) for each, sizes in written.items()}, "bytes"
    shutil.rmtree(directory / "base")


def model_function(params: Any, x: jax.Array) -> jax.Array:
    """A network of some layers, which takes a while to trace."""
    for layer in params:
        normalized = (x - jnp.mean(x, -1, keepdims=True)) / (jnp.std(x, -1, keepdims=True) + 1e-6)
        x = x + jax.nn.gelu(normalized @ layer["up"]) @ layer["down"]
    return x


def models(directory: Path, scale: float, rounds: int) -> Iterator[Row]:
    """Yield the rows of models: from the path to the first result, and the size of the function."""
    width = max(int(256 * scale), 16)
    values = np.random.default_rng(0)
    params = [
        {
            "up": jnp.asarray(values.normal(size=(width, 4 * width)), jnp.float32),
            "down": jnp.asarray(values.normal(size=(4 * width, width)), jnp.float32),
        }
        for _ in range(_LAYERS)
    ]
    x = jnp.ones((8, width))
    pts.export_model(directory / "model", model_function, x, params=params)
    pts.save(params, directory / "params")
    (directory / "function.pickle").write_bytes(pickle.dumps(model_function))

    def load_exported() -> Any:
        return pts.load_model(directory / "model")

    def load_pickled() -> Any:
        function = pickle.loads((directory / "function.pickle").read_bytes())
        return partial(jax.jit(function), pts.restore(directory / "params"))

    def first_call(load: Callable[[], Any]) -> float:
        jax.clear_caches()
        return seconds(lambda: jax.block_until_ready(load()(x)))

    loads = {"pytreesaver": load_exported, "pickled function, restore and trace": load_pickled}
    name = f"model, {_LAYERS} layers"
    yield name, "load", take_turns({who: partial(seconds, load) for who, load in loads.items()}, rounds), "s"
    calls = take_turns({who: partial(first_call, load) for who, load in loads.items()}, rounds)
    yield name, "load and first call", calls, "s"
    ready = {who: load() for who, load in loads.items()}
    for each in ready.values():
        jax.block_until_ready(each(x))

    def call(model: Any) -> float:
        return seconds(lambda: jax.block_until_ready(model(x)))

    later = {who: partial(call, each) for who, each in ready.items()}
    yield name, "later call", take_turns(later, rounds), "s"
    for path in ("model", "params"):
        shutil.rmtree(directory / path)
    (directory / "function.pickle").unlink()
