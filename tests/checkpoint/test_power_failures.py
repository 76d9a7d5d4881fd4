"""Power failures during a save, on a simulated disk: no complete checkpoint is lost, no incomplete one visible."""

import shutil

import pytest
from checkpoint.saving import NEW, OLD, found_at
from checkpoint.simulated_disk import SimulatedDisk, put_on_disk

import pytreesaver as pts
from pytreesaver._io import files, filesystem
from pytreesaver.testing import assert_trees_equal


def outcomes_of_a_save(
    monkeypatch,
    tmp_path,
    *,
    overwrite,
    forget_syncs_of="",
    path="model",
    durable=True,
    old_durable=True,
    save=pts.save,
):
    """Return what a reader finds after a power failure: (at any point during a save, after it has returned)."""
    root, scratch = tmp_path / "disk", tmp_path / "scratch"
    root.mkdir()
    disk = SimulatedDisk(monkeypatch, root, forget_syncs_of=forget_syncs_of)
    if overwrite:
        disk.forget_syncs_of = ""
        pts.save(OLD, root / path, durable=old_durable)
        disk.forget_syncs_of = forget_syncs_of
    tried, during = set(), set()

    def look(states):
        found = set()
        for state in states:
            identity = frozenset(state.items())
            if identity not in tried:
                tried.add(identity)
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir()
                put_on_disk(state, scratch)
                try:
                    found.add(found_at(scratch, path))
                except pts.CorruptCheckpointError:
                    found.add("corrupt")
        return found

    disk.on_change = lambda: during.update(look([*disk.states(), disk.state_after_a_kill()]))
    save(NEW, root / path, overwrite=overwrite, durable=durable)
    disk.on_change = lambda: None
    tried.clear()
    return during, look(disk.states())


def test_a_power_failure_during_a_first_save_leaves_nothing_or_a_complete_checkpoint(monkeypatch, tmp_path):
    during, after = outcomes_of_a_save(monkeypatch, tmp_path, overwrite=False)
    assert during == {None, "new"}
    assert after == {"new"}


def test_a_power_failure_during_an_overwrite_leaves_the_old_or_the_new_checkpoint(monkeypatch, tmp_path):
    during, after = outcomes_of_a_save(monkeypatch, tmp_path, overwrite=True)
    assert during == {"old", "new"}
    assert after == {"new"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_power_failure_during_a_save_with_direct_io_leaves_the_old_or_the_new_checkpoint(
    monkeypatch, tmp_path, overwrite
):
    monkeypatch.setattr(files, "_MIN_DIRECT_NBYTES", 0)
    direct_descriptors, real = [], filesystem.open_direct
    monkeypatch.setattr(
        filesystem, "open_direct", lambda *a, **o: direct_descriptors.append(real(*a, **o)) or direct_descriptors[-1]
    )
    during, after = outcomes_of_a_save(
        monkeypatch, tmp_path, overwrite=overwrite, save=lambda *a, **o: pts.save_async(*a, **o).result()
    )
    assert during == {"old" if overwrite else None, "new"}
    assert after == {"new"}
    assert direct_descriptors


def test_a_power_failure_does_not_lose_created_parent_directories(monkeypatch, tmp_path):
    during, after = outcomes_of_a_save(monkeypatch, tmp_path, overwrite=False, path="a/b/model")
    assert during == {None, "new"}
    assert after == {"new"}


def test_a_durable_overwrite_of_a_checkpoint_that_was_not_durable(monkeypatch, tmp_path):
    _, after = outcomes_of_a_save(monkeypatch, tmp_path, overwrite=True, path="a/model", old_durable=False)
    assert after == {"new"}


def test_an_overwrite_without_durable_does_not_lose_the_old_checkpoint(monkeypatch, tmp_path):
    during, after = outcomes_of_a_save(monkeypatch, tmp_path, overwrite=True, durable=False)
    assert during == {"old", "new"}
    assert after == {"new"}


@pytest.mark.parametrize("kind", ["saver", "manager"])
def test_a_power_failure_during_retention_loses_no_checkpoint(monkeypatch, tmp_path, kind):
    root, scratch = tmp_path / "disk", tmp_path / "scratch"
    root.mkdir()
    disk = SimulatedDisk(monkeypatch, root)
    saver = pts.Saver(max_to_keep=1)
    manager = pts.CheckpointManager(root / "run", max_to_keep=1, block=True)
    finished = -1
    tried = set()

    def look():
        for state in [*disk.states(), disk.state_after_a_kill()]:
            identity = frozenset(state.items())
            if identity in tried:
                continue
            tried.add(identity)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            put_on_disk(state, scratch)
            latest = pts.latest_checkpoint(scratch / "run")
            found = -1 if latest is None else pts.restore(latest)["step"]
            assert found in (finished, finished + 1), (found, finished)
            for index in scratch.glob("run/[!.]*/index.json"):
                pts.verify(index.parent)

    disk.on_change = look
    for step in range(3):
        if kind == "saver":
            saver.save({"step": step}, root / "run" / "ckpt", step)
        else:
            manager.save(step, {"step": step})
        finished = step
        tried.clear()
        look()
    assert [path.name for path in root.glob("run/ckpt-*")] == ["ckpt-2"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("forgotten", ["file", "directory"])
def test_the_simulated_disk_detects_a_missing_sync(monkeypatch, tmp_path, overwrite, forgotten):
    during, after = outcomes_of_a_save(monkeypatch, tmp_path, overwrite=overwrite, forget_syncs_of=forgotten)
    assert "corrupt" in during or after != {"new"}


def test_a_save_that_is_not_durable_syncs_nothing(monkeypatch, tmp_path):
    from pytreesaver._io import filesystem

    for name in ("sync_file", "sync_directory"):
        monkeypatch.setattr(filesystem, name, lambda *args: pytest.fail("synced"))
    pts.save(NEW, "model", durable=False)
    assert_trees_equal(pts.restore("model"), NEW)
