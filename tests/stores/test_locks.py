"""Locks of runs in object stores: held, abandoned, lost and forked."""

import logging
import os
import threading
import time

import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver._io.stores import handles, lease
from pytreesaver._io.stores.paths import store_path
from pytreesaver.formats.indexed import remote

OLD = {"w": np.zeros(3), "v": np.arange(5)}
NEW = {"w": np.ones(3), "v": np.arange(5) + 1}
LARGE = {"x": np.arange(6 << 20, dtype=np.float32)}  # sent in several parts


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


@pytest.mark.filterwarnings("ignore:os.fork", "ignore::pytest.PytestUnraisableExceptionWarning")
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


def test_what_an_interrupted_first_save_has_left_is_removed_after_a_day(store, monkeypatch):
    store.put(("faulty", "run/ckpt-5/data-00000-of-00001-0123456789abcdef.safetensors"), b"x")
    with pts.CheckpointManager("s3://faulty/run") as manager:
        manager.save(1, OLD)
    assert [key for key in store.keys("faulty") if "ckpt-5" in key]
    monkeypatch.setattr(remote, "ABANDONED_SECS", -10.0)
    with pts.CheckpointManager("s3://faulty/run") as manager:
        manager.save(2, OLD)
    assert not [key for key in store.keys("faulty") if "ckpt-5" in key]
    assert manager.all_steps() == [1, 2]


def test_a_writer_that_has_lost_its_lease_completes_nothing(store, monkeypatch):
    with pts.CheckpointManager("s3://faulty/run", block=True) as manager:
        manager.save(1, OLD)
        number = next(each for each, handle in handles._handles.items() if isinstance(handle, lease.LeaseHandle))
        real = remote.before_commit

        def lose_the_lease():
            handles.handle_at(number)._is_lost = True  # as if the process had been stopped for a minute
            real()

        monkeypatch.setattr(remote, "before_commit", lose_the_lease)
        with pytest.raises(pts.ConcurrentWriterError, match="since its lease had ended"):
            manager.save(2, NEW)
        monkeypatch.setattr(remote, "before_commit", real)
    assert not pts.checkpoint_exists("s3://faulty/run/ckpt-2")
    assert not [key for key in store.keys("faulty") if "ckpt-2" in key]
