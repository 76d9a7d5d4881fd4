"""The state machine of a run again, with incremental saves of random parts of a tree, and deletions in any order."""

import json
import random
import shutil

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from savers.test_state_machine import LONG, Run

import pytreesaver as pts
from pytreesaver.formats.native import incremental, known, writing
from pytreesaver.testing import assert_trees_equal

NAMES = [f"layer_{i}" for i in range(6)]


class IncrementalRun(Run):
    """Every save changes some arrays of the last tree: the others are the same objects, or copies of them."""

    def __init__(self):
        super().__init__()
        self.trees = {}
        self.live = {name: jnp.full(300 * (i + 1), i, jnp.float32) for i, name in enumerate(NAMES)}

    def start(self, settings=None):
        self.settings = settings or self.settings
        options = {**self.settings, "incremental": True, "block": True}
        self.manager = pts.CheckpointManager(self.directory, clock=lambda: self.now, **options)

    def tree(self, saved):
        if saved.step not in self.trees:
            chance = random.Random(saved.step)
            for name in chance.sample(NAMES, chance.choice([0, 1, 1, 2, 5, 6])):
                self.live[name] = chance.choice([self.live[name] + 1, jnp.array(self.live[name])])
            self.trees[saved.step] = {**self.live, "loss": saved.metrics["loss"], "host": np.full(200, saved.step // 3)}
        return self.trees[saved.step]

    @rule()
    def restart_and_restore(self):
        self.manager.close()
        self.start()
        restored = self.manager.restore()
        self.live = {name: restored[name] for name in NAMES}

    # Whoever deletes the predecessor of a checkpoint that is not listed yet, hides that.
    @precondition(lambda self: len(self.known) > 1 and self.is_settled)
    @rule(data=st.data())
    def remove_one(self, data):
        saved = self.known.pop(data.draw(st.integers(0, len(self.known) - 2)))
        shutil.rmtree(self.directory / saved.path)
        self.manager.close()
        self.start()

    def data_file(self, path):
        """Return a file that no other checkpoint shares, all of which is in use."""
        files = json.loads((path / "index.json").read_text())["files"]
        return path / next(file["name"] for file in files if not file.get("shared"))

    def teardown(self):
        try:
            for saved in self.known:
                pts.verify(self.directory / saved.path)
                assert_trees_equal(pts.restore(self.directory / saved.path), self.trees[saved.step])
        finally:
            super().teardown()


IncrementalRun.TestCase.settings = hypothesis.settings(
    max_examples=300 if LONG else 8, stateful_step_count=30 if LONG else 20, deadline=None
)


class TestIncrementalRun(IncrementalRun.TestCase):
    @pytest.fixture(autouse=True)
    def any_size(self, monkeypatch):
        monkeypatch.setattr(incremental, "_MIN_SHARED_NBYTES", 0)
        for module in (incremental, known, writing):
            monkeypatch.setattr(module, "MIN_COMPARED_NBYTES", 1)
