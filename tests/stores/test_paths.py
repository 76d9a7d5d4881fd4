"""Paths of object stores, what is refused, and what is said."""

import builtins
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath
from stores.conftest import SECRET

import pytreesaver as pts
from pytreesaver._io.stores import engine
from pytreesaver.testing import assert_trees_equal

OLD = {"w": np.zeros(3), "v": np.arange(5)}
NEW = {"w": np.ones(3), "v": np.arange(5) + 1}
LARGE = {"x": np.arange(6 << 20, dtype=np.float32)}  # sent in several parts


class Upath:
    """Like a `upath.UPath`, which has no path in the file system."""

    def __init__(self, url):
        self.url = url

    def __str__(self):
        return self.url

    def joinpath(self, *others):
        return Upath("/".join([self.url, *others]))


def test_path_objects_of_others_are_accepted(store, tmp_path):
    pts.save(OLD, epath.Path("s3://faulty") / "a" / "model")
    assert_trees_equal(pts.restore(Upath("s3://faulty").joinpath("a", "model")), OLD)
    pts.save(OLD, f"file://{tmp_path}/local")
    assert_trees_equal(pts.restore(tmp_path / "local"), OLD)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/model", "found the scheme 'ftp'"),
        ("s3:///model", "expected a URL with a bucket"),
        ("https://host", "expected a URL with a bucket and a path"),
        ("s3://KEY:SECRET@bucket/model", "expected a URL without credentials"),
        ("https://host/model?X-Amz-Signature=abc", "expected a URL without a query"),
        ("s3://bucket/../other", "expected a URL without '..'"),
    ],
)
def test_urls_that_are_refused(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        pts.save(OLD, url)
    assert "SECRET" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_without_the_engine_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments):
        if name.partition(".")[0] == "obstore":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(pts.CheckpointError, match=r"pip install 'pytreesaver\[remote\]'"):
        pts.save(OLD, "s3://bucket/model")


