"""The state file in TensorFlow's text format, and the functions that read it."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._run import directory
from pytreesaver._run.state_text import CheckpointState, MalformedStateError, format_state, parse_state

PATHS = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20)
TIMES = st.floats(allow_nan=False)


@given(st.lists(st.tuples(PATHS, TIMES), max_size=4), PATHS, st.booleans(), st.none() | TIMES)
def test_states_round_trip(entries, newest, with_times, preserved):
    paths, times = [path for path, _ in entries], [time for _, time in entries]
    state = CheckpointState(newest, paths, times if with_times else [], preserved)
    try:
        content = format_state(state)
    except UnicodeEncodeError:
        return  # not a valid path on this system
    assert parse_state(content) == state


def test_a_path_that_is_not_utf_8_round_trips():
    path = os.fsdecode(b"run-\xff\xfe/model")
    content = format_state(CheckpointState(path, [path]))
    assert content.startswith(b'model_checkpoint_path: "run-\\377\\376/model"\n')
    assert parse_state(content).model_checkpoint_path == path


RECORDED = {
    "manager": (
        b'model_checkpoint_path: "ckpt-17"\nall_model_checkpoint_paths: "ckpt-1"\n'
        b'all_model_checkpoint_paths: "ckpt-17"\nall_model_checkpoint_timestamps: 1795378880.9078546\n'
        b"all_model_checkpoint_timestamps: 1795378880.920349\nlast_preserved_timestamp: 1795378879.8722885\n"
    ),
    "saver": b'model_checkpoint_path: "saver1.ckpt"\nall_model_checkpoint_paths: "saver1.ckpt"\n',
    "steps": (
        b'model_checkpoint_path: "model.ckpt-00000300"\nall_model_checkpoint_paths: "model.ckpt-00000020"\n'
        b'all_model_checkpoint_paths: "model.ckpt-00000300"\n'
    ),
}


@pytest.mark.parametrize("content", RECORDED.values(), ids=RECORDED)
def test_state_files_are_byte_for_byte_those_of_tensorflow(content):
    assert format_state(parse_state(content)) == content


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('model_checkpoint_path:"a"', "a"),
        ("model_checkpoint_path : 'it''s'", "its"),
        ('model_checkpoint_path: "a" "b"\n  "c"', "abc"),
        ('# a comment\nmodel_checkpoint_path: "a" # "b"\n', "a"),
        ('model_checkpoint_path: "a"; last_preserved_timestamp: 1,', "a"),
        ('model_checkpoint_path: "a" model_checkpoint_path: "b"', "b"),
        (r'model_checkpoint_path: "\303\251\x41\u00e9\"\'\\"', "éAé\"'\\"),
        ('model_checkpoint_path: "é"', "é"),
        ('model_checkpoint_path: "a",all_model_checkpoint_paths:["a","b"]', "a"),
    ],
)
def test_every_spelling_of_the_text_format_is_read(text, path):
    assert parse_state(text.encode()).model_checkpoint_path == path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 1),
        ("1.5e3f", 1500),
        ("-2", -2),
        ("- 2", -2),
        ("inf", float("inf")),
        ("-inf", -float("inf")),
        ("0x10", 16),
        (".5", 0.5),
    ],
)
def test_every_spelling_of_a_number_is_read(text, seconds):
    state = parse_state(f'model_checkpoint_path: "a" last_preserved_timestamp: {text}'.encode())
    assert state.last_preserved_timestamp == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model_checkpoint_path: "a"\nmodel_path: "b"', "line 2: expected one of the fields"),
        ("model_checkpoint_path: a", "line 1: expected a quoted path"),
        ('model_checkpoint_path "a"', "expected a colon"),
        ('model_checkpoint_path: "a', "expected a field of a state file"),
        ('model_checkpoint_path: "\\q"', "expected an escape"),
        ('model_checkpoint_path: "\\000"', "found one with a NUL"),
        ("last_preserved_timestamp: soon", "expected a number"),
        ("last_preserved_timestamp: 1x", "expected"),
        (f"last_preserved_timestamp: 0x{'f' * 300}", "found NaN or one that is too large"),
        ("last_preserved_timestamp: nan", "found NaN or one that is too large"),
        ('all_model_checkpoint_paths: ["a" "b"', "a comma or ]"),
        ('all_model_checkpoint_paths: ["a"', "found the end"),
        ('all_model_checkpoint_paths: "a" all_model_checkpoint_timestamps: [1, 2]', "a timestamp for each of 1 paths"),
        ("\0\1\2", "expected a field of a state file"),
    ],
)
def test_malformed_state_files_are_rejected(text, message):
    with pytest.raises(MalformedStateError, match=message):
        parse_state(text.encode("latin-1"))
    Path("run").mkdir()
    Path("run/checkpoint").write_bytes(text.encode("latin-1"))
    with pytest.raises(pts.CorruptCheckpointError, match="run/checkpoint: "):
        pts.get_checkpoint_state("run")


@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_no_other_error(content):
    try:
        parse_state(content)
    except MalformedStateError:
        pass


def test_get_and_update():
    assert pts.get_checkpoint_state("run") is None
    Path("run").mkdir()
    assert pts.get_checkpoint_state("run") is None
    pts.update_checkpoint_state("run", "run/m-2", ["run/m-1"], None, [1.0, 2.0], 0.5)
    assert pts.get_checkpoint_state(Path("run")) == CheckpointState("run/m-2", ["run/m-1", "run/m-2"], [1.0, 2.0], 0.5)
    assert 'model_checkpoint_path: "m-2"' in Path("run/checkpoint").read_text()
    pts.update_checkpoint_state("run", "elsewhere/m", latest_filename="other")
    assert 'model_checkpoint_path: "../elsewhere/m"' in Path("run/other").read_text()
    absolute = Path("run").absolute()
    pts.update_checkpoint_state(absolute, "m-3")
    assert pts.get_checkpoint_state(absolute).model_checkpoint_path == str(absolute / "m-3")
    pts.update_checkpoint_state(absolute, absolute / "m-4")
    assert 'model_checkpoint_path: "m-4"' in Path("run/checkpoint").read_text()
    with pytest.raises(ValueError, match="must match checkpoint paths"):
        pts.update_checkpoint_state("run", "run/m-2", ["run/m-1"], None, [1.0])
    with pytest.raises(ValueError, match="the same path"):
        pts.update_checkpoint_state("run", "run/checkpoint")
    with pytest.raises(pts.CheckpointIOError):
        pts.update_checkpoint_state("nowhere", "nowhere/m-2")
    Path("run/checkpoint").write_text("")
    with pytest.raises(pts.CorruptCheckpointError, match="expected a model_checkpoint_path, found none"):
        pts.get_checkpoint_state("run")


def test_exists_mtimes_and_remove():
    path = pts.save({"w": 1}, "run/model-1")
    Path("run/empty").mkdir()
    assert [pts.checkpoint_exists(p) for p in (path, "run", "run/empty", "run/model-*", "nowhere")] == [True] + [
        False
    ] * 4
    assert pts.get_checkpoint_mtimes([path, "nowhere"]) == [pytest.approx((path / "index.json").stat().st_mtime)]
    assert not pts.remove_checkpoint("run/model-*")
    for other in ("run", "run/empty"):
        with pytest.raises(pts.CheckpointNotFoundError, match="found something else"):
            pts.remove_checkpoint(other)
    assert pts.remove_checkpoint(str(path))
    assert sorted(p.name for p in Path("run").iterdir()) == ["empty"]
    pts.save({"w": 1}, "target")
    Path("link").symlink_to("target")
    assert pts.remove_checkpoint("link")
    assert pts.restore("target") == {"w": 1}


def test_a_damaged_checkpoint_can_be_removed():
    path = pts.save({"w": 1}, "model")
    (path / "index.json").write_text("{")
    assert not pts.checkpoint_exists(path)
    assert pts.remove_checkpoint(path)
    assert not path.exists()


def test_latest_skips_damaged_checkpoints_with_a_warning():
    saver = pts.Saver()
    for step in (1, 2, 3):
        saver.save({"w": np.full(10, step)}, "run/model", step)
    (Path("run/model-3") / "index.json").write_text("{")
    data = next(Path("run/model-2").glob("*.safetensors"))
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.warns(
        pts.RetentionWarning, match="damaged or missing: run/model-3, run/model-2; using instead: run/model-1"
    ):
        assert pts.latest_checkpoint("run") == Path("run/model-1")
    pts.remove_checkpoint("run/model-1")
    with pytest.warns(pts.RetentionWarning, match="run/model-1; no usable checkpoint is left"):
        assert pts.latest_checkpoint("run") is None


def test_latest_falls_back_to_unlisted_checkpoints():
    saver = pts.Saver(max_to_keep=None)
    for step in (1, 2, 3):
        saver.save({"w": step}, "run/model", step)
    os.truncate(next(Path("run/model-3").glob("*.safetensors")), 10)
    with pytest.warns(pts.RetentionWarning, match="damaged or missing: run/model-3; using instead: run/model-2"):
        assert pts.latest_checkpoint("run") == Path("run/model-2")
    pts.update_checkpoint_state("run", "run/model-99")
    with pytest.warns(pts.RetentionWarning, match="damaged or missing: run/model-99; using instead: run/model-2"):
        assert pts.latest_checkpoint("run") == Path("run/model-2")


def test_latest_without_an_intact_state_file():
    pts.save({"w": 0}, "run/by-hand")
    assert pts.latest_checkpoint("run") is None
    saver = pts.Saver()
    for step in (1, 2):
        saver.save({"w": step}, "run/model", step)
    Path("run/checkpoint").write_text("???")
    with pytest.warns(pts.RetentionWarning, match="run/checkpoint: line 1"):
        assert pts.latest_checkpoint("run") == Path("run/model-2")
    Path("run/checkpoint").unlink()
    assert pts.latest_checkpoint("run") == Path("run/model-2")


# Waiting for checkpoints.


class Time:
    """Replaces the `time` module. The events happen while it sleeps."""

    def __init__(self, events=()):
        self.now = 0.0
        self.events = sorted(events, key=lambda event: event[0])

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()


@pytest.fixture
def start_iterator(monkeypatch):
    def start(events=(), **arguments):
        time = Time(events)
        monkeypatch.setattr(directory, "time", time)
        return time, pts.checkpoints_iterator("run", **arguments)

    return start


def saves(*steps):
    saver = pts.Saver(max_to_keep=None)
    return [lambda step=step: saver.save({"w": step}, "run/model", step) for step in steps]


def test_the_iterator_yields_each_new_latest_checkpoint(start_iterator):
    one, two, three = saves(1, 2, 3)
    time, iterator = start_iterator([(0.5, one), (3.2, two), (3.5, three)], timeout=4)
    assert [(path.name, time.now) for path in iterator] == [("model-1", 1.0), ("model-3", 4.0)]
    assert time.now == 8.0


@pytest.mark.parametrize(("timeout", "end"), [(2.5, 2.0), (0, 0.0), (1, 1.0)])
def test_the_iterator_ends_after_the_timeout(start_iterator, timeout, end):
    time, iterator = start_iterator(timeout=timeout)
    assert list(iterator) == []
    assert time.now == end


def test_the_iterator_keeps_the_interval(start_iterator):
    one, two = saves(1, 2)
    one()
    time, iterator = start_iterator([(1.0, two)], min_interval_secs=10, timeout=3)
    assert [(path.name, time.now) for path in iterator] == [("model-1", 0.0), ("model-2", 10.0)]


def test_the_timeout_function_ends_the_iterator(start_iterator):
    one, two = saves(1, 2)
    calls = []

    def done():
        calls.append(time.now)
        return len(calls) == 4

    time, iterator = start_iterator([(1.0, one), (8.0, two)], timeout=3, timeout_fn=done)
    assert [path.name for path in iterator] == ["model-1", "model-2"]
    assert calls == [1.0, 4.0, 7.0, 8.0]


def test_the_iterator_rejects_invalid_arguments():
    with pytest.raises(ValueError, match="timeout: expected a non-negative number"):
        pts.checkpoints_iterator("run", timeout=-1)
    with pytest.raises(ValueError, match="min_interval_secs"):
        pts.checkpoints_iterator("run", min_interval_secs=-1)


def test_an_open_checkpoint_can_be_read_after_its_deletion():
    tree = {str(i): np.full(1000, i) for i in range(10)}
    path = pts.save(tree, "run/model")
    with pts.load_checkpoint(path) as checkpoint:
        pts.remove_checkpoint(path)
        assert all((checkpoint[name].read() == tree[name]).all() for name in tree)
    with pytest.raises(pts.CheckpointNotFoundError):
        pts.restore(path)


def test_concurrent_readers_get_the_right_values_or_an_error():
    stop = threading.Event()

    def train():
        saver = pts.Saver(max_to_keep=1)
        step = 0
        while not stop.is_set():
            saver.save({"a": np.full(5000, step), "b": np.full(5000, step)}, "run/model", step)
            step += 1

    writer = threading.Thread(target=train)
    writer.start()
    try:
        read = 0
        while read < 100:
            path = pts.latest_checkpoint("run")
            if path is None:
                assert read == 0
                continue
            try:
                tree = pts.restore(path)
            except pts.CheckpointNotFoundError:
                continue
            step = int(path.name.removeprefix("model-"))
            assert (tree["a"] == step).all()
            assert (tree["b"] == step).all()
            read += 1
    finally:
        stop.set()
        writer.join()
