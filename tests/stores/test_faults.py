"""Stores that fail, hang and refuse; writers that race."""

import threading

import numpy as np
import pytest
from stores.conftest import SECRET

import pytreesaver as pts
from pytreesaver.formats.indexed import remote
from pytreesaver.testing import assert_trees_equal

OLD = {"w": np.zeros(3), "v": np.arange(5)}
NEW = {"w": np.ones(3), "v": np.arange(5) + 1}
LARGE = {"x": np.arange(6 << 20, dtype=np.float32)}  # sent in several parts


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