def test_the_engine_is_imported_for_urls_only(tmp_path):
    program = """
import sys
import numpy, pytreesaver as pts
path = pts.save({"x": numpy.ones(3)}, "model")
pts.restore(path)
with pts.CheckpointManager("run") as manager:
    manager.save(1, {"x": 1})
print([name for name in ("obstore", "pytreesaver._io.stores.operations") if name in sys.modules])
pts.save({"x": 1}, "memory://here/model")
print("obstore" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "True"]


def test_secrets_are_cut_from_messages(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = f"refused: https://me:word@host/x?X-Amz-Signature=abc with {SECRET} token=t0ken\nDebug: {{Authorization: x}}"
    assert engine.redacted(text) == "refused: https://host/x?... with ... token=..."
    assert engine.redacted("Authorization: Bearer ya29.abc failed") == "Authorization: ... failed"
    pts.set_store_options("s3://empty", access_key_id="", client_options={"default_headers": {"x-token": "t0p-s3cret"}})
    assert engine.redacted("hello t0p-s3cret") == "hello ..."
    pts.set_store_options("s3://empty")


def test_a_saver_goes_on_after_a_restart(store):
    for step in (1, 2):
        with pts.Saver(max_to_keep=2) as saver:
            saver.save(OLD, "s3://faulty/s/m", step)
    assert saver.last_checkpoints == ["s3://faulty/s/m-1", "s3://faulty/s/m-2"]
    assert pts.get_checkpoint_state("s3://faulty/s").all_model_checkpoint_paths == saver.last_checkpoints
    assert b'"m-2"' in store.objects["faulty", "s/checkpoint"].content


def test_names_with_any_characters(store):
    name = "run 1/ä%20+&=[x]"
    with pts.CheckpointManager(f"s3://faulty/{name}", checkpoint_name="m#1?") as manager:
        for step in (1, 2):
            manager.save(step, OLD)
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 2]
        assert_trees_equal(manager.restore(), OLD)


def test_several_files_of_another_format_do_not_replace_others(store):
    options = {"format": "safetensors", "shard_nbytes": 30}
    pts.save(OLD, "s3://faulty/hub", **options)
    with pytest.raises(pts.CheckpointExistsError, match="cannot replace another one in an object store"):
        pts.save(NEW, "s3://faulty/hub", overwrite=True, **options)
    assert_trees_equal(pts.restore("s3://faulty/hub"), OLD)
    pts.remove_checkpoint("s3://faulty/hub")
    pts.save(NEW, "s3://faulty/hub", **options)
    assert_trees_equal(pts.restore("s3://faulty/hub"), NEW)


def test_of_two_writers_of_one_file_one_wins(store):
    outcomes = []

    def write(number):
        try:
            outcomes.append(str(pts.save({"w": np.full(3, number)}, "s3://faulty/m.npz")))
        except pts.CheckpointExistsError:
            pass

    threads = [threading.Thread(target=write, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["s3://faulty/m.npz"]


@pytest.mark.parametrize("url", ["file://localhost{}/model", "file://{}/model"])
def test_file_urls(url, tmp_path):
    pts.save(OLD, url.format(tmp_path))
    assert_trees_equal(pts.restore(tmp_path / "model"), OLD)
    with pytest.raises(ValueError, match="expected a URL like file:///directory/model"):
        pts.save(OLD, "file://host/model")


def test_a_restore_beside_overwrites_gets_one_of_the_trees(store):
    pts.save({"w": np.full(1000, 0)}, "s3://faulty/model")
    stop, problems = threading.Event(), []

    def overwrite():
        number = 0
        while not stop.is_set():
            number += 1
            pts.save({"w": np.full(1000, number)}, "s3://faulty/model", overwrite=True)

    thread = threading.Thread(target=overwrite)
    thread.start()
    for _ in range(40):
        try:
            assert len(set(pts.restore("s3://faulty/model")["w"].tolist())) == 1
        except pts.CheckpointError as error:
            problems.append(error)
    stop.set()
    thread.join()
    assert problems == []


def test_a_run_is_converted_into_a_store(store, tmp_path):
    with pts.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, OLD)
        manager.save(2, NEW)
    pts.convert(tmp_path / "run", "s3://faulty/converted")
    assert_trees_equal(pts.restore("s3://faulty/converted"), NEW)
    assert [each.step for each in pts.list_checkpoints("s3://faulty/converted")] == [1, 2]


def test_what_cannot_be_done_in_a_store_is_refused_at_once(store, server):
    with pytest.raises(ValueError, match="http:// has no listings"):
        pts.CheckpointManager(f"{server.url}/bucket/run", read_only=True)
    with pytest.raises(ValueError, match="http:// has no listings"):
        pts.list_checkpoints(f"{server.url}/bucket/run")
    with pytest.raises(pts.CheckpointPermissionError, match="read-only"):
        pts.remove_checkpoint(f"{server.url}/bucket/run/m-1")
    for path in ("s3:/faulty/model", pathlib.Path("s3://faulty/model")):
        with pytest.raises(ValueError, match=r"pathlib\.Path has removed a slash"):
            pts.save(OLD, path)
    path = pts.save(OLD, "s3://faulty/model")
    with pytest.raises(OSError, match="use the functions of pytreesaver"):
        path.exists()
    with pytest.raises(OSError, match="use the functions of pytreesaver"):
        (path / "index.json").read_text()
    with pytest.raises(ValueError, match="expected the URL of an object store"):
        pts.set_store_options("/tmp/x", endpoint="x")


def test_wrong_options_are_errors():
    pts.set_store_options("s3://wrong", endpoint="not a url", region="x")
    with pytest.raises((ValueError, pts.CheckpointError)):
        pts.restore("s3://wrong/model")
    pts.set_store_options("s3://wrong", no_such_option=1)
    with pytest.raises(ValueError, match=r"s3://wrong: a wrong option or variable: .*no_such_option"):
        pts.restore("s3://wrong/model")
    pts.set_store_options("s3://wrong")


def test_npz_is_verified_in_a_store(store):
    path = pts.save(OLD, "s3://faulty/m.npz")
    pts.verify(path)


def test_a_state_file_may_name_checkpoints_elsewhere(store, tmp_path):
    elsewhere = pts.save(OLD, "s3://faulty/elsewhere/m-1")
    inside = pts.save(NEW, "s3://faulty/run/m-2")
    pts.update_checkpoint_state("s3://faulty/run", inside, [elsewhere, inside])
    state = pts.get_checkpoint_state("s3://faulty/run")
    assert state.all_model_checkpoint_paths == [str(elsewhere), str(inside)]


def test_a_state_file_on_a_disk_names_no_urls(store, tmp_path):
    # Otherwise, reading a directory that somebody sent would send requests to whom it names.
    saved = pts.save(OLD, "s3://faulty/run/m-1")
    with pytest.raises(ValueError, match="expected a directory in the store of"):
        pts.update_checkpoint_state(tmp_path, saved)
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{saved}"\n')
    with pytest.raises(pts.CorruptCheckpointError, match="expected paths, found the URL s3://faulty/run/m-1"):
        pts.get_checkpoint_state(tmp_path)
    with pytest.warns(pts.RetentionWarning, match="expected paths, found the URL"):
        assert pts.latest_checkpoint(tmp_path) is None


def test_the_code_of_an_error_is_kept():
    text = "Error GET http://127.0.0.1/no?x=1 - status code: 404 Not Found: "
    text += '<?xml version="1.0"?>\n<Error><Code>NoSuchBucket</Code>'
    assert engine.redacted(text).endswith("404 Not Found: NoSuchBucket")


def test_an_interrupt_ends_a_wait(tmp_path):
    program = """
import socket, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background of a shell
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen()
import pytreesaver as pts
pts.set_store_options("s3://hangs", endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}",
                      access_key_id="a", secret_access_key="b")
import obstore.store, jax
jax.devices(), pts.restore
print("ready", flush=True)
try:
    pts.restore("s3://hangs/model")
except KeyboardInterrupt:
    print("interrupted", flush=True)
    os._exit(0)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "interrupted\n"
    finally:
        process.kill()
        process.communicate()
