"""Power failures on a simulated disk: subsets of what was not synced, which a real disk seldom shows."""

import os
import random
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

import pytreesaver as pts
from tests.checkpoint.simulated_disk import SimulatedDisk, put_on_disk
from tests.prove.scenarios import SCENARIOS
from tests.prove.scenarios.runs import RUN
from tests.prove.scenarios.scenario import Scenario
from tests.prove.scenarios.trees import tree

NAMES = (
    "first save",
    "first save, new parents",
    "first save, several files",
    "overwrite",
    "overwrite, not durable",
    "safetensors, overwrite",
    "msgpack, overwrite",
    "first save of a manager",
    "manager, max_to_keep",
    "manager, keep_best",
    "manager, incremental",
    "saver, max_to_keep",
    "pin",
    "prune",
    "remove_checkpoint",
    "update_checkpoint_state",
    "copy_checkpoint",
)
"""The scenarios whose calls the simulated disk knows."""


class _States:
    """Checks states of a disk, each once, at most `most` after each change."""

    def __init__(self, scenario: Scenario, name: str, scratch: Path, most: int, seed: int) -> None:
        self.scenario, self.name, self.scratch, self.most = scenario, name, scratch, most
        self.chance = random.Random(seed)
        self.tried: set[int] = set()
        self.problems: list[str] = []

    def look(self, disk: SimulatedDisk, *, finished: bool) -> None:
        """Check the states that a power failure could leave now."""
        states = [*disk.states(20 * self.most, prefixes=True), disk.state_after_a_kill()]
        if len(states) > self.most:
            states = self.chance.sample(states, self.most)
        for state in states:
            identity = hash((finished, frozenset(state.items())))
            if identity in self.tried:
                continue
            self.tried.add(identity)
            self.problems.append(self._problem_of(state, finished))

    def _problem_of(self, state: dict, finished: bool) -> str:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        put_on_disk(state, self.scratch)
        here = Path.cwd()
        os.chdir(self.scratch)
        try:
            self.scenario.found(finished)
        except Exception as error:
            return f"{self.name}, a state of the simulated disk {sorted(map(str, state))}: {error}"
        finally:
            os.chdir(here)
        return ""


def try_states(scenario: Scenario, name: str, directory: Path, most: int, seed: int = 0) -> list[str]:
    """Return what was wrong in each state of a scenario, or ""."""
    root, here = directory / "disk", Path.cwd()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    states = _States(scenario, name, directory / "scratch", most, seed)
    os.chdir(root)
    try:
        with pytest.MonkeyPatch.context() as patch:
            disk = SimulatedDisk(patch, root)
            states.scenario.before()
            disk.sync()
            disk.on_change = lambda: states.look(disk, finished=False)
            states.scenario.act()
            disk.on_change = lambda: None
            states.look(disk, finished=states.scenario.is_durable)
    finally:
        os.chdir(here)
    return states.problems


def random_run(seed: int) -> Scenario:
    """Return the scenario of a run with random options, in which some steps are saved, pinned and pruned."""
    chance = random.Random(seed)
    options = chance.choice(
        [{"max_to_keep": 1}, {"max_to_keep": 2}, {"policy": pts.KeepEverySteps(2) | pts.KeepLast(1)}]
    )
    options = options | {"incremental": chance.random() < 0.5}
    done: list[int] = []
    pinned: set[int] = set()

    def save(step: int) -> None:
        with pts.CheckpointManager(RUN, block=True, **options) as manager:
            manager.save(step, tree(step, values=chance.choice([3, 300])), metrics={"loss": chance.random()})
            done.append(step)
            if chance.random() < 0.3:
                manager.pin(step)
                pinned.add(step)

    def act() -> None:
        for step in range(1, 5):
            save(step)
        pts.prune(RUN, pts.KeepLast(1))

    def found(finished: bool) -> None:
        listed = pts.list_checkpoints(RUN) if RUN.exists() else []
        for each in listed:
            assert each.problem is None, each
            assert pts.restore(each.path)["nested"]["step"] == each.step
        assert max((each.step for each in listed), default=0) >= max(done, default=0), (listed, done)
        assert pinned <= {each.step for each in listed if (each.path / "pinned").exists()}, (listed, pinned)

    return Scenario(act=act, found=found)


RANDOM_RUNS = tuple(f"random runs, part {number}" for number in range(6))
_RUNS = 5  # in each part


def run(names: Iterable[str] = (*NAMES, *RANDOM_RUNS), step: int = 1) -> dict[str, list[str]]:
    """Return what was wrong in each state of each scenario, or of random runs, or ""."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            if name in RANDOM_RUNS:
                first = RANDOM_RUNS.index(name) * _RUNS
                seeds = range(first, first + max(1, _RUNS // step))
                runs = [(random_run(seed), f"random run {seed}", seed) for seed in seeds]
            else:
                runs = [(SCENARIOS[name], name, 0)]
            found[name] = [
                problem
                for scenario, what, seed in runs
                for problem in try_states(scenario, what, Path(directory), max(1, 150 // step), seed)
            ]
    return found
