"""Stores that fail, hang and refuse; writers that race; locks that are held and abandoned."""

import builtins
import logging
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath
from stores.conftest import FAST, SECRET

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver._io.stores import engine, handles, lease
from pytreesaver._io.stores.paths import store_path
from pytreesaver.formats.indexed import remote
from pytreesaver.testing import assert_trees_equal

OLD = {"w": np.zeros(3), "v": np.arange(5)}
NEW = {"w": np.ones(3), "v": np.arange(5) + 1}
LARGE = {"x": np.arange(6 << 20, dtype=np.float32)}  # sent in several parts


@pytest.fixture
def store(server, environment):
    pts.set_store_options("s3://faulty", endpoint=server.url, **FAST)
    return server


@pytest.mark.parametrize("kind", ["drop", "500", "503", "slow"])
@pytest.mark.parametrize("tree", [OLD, LARGE], ids=["small", "large"])
def test_a_fault_that_passes_is_survived(store, kind, tree):
    store.fail(kind, times=2, method="PUT")
    path = pts.save(tree, "s3://faulty/model")
    store.fail(kind, times=2, method="GET")
    store.fail(kind, method="HEAD")
    assert_trees_equal(pts.restore(path), tree)
    assert len(store.keys("faulty")) == 2
    assert store.faults == []


def test_an_answer_that_breaks_off_is_asked_for_again(store):
    path = pts.save(LARGE, "s3://faulty/model")
    store.fail("truncate", times=3, method="GET", key="data-")
    assert_trees_equal(pts.restore(path), LARGE)
    assert store.faults == []


def test_a_lost_answer_to_the_last_write_is_no_conflict(store, monkeypatch):
    """The store has written the index, and the answer is lost: the engine repeats the request, which is refused."""
    put = type(store).RequestHandlerClass if hasattr(type(store), "RequestHandlerClass") else None
    assert put is None
    real, lost = store.RequestHandlerClass.put_object, []

    def put_object(self, bucket, key, query, body, *, truncate):
        if key.endswith("index.json") and not lost:
            lost.append(key)
            self.server.put((bucket, key), body)
            return self.drop()
        return real(self, bucket, key, query, body, truncate=truncate)

    monkeypatch.setattr(store.RequestHandlerClass, "put_object", put_object)
    path = pts.save(OLD, "s3://faulty/model")
    assert lost
    assert_trees_equal(pts.restore(path), OLD)


