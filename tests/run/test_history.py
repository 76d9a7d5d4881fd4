"""The history of a run directory records every save and deletion, and nothing depends on it."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._run import history

TREE = {"w": np.zeros(2)}


def existing(events):
    """Return the names of the checkpoints that exist according to the events."""
    saved = {}
    for event in events:
        if event.kind == "saved":
            saved[event.name] = event
        else:
            del saved[event.name]
    return sorted(saved)


def on_disk(directory):
    return sorted(each.path.name for each in pts.list_checkpoints(directory))


@settings(max_examples=10)
@given(keep=st.integers(1, 4), count=st.integers(1, 8), every=st.sampled_from([None, 2, 3]))
def test_saves_without_deletions_are_the_existing_checkpoints(keep, count, every):
    run = f"run-{keep}-{count}-{every}"
    policy = pts.KeepLast(keep) | pts.KeepEverySteps(every) if every else pts.KeepLast(keep)
    with pts.CheckpointManager(run, policy=policy) as manager:
        manager_steps = manager.all_steps()
        for step in range(len(manager_steps) and manager_steps[-1] + 1, count):
            manager.save(step, TREE, metrics={"loss": float(step)})
    events = pts.get_checkpoint_history(run)
    assert existing(events) == on_disk(run)
    saved = [event for event in events if event.kind == "saved"]
    assert [(event.step, event.metrics["loss"]) for event in saved] == [(i, float(i)) for i in range(count)]


def test_a_saver_records_its_saves():
    saver = pts.Saver(max_to_keep=2)
    for step in range(4):
        saver.save(TREE, "run/model", global_step=step)
    saver.close()
    assert existing(pts.get_checkpoint_history("run")) == on_disk("run") == ["model-2", "model-3"]


def test_pruned_and_removed_checkpoints_are_recorded():
    with pts.CheckpointManager("run", max_to_keep=None) as manager:
        for step in range(4):
            manager.save(step, TREE)
    pts.prune("run", pts.KeepLast(2))
    pts.remove_checkpoint("run/ckpt-2", update_state=True)
    assert existing(pts.get_checkpoint_history("run")) == on_disk("run") == ["ckpt-3"]


def test_non_finite_metrics_round_trip():
    with pts.CheckpointManager("run") as manager:
        manager.save(1, TREE, metrics={"nan": math.nan, "inf": -math.inf})
    (event,) = pts.get_checkpoint_history("run")
    assert math.isnan(event.metrics["nan"])
    assert event.metrics["inf"] == -math.inf


def test_a_truncated_line_is_skipped():
    with pts.CheckpointManager("run") as manager:
        manager.save(1, TREE)
    file = Path("run", history.HISTORY_NAME)
    file.write_bytes(file.read_bytes() + file.read_bytes()[:20])
    with pts.CheckpointManager("run") as manager:
        manager.save(2, TREE)
    assert [event.name for event in pts.get_checkpoint_history("run")] == ["ckpt-1", "ckpt-2"]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'"x"',
        b"{}",
        b'{"event":"saved","name":"a","time":"x"}',
        b"\xff",
        b"7" * 5000,
        b'{"event":"saved","name":"a","time":1e400}',
    ],
)
def test_malformed_lines_are_skipped(line):
    Path("run").mkdir()
    Path("run", history.HISTORY_NAME).write_bytes(line + b'\n{"event":"saved","name":"a","time":1.0}\n')
    assert [event.name for event in pts.get_checkpoint_history("run")] == ["a"]


def test_failing_to_write_the_history_is_a_warning():
    os.makedirs(f"run/{history.HISTORY_NAME}")
    with pts.CheckpointManager("run", block=True) as manager:
        with pytest.warns(pts.RetentionWarning, match="could not record"):
            manager.save(1, TREE)
        with pytest.warns(pts.RetentionWarning, match="could not record"):
            path = manager.save(2, TREE)
    with pytest.warns(pts.RetentionWarning, match="could not record"):
        pts.prune("run", pts.KeepLast(1))
    assert on_disk("run") == ["ckpt-2"]
    assert pts.restore(path)["w"].tolist() == [0.0, 0.0]


def test_a_long_history_loses_its_older_half(monkeypatch):
    monkeypatch.setattr(history, "_MAX_NBYTES", 1000)
    with pts.CheckpointManager("run", max_to_keep=1) as manager:
        for step in range(30):
            manager.save(step, TREE)
    events = pts.get_checkpoint_history("run")
    assert Path("run", history.HISTORY_NAME).stat().st_size < 1300
    assert events[-2:] == [
        pts.CheckpointEvent("saved", "ckpt-29", events[-1].time, 29),
        pts.CheckpointEvent("deleted", "ckpt-28", events[-1].time),
    ]
    steps = [event.step for event in events if event.kind == "saved"]
    assert steps == list(range(steps[0], 30))


def test_plain_saves_have_no_history():
    pts.save(TREE, "run/model")
    assert pts.get_checkpoint_history("run") == []
    with pytest.raises(pts.CheckpointNotFoundError, match="nowhere: expected a run directory"):
        pts.get_checkpoint_history("nowhere")


def test_lines_that_are_no_text_are_skipped():
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, {"w": 1})
    with Path("run/.pytreesaver.history").open("ab") as file:
        file.write(b'"\xed\xa0\x80"\n\xff\xfe\n')
    assert [event.step for event in pts.get_checkpoint_history("run")] == [1]
