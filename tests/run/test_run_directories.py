"""Run directories where a checkpoint is expected, plain saves as a run, and directories of other libraries."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from helpers import message_of
from safetensors.numpy import save_file

import pytreesaver as pts


@pytest.fixture
def run():
    with pts.CheckpointManager("run") as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.full(3, step)})


DOORS = {
    "restore": lambda path: pts.restore(path)["w"].tolist(),
    "restore with a template": lambda path: pts.restore(path, {"w": np.zeros(3, int)})["w"].tolist(),
    "load_variable": lambda path: pts.load_variable(path, "w").tolist(),
    "list_variables": pts.list_variables,
    "verify": pts.verify,
    "diff": lambda path: pts.diff(path, "run/ckpt-1").changed.keys(),
    "diff, the other one": lambda path: pts.diff("run/ckpt-1", path).changed.keys(),
}


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("name", DOORS)
def test_the_newest_checkpoint_of_a_run_directory_is_used_and_logged(name, caplog):
    expected = DOORS[name]("run/ckpt-2")
    assert caplog.messages == []
    with caplog.at_level("INFO", "pytreesaver"):
        assert DOORS[name]("run") == expected
    assert caplog.messages == ["run is a run directory; its newest checkpoint is run/ckpt-2"]


@pytest.mark.usefixtures("run")
def test_a_checkpoint_that_was_loaded_from_a_run_directory_knows_its_path():
    with pts.load_checkpoint("run") as checkpoint:
        assert checkpoint.path == Path("run/ckpt-2")
        assert checkpoint.step == 2


def test_the_empty_path_is_the_working_directory(run, monkeypatch):
    monkeypatch.chdir("run")
    assert pts.latest_checkpoint("") == Path("ckpt-2")


@pytest.mark.usefixtures("run")
def test_a_step_that_does_not_exist_is_an_error_with_the_steps_that_do():
    message = message_of(pts.CheckpointNotFoundError, lambda: pts.restore("run/ckpt-300"))
    assert message.endswith(
        "expected a checkpoint, found nothing; run contains checkpoints, the newest last: ckpt-1, ckpt-2"
    )
    manager = pts.CheckpointManager("empty")
    message = message_of(pts.CheckpointNotFoundError, lambda: manager.restore(step=3))
    assert message == "empty: expected a checkpoint of step 3, found no checkpoints"


def test_plain_saves_are_found_as_the_manager_finds_them():
    for step in (0, 2, 10):
        pts.save({"w": np.full(3, step)}, f"run/ckpt-{step}")
    pts.save({"w": 0}, "run/best")
    assert pts.latest_checkpoint("run") == Path("run/ckpt-10")
    assert pts.CheckpointManager("run").latest_step() == 10
    assert pts.restore("run")["w"].tolist() == [10] * 3
    os.truncate("run/ckpt-10/index.json", 5)
    with pytest.warns(pts.RetentionWarning, match="run/ckpt-10; using instead: run/ckpt-2"):
        assert pts.latest_checkpoint("run") == Path("run/ckpt-2")
    assert pts.latest_checkpoint("run", "another") is None


SAMPLES = Path(__file__).parents[1] / "data" / "of_tensorflow"


def orbax_steps(directory):
    with ocp.CheckpointManager(Path(directory).absolute()) as manager:
        for step in (100, 200):
            manager.save(step, args=ocp.args.StandardSave({"w": np.ones(3)}))
        manager.wait_until_finished()


def flax_steps(directory):
    Path(directory).mkdir()
    for step in (100, 200):
        Path(directory, f"checkpoint_{step}").write_bytes(serialization.to_bytes({"w": np.ones(3)}))


def tensorflow_steps(directory):
    Path(directory).mkdir()
    for step in (100, 200):
        for ending in ("index", "data-00000-of-00001"):
            sample = SAMPLES / "seed" / f"saver1.ckpt.{ending}"
            Path(directory, f"model.ckpt-{step}.{ending}").write_bytes(sample.read_bytes())


@pytest.mark.parametrize(
    ("library", "make"), [("Orbax", orbax_steps), ("Flax", flax_steps), ("TensorFlow", tensorflow_steps)]
)
def test_a_manager_does_not_start_over_in_the_directory_of_another_library(library, make):
    make("run")
    before = sorted(Path("run").rglob("*"))
    manager = pts.CheckpointManager("run")
    for use in (lambda: manager.restore_or_init({"w": 0}), lambda: manager.save(0, {"w": 0}), manager.restore):
        message = message_of(pts.CheckpointExistsError, use)
        assert f"found steps of {library}: 100, 200; " in message
        assert "pytreesaver.convert" in message
    assert sorted(Path("run").rglob("*")) == before
    assert pts.restore("run")


def zip_of(name):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(name, "x")
    return content.getvalue()


KINDS = {
    "model.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "model.pt": (zip_of("archive/data.pkl"), "a file of PyTorch (.pt, .bin); it contains a pickle"),
    "model.keras": (zip_of("metadata.json"), "a model of Keras"),
    "docs.zip": (zip_of("readme.txt"), "a zip archive; unpack it first"),
    "model.tar": (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
    "model.tgz": (b"\x1f\x8b\x08", "a gzip archive"),
    "error.bin": (b"\n<!doctype HTML><html>", "an HTML page"),
    "denied.bin": (b'<?xml version="1.0"?><Error>', "an XML page"),
    "old.pt": (b"\x80\x02ctorch", "a pickle"),
    "weights.gguf": (b"GGUF\x03", "a GGUF file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    "page": (b"<!DOCTYPE html><html>", "an HTML page"),
    "empty": (b"", "an empty file"),
    "model.safetensors": (b"\x02\0\0", "a damaged safetensors file of 3 bytes"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_library_is_named(name):
    content, kind = KINDS[name]
    Path(name).write_bytes(content)
    assert f"found what looks like {kind}" in message_of(pts.CheckpointNotFoundError, lambda: pts.restore(name))


def test_the_newest_checkpoint_of_a_run_is_verified_even_if_it_is_damaged():
    with pts.CheckpointManager("run", block=True) as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.arange(1000.0)})
    pts.verify("run")
    os.truncate("run/ckpt-2/data-00000-of-00001.safetensors", 100)
    with pytest.raises(pts.CorruptCheckpointError, match="run/ckpt-2"):
        pts.verify("run")


@pytest.mark.parametrize(
    "name",
    ["epoch=3-step=100.ckpt", "step_100.pt", "ckpt_100.eqx", "checkpoint-100/model.safetensors", "step100.msgpack"],
)
def test_a_manager_does_not_start_over_beside_the_steps_of_another_library(name):
    path = Path("run", name)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 100)
    manager = pts.CheckpointManager("run", block=True)
    for call in (lambda: manager.restore_or_init({"w": 0.0}), lambda: manager.save(1, {"w": 0.0})):
        with pytest.raises(pts.CheckpointExistsError, match=r"found steps of [A-Z].*: 100;"):
            call()


@pytest.mark.parametrize(
    "name",
    [
        *("vocab.npz", "pretrained.pt", "config-2.json", "log_100.txt", "model.safetensors", "model_v1.msgpack"),
        *("params1.eqx", "weights_resnet50.h5", "state_dict_2.pth", "Llama-2/model.safetensors"),
    ],
)
def test_other_files_in_a_run_directory_are_no_steps(name):
    Path("run", name).parent.mkdir(parents=True)
    Path("run", name).write_bytes(b"x" * 100)
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, {"w": 0.0})


def test_a_damaged_file_beside_the_checkpoints_is_not_the_newest_one():
    with pts.CheckpointManager("run", block=True) as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.arange(1000.0)})
    path = pts.save({"w": np.arange(1000.0)}, "run/base.safetensors")
    os.truncate(path, 1000)
    pts.verify("run")


def test_files_beside_a_run_are_not_pruned():
    with pts.CheckpointManager("run", block=True) as manager:
        for step in range(3):
            manager.save(step, {"w": np.ones(2)})
    np.savez("run/vocab2.npz", words=np.ones(3))
    save_file({"w": np.ones(2)}, "run/base.safetensors")
    pts.prune("run", pts.KeepLast(1))
    assert {path.name for path in Path("run").iterdir()} >= {"ckpt-2", "vocab2.npz", "base.safetensors"}
    assert not Path("run/ckpt-1").exists()
