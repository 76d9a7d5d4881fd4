"""Power failures, errors and interrupts during incremental saves."""

import errno
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest
from checkpoint.incremental import shared_files
from checkpoint.simulated_disk import SimulatedDisk, put_on_disk

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.formats.native import sharing_files
from pytreesaver.testing import assert_trees_equal

OLD = {"w": jnp.arange(900), "v": jnp.arange(70.0), "step": 1}
NEW = {**OLD, "v": OLD["v"] + 1, "step": 2}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("base_durable", [False, True])
def test_a_power_failure_loses_nothing(monkeypatch, tmp_path, any_size, overwrite, base_durable):
    root, scratch = tmp_path / "disk", tmp_path / "scratch"
    root.mkdir()
    disk = SimulatedDisk(monkeypatch, root)
    monkeypatch.setattr(sharing_files, "_may_link", {(root, root): True})
    pts.save(OLD, root / "old", durable=base_durable)
    target = "old" if overwrite else "new"
    found, is_done = set(), False

    def look():
        for state in [*disk.states(), disk.state_after_a_kill()]:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            put_on_disk(state, scratch)
            if base_durable or (overwrite and is_done):
                assert_trees_equal(pts.restore(scratch / "old"), OLD if not overwrite else expected())
            if not overwrite and (scratch / "new").exists():
                found.add("new")
                assert_trees_equal(pts.restore(scratch / "new"), NEW)

    def expected():
        step = pts.restore(scratch / "old", only="step")["step"]
        found.add({1: "old", 2: "new"}[step])
        return {1: OLD, 2: NEW}[step]

    disk.on_change = look
    pts.save(NEW, root / target, base=root / "old", overwrite=overwrite)
    disk.on_change = lambda: None
    assert len(shared_files(root / target)) == (0 if overwrite else 1)
    found.clear()
    is_done = True
    look()
    assert found == {"new"}


@pytest.mark.parametrize("name", ["open_new", "link", "write", "sync_file", "sync_directory", "rename", "remove_file"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("is_interrupt", [False, True])
def test_an_error_at_any_call_costs_neither_checkpoint(monkeypatch, any_size, name, overwrite, is_interrupt):
    real = getattr(filesystem, name)
    for call in range(20):
        shutil.rmtree("run", ignore_errors=True)
        pts.save(OLD, "run/old")
        pts.save(NEW, "run/base", base="run/old")
        calls = iter(range(100))

        def failing(*args, calls=calls, call=call, **options):
            if next(calls) == call:
                if is_interrupt:
                    real(*args, **options)
                    raise KeyboardInterrupt
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **options)

        target = "run/base" if overwrite else "run/new"
        newer = {**NEW, "step": 3}
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, name, failing)
            try:
                pts.save(newer, target, base="run/base", overwrite=overwrite)
            except (KeyboardInterrupt, pts.CheckpointIOError):
                pass
        assert_trees_equal(pts.restore("run/old"), OLD)
        expected = [NEW, newer] if overwrite else [NEW]
        assert pts.restore("run/base")["step"] in [each["step"] for each in expected]
        pts.verify("run/base")
        if not overwrite and Path(target).exists():
            assert_trees_equal(pts.restore(target), newer)
        if next(calls) <= call:  # it was never called so often
            break
    else:
        pytest.fail("the save never succeeded")
    assert call > 0 or name == "remove_file"
