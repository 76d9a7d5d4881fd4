"""`convert`: from any format to any other, checkpoints and run directories."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from cli.running import run_here as run
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal, pytrees

FORMATS = ["native", "safetensors", "orbax"]


def tree(step=0):
    return {
        "params": {"w": jnp.full((3, 2), step, jnp.bfloat16), "b": np.arange(3.0)},
        "opt": (jnp.zeros(2), {"count": step}),
        "key": jax.random.key(step),
    }


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_every_format_to_every_other(source, target):
    path = pts.save(tree(), "a", format=source, metadata={"note": ("é", 1)})
    assert pts.convert(path, "b", format=target) == Path("b")
    assert_trees_equal(pts.restore("b"), tree())
    assert pts.load_checkpoint("b").metadata == {"note": ("é", 1)}
    assert not pts.diff("a", "b").changed


@settings(max_examples=30)
@given(pytrees(), st.sampled_from(["native", "safetensors"]), st.sampled_from(["native", "safetensors"]))
def test_conversion_there_and_back_is_exact(tree, there, back):
    path = pts.save(tree, "start", overwrite=True, durable=False)
    for number, format in enumerate((there, back)):
        path = pts.convert(path, f"{number}-{format}", format=format, overwrite=True, durable=False)
    assert_trees_equal(pts.restore(path), tree)


def test_the_ending_chooses_the_format_and_parts_are_renamed_and_cast():
    path = pts.save(tree(), "a")
    pts.convert(path, "b.safetensors", only="weights", rename={"weights/": "params/"}, cast="float32")
    found = pts.restore("b.safetensors")
    assert found["weights"]["w"].dtype == jnp.float32
    assert found["weights"]["b"].dtype == np.float32
    pts.convert("b.safetensors", "hub", format="safetensors", shard_nbytes=20)
    assert len(list(Path("hub").glob("*.safetensors"))) == 2
    assert_trees_equal(pts.restore("hub"), found)


def test_a_number_that_cannot_be_cast_is_an_error_and_leaves_nothing():
    pts.save({"w": np.array([1e30])}, "a")
    with pytest.raises(pts.MismatchError, match=r"(?s)1 variable of a cannot .*w: expected float16"):
        pts.convert("a", "b", cast="float16")
    assert not Path("b").exists()


def test_what_the_target_cannot_hold_is_an_error_or_with_lossy_a_warning():
    pts.save({"name": "run", "w": np.ones(2), "data": b"x"}, "a")
    with pytest.raises(pts.UnsupportedLeafError, match="2 of 3 variables") as caught:
        pts.convert("a", "b", format="orbax")
    assert "name: StandardCheckpointer of Orbax holds no str" in str(caught.value)
    assert not Path("b").exists()
    with pytest.warns(pts.StructureWarning, match="(?s)a: not converted:.*data.*name"):
        pts.convert("a", "b", format="orbax", lossy=True)
    assert_trees_equal(pts.restore("b"), {"w": np.ones(2)})
    pts.save({"name": "run"}, "c")
    with pytest.raises(pts.UnsupportedLeafError):
        pts.convert("c", "d", format="orbax", lossy=True)


def test_a_damaged_source_is_refused_and_names_its_variables():
    path = pts.save(tree(), "a")
    (data,) = path.glob("*.safetensors")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.convert("a", "b.safetensors")
    assert len(caught.value.damaged) == 1
    assert not Path("b.safetensors").exists()


@pytest.mark.parametrize("target", FORMATS)
def test_a_run_is_converted_as_a_whole(target):
    times = iter([1e9, 2e9, 3e9, 4e9])
    with pts.CheckpointManager("run", max_to_keep=5, clock=lambda: next(times, 5e9)) as manager:
        for step in (1, 2, 3):
            manager.save(step, tree(step), metrics={"loss": 1 / step}, metadata={"step": step})
        manager.pin(2)
    before = pts.list_checkpoints("run")
    assert pts.convert("run", "converted", format=target) == Path("converted")
    after = pts.list_checkpoints("converted")
    assert [(each.step, each.time, each.metrics, each.metadata) for each in after] == [
        (each.step, each.time, each.metrics, each.metadata) for each in before
    ]
    assert pts.get_checkpoint_state("converted").all_model_checkpoint_timestamps == [each.time for each in before]
    with pts.CheckpointManager("converted", max_to_keep=2, format=target) as manager:
        assert manager.latest_step() == 3
        assert_trees_equal(manager.restore(), tree(3))
        manager.save(4, tree(4))
    with pts.CheckpointManager("converted", max_to_keep=2, format=target) as manager:
        manager.save(5, tree(5))
        manager.wait_until_finished()
        assert manager.all_steps() == [2, 4, 5]  # 2 is pinned
    with pytest.raises(pts.CheckpointExistsError, match="converted"):
        pts.convert("run", "converted", format=target)


def test_a_run_of_orbax_becomes_one_of_pytreesaver():
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    with ocp.CheckpointManager(Path("run").absolute(), options=options) as manager:
        for step in (10, 20):
            manager.save(step, args=ocp.args.StandardSave({"w": jnp.full(2, step, jnp.int32)}), metrics={"loss": 0.5})
    pts.convert("run", "converted")
    with pts.CheckpointManager("converted", keep_best=(1, "loss")) as manager:
        assert manager.all_steps() == [10, 20]
        assert manager.best_step() is not None
        assert_trees_equal(manager.restore(step=10), {"w": jnp.full(2, 10, jnp.int32)})


def test_nothing_remains_of_a_run_that_cannot_be_converted():
    with pts.CheckpointManager("run") as manager:
        manager.save(1, {"w": np.ones(2)})
        manager.save(2, {"w": np.ones(2), "name": "x"})
    with pytest.raises(pts.UnsupportedLeafError, match="name"):
        pts.convert("run", "made/converted", format="orbax")
    assert sorted(path.name for path in Path().iterdir()) == ["run"]


def test_what_is_no_checkpoint_is_named():
    with pytest.raises(pts.CheckpointNotFoundError, match="nothing"):
        pts.convert("nothing", "b")
    Path("empty").mkdir()
    with pytest.raises(pts.CheckpointNotFoundError, match="empty"):
        pts.convert("empty", "b")
    with pytest.raises(ValueError, match=r"dict .* for name, _ in pytreesaver\.list_variables\(source\)"):
        pts.convert("a", "b", rename=lambda name: name)


MEMORY = """
import sys
import numpy as np, orbax.checkpoint
import pytreesaver as pts
def peak():  # ru_maxrss would begin at that of the parent
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
pts.convert(sys.argv[1], sys.argv[2], format=None if sys.argv[3] == "None" else sys.argv[3], durable=False)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_the_largest_variable():
    path = pts.save({str(i): np.full(1 << 21, i) for i in range(24)}, "big", durable=False)  # 16 MiB each
    steps = [
        (path, "big.safetensors", "None", 128),
        ("big.safetensors", "in-orbax", "orbax", 256),  # TensorStore compresses several arrays at a time
        ("in-orbax", "again", "None", 256),
    ]
    for source, target, format, limit in steps:
        command = [sys.executable, "-c", MEMORY, str(source), target, format]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(result.stdout) < limit << 10, (target, result.stdout)
    assert_trees_equal(pts.restore("again", only="7"), {"7": np.full(1 << 21, 7)})


