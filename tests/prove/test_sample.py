"""A sample of the campaigns that `make prove` runs in full."""

import random

import pytest

from tests.prove.campaigns import concurrency, damage, failing_calls, full_disk, kills, power_cuts, simulated_disk
from tests.prove.faults import disk, shim
from tests.prove.faults.worker import Worker
from tests.prove.scenarios import SCENARIOS

KILLED = [
    *("first save, new parents", "overwrite", "incremental save", "safetensors, several files, overwrite"),
    *("npz, overwrite", "TensorFlow, overwrite", "first save of a manager", "manager, max_to_keep"),
    *("manager, KeepSteps", "manager, incremental", "saver, max_to_keep", "unpin", "prune", "remove_checkpoint"),
    *("update_checkpoint_state", "copy_checkpoint", "convert a run"),
]
FAILING = ["first save", "overwrite", "manager, max_to_keep", "restore", "restore npz", "export_model", "Orbax"]
needs_shim = pytest.mark.skipif(bool(shim.why_not()), reason=shim.why_not() or "-")


@pytest.fixture(scope="module")
def worker():
    with Worker("tests.prove.scenarios:EVERY") as worker:
        yield worker


def assert_all_held(problems):
    problems = list(problems)
    assert problems
    assert [problem for problem in problems if problem] == []


@needs_shim
@pytest.mark.parametrize("name", KILLED)
def test_a_kill_leaves_the_old_or_the_new_state(worker, name, tmp_path):
    step, first = random.randint(9, 13), random.randint(1, 2)  # other points each time
    assert_all_held(kills.kill_at_every_call(worker, name, tmp_path / "root", step, first))


@needs_shim
@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("fault", ["EIO", "fewer bytes"])
def test_a_failing_call_is_a_named_error(worker, name, fault, tmp_path):
    is_long = name in ("manager, max_to_keep", "Orbax")
    step = (7 if is_long else 2) if fault == "fewer bytes" else (71 if is_long else 11)
    found = failing_calls.fail_every_call(worker, name, tmp_path / "root", fault, step)
    assert_all_held([problem and f"{call}: {problem}" for call, problem in found])


@needs_shim
@pytest.mark.parametrize("name", ["first save", "overwrite", "safetensors", "manager, max_to_keep", "pin"])
def test_a_failed_sync_is_an_error(worker, name, tmp_path):
    found = list(failing_calls.fail_every_call(worker, name, tmp_path / "root", "a failed sync"))
    assert len(found) > 1
    assert [f"{call}: {problem}" for call, problem in found if problem] == []


@needs_shim
def test_a_full_disk_loses_nothing(worker, tmp_path):
    if why_not := full_disk.why_not():
        pytest.skip(why_not)
    assert_all_held(full_disk.fill(worker, "overwrite", tmp_path / "root", step=2))


@needs_shim
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_loses_nothing(worker, kind):
    if why_not := disk.why_not(kind):
        pytest.skip(why_not)
    with disk.Disk(kind) as mounted:
        for name in ("first save, new parents", "overwrite", "pin"):
            assert_all_held(power_cuts.cut_at_every_call(worker, name, mounted, step=3))
            assert_all_held(power_cuts.cut_after_returning(worker, name, mounted, times=2))
        assert_all_held(power_cuts.cut_at_every_call(worker, "manager, max_to_keep", mounted, 9, random.randint(1, 9)))


@pytest.mark.parametrize("name", ["manager, max_to_keep", "copy_checkpoint", "msgpack, overwrite", "pin"])
def test_a_state_of_the_simulated_disk_loses_nothing(name, tmp_path):
    assert_all_held(simulated_disk.try_states(SCENARIOS[name], name, tmp_path, most=8))


@pytest.mark.parametrize("name", damage.NAMES)
def test_a_flipped_bit_gives_the_original_or_an_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = damage.Checkpoints(name)
    assert_all_held(damage.flip_bits(checkpoints, damage.random_bits(checkpoints, 60, random.randrange(1000))))
    assert_all_held(damage.truncate(checkpoints, step=331))
    assert_all_held(damage.replace_files(checkpoints))


def test_memory_and_descriptors_do_not_grow(tmp_path):
    assert concurrency.cycles(tmp_path, 60) == (60, "")


@pytest.mark.parametrize("roles", [["overwrite", "read", "read"], ["save steps", "read while it is deleted"]])
def test_readers_beside_a_writer_see_whole_checkpoints(roles, tmp_path):
    path = tmp_path / "model"
    concurrency.ROLES[roles[0]](str(path), 1)
    outcomes = list(concurrency.together(roles, path, seconds=2))
    assert [problem for _, problem in outcomes if problem] == []
