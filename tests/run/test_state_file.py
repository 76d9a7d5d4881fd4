"""Damage to a state file, and changes by other programs, are noticed."""

import os
import random
import shutil
import warnings
from pathlib import Path

import pytest
from savers.saving import on_disk, tree

import pytreesaver as pts
from pytreesaver._io import filesystem

HOUR = 3600.0


def run_of(steps, **settings):
    now = iter(1e9 + HOUR * i for i in range(10_000))
    with pts.CheckpointManager("run", clock=lambda: next(now), block=True, **settings) as manager:
        for step in steps:
            manager.save(step, tree(step))


SETTINGS = [
    {"max_to_keep": 2, "keep_checkpoint_every_n_hours": 10},
    {"policy": pts.KeepLast(2) | pts.KeepEveryHours(20)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["hours", "policy"])
def test_a_flipped_bit_in_a_state_file_deletes_nothing_else_and_is_said(settings):
    run_of(range(8), **settings)
    shutil.copytree("run", "original")

    def next_save():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pts.CheckpointManager("run", clock=lambda: 1e9 + 100 * HOUR, block=True, **settings) as manager:
                manager.save(9, tree(9))
        return set(on_disk()), [str(each.message) for each in caught]

    intact, messages = next_save()
    assert messages == []
    content = Path("original/checkpoint").read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 60):
        shutil.rmtree("run")
        shutil.copytree("original", "run")
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        Path("run/checkpoint").write_bytes(damaged)
        kept, messages = next_save()
        assert kept >= intact, damaged
        assert any("run/checkpoint" in message for message in messages), damaged


def test_the_times_of_the_records_count_if_the_state_file_was_changed():
    run_of(range(3), max_to_keep=5)
    file = Path("run/checkpoint")
    file.write_text(file.read_text().replace("timestamps: 1", "timestamps: 9", 1))
    manager = pts.CheckpointManager("run", max_to_keep=2, block=True)
    with pytest.warns(pts.RetentionWarning, match="times that were recorded with the checkpoints count"):
        manager.save(3, tree(3))
    assert on_disk() == ["ckpt-2", "ckpt-3"]
    manager.save(4, tree(4))  # without a warning
    assert on_disk() == ["ckpt-3", "ckpt-4"]


def test_the_newest_checkpoint_is_found_if_a_flipped_bit_names_another_one():
    run_of(range(4), max_to_keep=5)
    file = Path("run/checkpoint")
    file.write_text(file.read_text().replace('model_checkpoint_path: "ckpt-3"', 'model_checkpoint_path: "ckpt-2"', 1))
    with pytest.warns(pts.RetentionWarning, match="found others: the file is damaged, or another program changed it"):
        assert pts.latest_checkpoint("run") == Path("run/ckpt-3")
    with pytest.warns(pts.RetentionWarning, match="call update_checkpoint_state"):
        assert pts.get_checkpoint_state("run").model_checkpoint_path == "run/ckpt-2"
    pts.update_checkpoint_state("run", "run/ckpt-2")
    assert pts.latest_checkpoint("run") == Path("run/ckpt-2")


@pytest.mark.parametrize("name", ["checkpoint", ".pytreesaver.checkpoint.xxh3"])
@pytest.mark.parametrize("lost", [0, 10, None])
def test_a_lost_or_truncated_file_leaves_the_run_usable(name, lost):
    run_of(range(4), max_to_keep=2)
    if lost is None:
        Path("run", name).unlink()
    else:
        os.truncate(Path("run", name), lost)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pts.RetentionWarning)
        with pts.CheckpointManager("run", max_to_keep=2) as manager:
            assert manager.latest_step() == 3
            manager.save(4, tree(4))
    assert on_disk()[-2:] == ["ckpt-3", "ckpt-4"]
    assert pts.latest_checkpoint("run") == Path("run/ckpt-4")


def test_the_state_file_of_an_older_version_counts():
    run_of(range(4), max_to_keep=2)
    Path("run/.pytreesaver.checkpoint.xxh3").unlink()
    with pts.CheckpointManager("run", max_to_keep=2) as manager:
        manager.save(4, tree(4))
    assert on_disk() == ["ckpt-3", "ckpt-4"]


def test_saves_between_the_reads_of_a_state_file_and_of_its_checksums_are_no_damage(monkeypatch):
    saver = pts.Saver(max_to_keep=2)
    saver.save(tree(0), "run/model", 0)
    later = iter(range(1, 3))
    open_existing = filesystem.open_existing

    def save_twice_first(path, *arguments):
        if Path(path).suffix == ".xxh3":
            for step in later:
                saver.save(tree(step), "run/model", step)
        return open_existing(path, *arguments)

    monkeypatch.setattr(filesystem, "open_existing", save_twice_first)
    assert pts.latest_checkpoint("run") == Path("run/model-2")


def test_a_checkpoint_whose_path_was_changed_stays_tracked():
    run_of((1, 2, 3), max_to_keep=2)
    file = Path("run/checkpoint")
    file.write_text(file.read_text().replace("ckpt-3", "ckpt-1"))
    manager = pts.CheckpointManager("run", max_to_keep=2, block=True)
    with pytest.warns(pts.RetentionWarning, match="older checkpoints that the file does not list are not deleted"):
        assert [decision.checkpoint.path for decision in manager.explain() if decision.keep][-1] == "ckpt-3"
    with pytest.warns(pts.RetentionWarning):
        manager.save(4, tree(4))
    for step in (5, 6):
        manager.save(step, tree(step))
    assert on_disk() == ["ckpt-5", "ckpt-6"]