def message_of(kind, call):
    with pytest.raises(kind) as caught:
        call()
    texts, error = [], caught.value
    while error is not None:
        texts += [str(error), repr(error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return str(caught.value), "\n".join(texts)


@pytest.mark.parametrize(("fault", "kind"), [("500", pts.CheckpointIOError), ("403", pts.CheckpointPermissionError)])
def test_a_fault_that_stays_is_an_error_without_credentials(store, fault, kind):
    pts.save(OLD, "s3://faulty/model")
    store.fail(fault, times=1000)
    for call in (
        lambda: pts.save(NEW, "s3://faulty/model", overwrite=True),
        lambda: pts.restore("s3://faulty/model"),
        lambda: pts.latest_checkpoint("s3://faulty"),
        lambda: pts.CheckpointManager("s3://faulty/run").save(1, NEW),
    ):
        message, everything = message_of(kind, call)
        assert "s3://faulty" in message
        for secret in (SECRET, "AKIA", "Signature", "Authorization"):
            assert secret not in everything
    store.faults.clear()
    assert_trees_equal(pts.restore("s3://faulty/model"), OLD)


def test_a_server_that_is_not_there_is_an_error(environment):
    options = {"client_options": {"connect_timeout": "1s"}, "retry_config": {"max_retries": 1}}
    pts.set_store_options("s3://nowhere", endpoint="http://127.0.0.1:9", **options)
    message, everything = message_of(pts.CheckpointIOError, lambda: pts.restore("s3://nowhere/model"))
    assert "s3://nowhere/model" in message
    assert SECRET not in everything


def cases():
    yield "new", lambda: pts.save(NEW, "s3://faulty/model")
    yield "overwrite", lambda: pts.save(NEW, "s3://faulty/model", overwrite=True)


@pytest.mark.parametrize("case", ["new", "overwrite"])
def test_a_store_that_ends_at_any_request_keeps_the_old_or_has_the_new(store, case):
    save = dict(cases())[case]
    points = 0
    for left in range(100):
        store.objects.clear()
        if case == "overwrite":
            pts.save(OLD, "s3://faulty/model")
        store.left = left
        try:
            save()
            failed = False
        except pts.CheckpointError:
            failed = True
        is_over = store.left >= 0
        store.left = None
        if pts.checkpoint_exists("s3://faulty/model"):
            found = pts.restore("s3://faulty/model")
            assert_trees_equal(found, NEW if found["w"][0] else OLD)
            assert failed or found["w"][0] == 1
        else:
            assert failed
            assert case == "new"
        pts.save(NEW, "s3://faulty/model", overwrite=True)
        assert_trees_equal(pts.restore("s3://faulty/model"), NEW)
        assert len(store.keys("faulty")) == 2  # no debris
        points += 1
        if is_over and not failed:
            break
    assert points > 5


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_writers_one_wins(store, monkeypatch, overwrite):
    if overwrite:
        pts.save({"w": 0}, "s3://faulty/model")
    real, first = remote._commit, []

    def commit(*arguments):
        if not first:
            first.append(1)
            pts.save(NEW, "s3://faulty/model", overwrite=overwrite)  # another writer is faster
        real(*arguments)

    monkeypatch.setattr(remote, "_commit", commit)
    what = "replaced" if overwrite else "created"
    with pytest.raises(pts.CheckpointExistsError, match=f"was {what} by another process during the save"):
        pts.save(OLD, "s3://faulty/model", overwrite=overwrite)
    assert_trees_equal(pts.restore("s3://faulty/model"), NEW)
    assert len(store.keys("faulty")) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_many_writers_at_once(store, overwrite):
    if overwrite:
        pts.save({"w": -1}, "s3://faulty/model")
    outcomes = []

    def write(number):
        try:
            pts.save({"w": number}, "s3://faulty/model", overwrite=overwrite)
            outcomes.append(number)
        except pts.CheckpointExistsError:
            pass

    threads = [threading.Thread(target=write, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes
    assert pts.restore("s3://faulty/model")["w"] in outcomes
    pts.verify("s3://faulty/model")
    assert len(outcomes) == 1 or overwrite
    assert len(store.keys("faulty")) == 2


# Locks.


@pytest.fixture
def short_leases(monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECS", 0.9)


def test_a_run_that_another_process_saves_into_is_refused(store, short_leases):
    held = lease.open_lease(store_path("s3://faulty/run/.pytreesaver.lock"), "process 7 on node-3")
    with pytest.raises(pts.ConcurrentWriterError, match="found process 7 on node-3; stop that process"):
        pts.CheckpointManager("s3://faulty/run").save(1, NEW)
    filesystem.release(held)
    with pts.CheckpointManager("s3://faulty/run") as manager:
        manager.save(1, NEW)
    assert "run/.pytreesaver.lock" not in store.keys("faulty")


def test_an_abandoned_lock_is_taken_over_when_its_lease_ends(store, short_leases, caplog):
    held = lease.open_lease(store_path("s3://faulty/run/.pytreesaver.lock"), "process 7 on node-3")
    handles.forget_handle(held)._stop.set()  # as if its process had been killed
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), pts.CheckpointManager("s3://faulty/run") as manager:
        manager.save(1, NEW)
    assert 0.5 < time.monotonic() - started < 5
    assert "waiting up to 1 s for its lease to end" in caplog.text


def test_a_lock_that_was_taken_over_is_noticed(store, short_leases):
    with pts.CheckpointManager("s3://faulty/run", block=True) as manager:
        manager.save(1, OLD)
        text = store.objects["faulty", "run/.pytreesaver.lock"].content
        store.put(("faulty", "run/.pytreesaver.lock"), text.replace(b'"owner":"', b'"owner":"other'))
        time.sleep(1.0)
        # Nobody renews the lease of the other process, so that it is taken back.
        manager.save(2, NEW)
    assert pts.latest_checkpoint("s3://faulty/run").name == "ckpt-2"


def test_a_lease_is_renewed_while_the_run_goes_on(store, short_leases):
    with pts.CheckpointManager("s3://faulty/run", block=True) as manager:
        manager.save(1, OLD)
        time.sleep(1.5)
        with pytest.raises(lease.HeldError):
            lease.open_lease(store_path("s3://faulty/run/.pytreesaver.lock"), "somebody")
        manager.save(2, OLD)


# Paths, and what is imported.


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


# What other processes and threads must not disturb.


def test_a_fork_does_not_use_the_connections_of_its_parent(store):
    pts.save(OLD, "s3://faulty/model")
    with pts.CheckpointManager("s3://faulty/run") as manager:
        manager.save(1, OLD)
        manager.wait_until_finished()
        program = os.fork()
        if not program:
            try:
                pts.restore("s3://faulty/model")
                os._exit(1)
            except pts.CheckpointError as error:
                os._exit(0 if "a fork of one that has used object stores" in str(error) else 2)
            except BaseException:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]) == 0
        assert "run/.pytreesaver.lock" in store.keys("faulty")
        manager.save(2, NEW)


def test_a_lost_answer_to_a_renewal_does_not_lose_the_lease(store):
    number = lease.open_lease(store_path("s3://faulty/run/.pytreesaver.lock"), "me")
    held = handles.handle_at(number)
    held._version = {"e_tag": '"another"'}  # as if the last renewal had not been acknowledged
    held.renew()
    assert held.is_held()
    held.renew()
    assert held.is_held()
    filesystem.release(number)
    assert store.keys("faulty") == []


def test_waiting_for_a_lease_does_not_stop_saves_on_disks(store, monkeypatch, tmp_path):
    monkeypatch.setattr(lease, "LEASE_SECS", 3.0)
    held = lease.open_lease(store_path("s3://faulty/run/.pytreesaver.lock"), "another")
    handles.forget_handle(held)._stop.set()
    waiting = threading.Thread(target=lambda: pts.CheckpointManager("s3://faulty/run", block=True).save(1, NEW))
    waiting.start()
    time.sleep(0.3)
    started = time.monotonic()
    with pts.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, NEW)
    assert time.monotonic() - started < 2
    waiting.join()


def test_a_saver_goes_on_after_a_restart(store):
    for step in (1, 2):
        with pts.Saver(max_to_keep=2) as saver:
            saver.save(OLD, "s3://faulty/s/m", step)
    assert saver.last_checkpoints == ["s3://faulty/s/m-1", "s3://faulty/s/m-2"]
    assert pts.get_checkpoint_state("s3://faulty/s").all_model_checkpoint_paths == saver.last_checkpoints
    assert b'"m-2"' in store.objects["faulty", "s/checkpoint"].content


def test_what_an_interrupted_first_save_has_left_is_removed_after_a_day(store, monkeypatch):
    store.put(("faulty", "run/ckpt-5/data-00000-of-00001-0123456789abcdef.safetensors"), b"x")
    with pts.CheckpointManager("s3://faulty/run") as manager:
        manager.save(1, OLD)
    assert [key for key in store.keys("faulty") if "ckpt-5" in key]
    monkeypatch.setattr(remote, "_ABANDONED_SECS", -10.0)
    with pts.CheckpointManager("s3://faulty/run") as manager:
        manager.save(2, OLD)
    assert not [key for key in store.keys("faulty") if "ckpt-5" in key]
    assert manager.all_steps() == [1, 2]


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