def test_the_command_converts_and_names_what_it_wrote():
    pts.save(tree(), "a")
    result = run("convert", "a", "b.safetensors", "--only", "params", "--cast", "float32")
    assert (result.code, result.out) == (0, "converted a to b.safetensors: 2 variables, 36 B\n")
    assert pts.restore("b.safetensors")["params"]["b"].dtype == np.float32
    assert run("convert", "a", "d", "--format", "zip").code == 2
    assert run("convert", "a", "b.safetensors", "--overwrite", "--json").out.startswith("{")
    with pts.CheckpointManager("run") as manager:
        manager.save(1, {"name": "x", "w": np.ones(2)})
    assert run("convert", "run", "runs2", "--format", "orbax").code == 2
    result = run("convert", "run", "runs2", "--format", "orbax", "--lossy")
    assert result.code == 0
    assert "converted run to runs2: 1 checkpoint" in result.out


def test_checkpoints_that_would_get_one_name_are_an_error():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        manager.save(5, args=ocp.args.StandardSave({"w": jnp.ones(2)}))
    pts.Saver().save(tree(), "run/ckpt", global_step=5)
    for overwrite in (False, True):
        with pytest.raises(pts.CheckpointExistsError, match=r"the same name ckpt-5: run/(5|ckpt-5), run/"):
            pts.convert("run", "converted", overwrite=overwrite)
    assert not Path("converted").exists()


def test_a_run_is_not_converted_into_a_checkpoint_and_the_reason_of_a_failure_is_told():
    pts.Saver().save(tree(), "run/ckpt", global_step=5)
    pts.save(tree(), "model")
    with pytest.raises(
        pts.CheckpointExistsError, match="expected a path outside of checkpoints, but model is a checkpoint"
    ):
        pts.convert("run", "model/inner")
    assert sorted(path.name for path in Path("model").iterdir()) == sorted(
        path.name for path in Path("run/ckpt-5").iterdir()
    )


def test_pins_and_times_are_converted():
    with pts.CheckpointManager("run", block=True) as manager:
        for step in (1, 2):
            manager.save(step, tree(step), metrics={"loss": step})
        manager.pin(1)
    pts.convert("run", "converted.d", format="safetensors")
    assert Path("converted.d/.ckpt-1.pinned").exists()
    with pts.CheckpointManager("converted.d", max_to_keep=1, block=True, format="safetensors") as manager:
        manager.save(3, tree(3))
        assert manager.all_steps() == [1, 3]
