"""Tests of the contents of reports."""

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._inspect.report.facts import lifetimes_of
from pytreesaver._run.history import CheckpointEvent
from pytreesaver._run.listing import ListedCheckpoint

HOSTILE = "</script><script>alert(1)</script>"


def trees():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(40, 50)).astype(np.float32)
    for step in range(0, 60, 10):
        w = w + np.float32(0.1)
        bad = np.where(np.arange(20) < 3, np.nan, 1.0) if step == 50 else np.ones(20)
        yield step, {"w": w, "frozen": np.full(5, 2.0), "bad": bad, "count": step, "name": "x", HOSTILE: np.ones(2)}


@pytest.fixture
def run():
    """A run whose first two checkpoints are deleted and whose newest one has NaN."""
    with pts.CheckpointManager("run", max_to_keep=4, block=True) as manager:
        for step, tree in trees():
            manager.save(step, tree, metrics={"loss": 1 / (step + 1), "<b>": 1.0}, metadata={"note": HOSTILE})
    return Path("run")


class Run:
    """The data of a run in a page."""

    def __init__(self, data):
        self.steps = data["measured"]["x"]
        self.checkpoints = data["checkpoints"]
        self.variables = {each["name"]: each for each in data["variables"]}
        self.rows = {each["name"]: i for i, each in enumerate(data["variables"])}
        self.not_finite = data["notFinite"]
        self.curves = {}
        for name, (dtype, text) in data["curves"].items():
            values = np.frombuffer(base64.b64decode(text), f"<{dtype}")
            self.curves[name] = values.reshape(len(self.rows), len(self.steps))

    def curve(self, kind, name):
        return self.curves[kind][self.rows[name]]


def page_data(path):
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', Path(path).read_text(), re.DOTALL
    )
    return json.loads(found)


def run_of(path):
    (data,) = page_data(path)["runs"]
    return Run(data)


def test_curves_match_numpy(run):
    found = run_of(pts.write_report(run))
    assert found.steps == [20, 30, 40, 50]
    kept = [tree["w"].astype(float) for step, tree in trees() if step >= 20]
    for curve, function in {
        "norm": np.linalg.norm,
        "min": np.min,
        "max": np.max,
        "mean": np.mean,
        "std": np.std,
    }.items():
        assert np.allclose(found.curve(curve, "w"), [function(w) for w in kept], rtol=1e-6)
    drifts = [np.linalg.norm(b - a) for a, b in pairwise(kept)]
    assert np.isnan(found.curve("drift", "w")[0])
    assert np.allclose(found.curve("drift", "w")[1:], drifts, rtol=1e-6)
    assert found.curve("drift", "frozen")[1:].tolist() == [0.0, 0.0, 0.0]
    assert found.curve("norm", "count").tolist() == [20, 30, 40, 50]
    assert np.isnan(found.curve("norm", "name")).all()
    assert found.not_finite == [[found.rows["bad"], 3, 3, 0]]


def test_numbers_beyond_float32_are_kept():
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, {"large": np.full(4, 1e300), "small": np.full(4, 1e-300)})
    found = run_of(pts.write_report("run"))
    assert found.curve("norm", "large").tolist() == [2e300]
    assert found.curve("max", "small").tolist() == [1e-300]


def test_deleted_checkpoints_and_their_metrics_are_shown(run):
    found = run_of(pts.write_report(run, "other.html"))
    assert [(each["step"], each["status"]) for each in found.checkpoints] == [
        (0, "deleted"), (10, "deleted"), (20, "kept"), (30, "kept"), (40, "kept"), (50, "kept"),
    ]  # fmt: skip
    losses = [dict(each["metrics"])["loss"] for each in found.checkpoints]
    assert losses == [1 / (step + 1) for step in range(0, 60, 10)]
    assert found.checkpoints[-1]["reasons"] == ["newest", "last 4"]


def test_bytes_and_times_of_saves_are_shown_where_they_are_recorded(run):
    pts.save({"w": np.ones(3)}, "run/unrecorded")
    recorded, unrecorded = run_of(pts.write_report(run)).checkpoints[:-1], run_of("report.html").checkpoints[-1]
    for each in recorded:  # those of deleted checkpoints, too
        assert each["nbytes"] > 8000
        assert each["wrote"] > 0
        assert each["blocked"] > 0
    assert recorded[0]["sincePrevious"] is None
    assert recorded[1]["sincePrevious"] == pytest.approx(recorded[1]["time"] - recorded[0]["time"])
    assert unrecorded["nbytes"] > 0
    assert "wrote" not in unrecorded


def test_text_from_checkpoints_is_escaped(run):
    text = pts.write_report(run, against=run).read_text()
    assert "alert(1)</script>" not in text

    class Scripts(HTMLParser):
        policy = None
        scripts = ()
        is_code = False

        def handle_starttag(self, tag, attrs):
            assert not any(name in ("src", "href") for name, _ in attrs)
            self.is_code = tag == "script" and ("type", "application/json") not in attrs
            if ("http-equiv", "Content-Security-Policy") in attrs:
                self.policy = dict(attrs)["content"]
            if self.is_code:
                self.scripts += ("",)

        def handle_data(self, data):
            if self.is_code:
                self.scripts = (*self.scripts[:-1], self.scripts[-1] + data)

        def handle_endtag(self, tag):
            self.is_code = False

    found = Scripts()
    found.feed(text)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in found.scripts]
    sources = " ".join(f"'sha256-{each}'" for each in hashes)
    assert len(hashes) == 3
    assert found.policy == (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )
    assert HOSTILE in [each["name"] for each in page_data("report.html")["runs"][0]["variables"]]


def test_a_report_is_small(run):
    assert pts.write_report(run).stat().st_size < 700_000


def test_without_values_no_data_is_read(run):
    for data_file in run.glob("*/*.safetensors"):
        content = bytearray(data_file.read_bytes())
        content[-1] ^= 1
        data_file.write_bytes(content)
    found = run_of(pts.write_report(run, values=False))
    assert not page_data("report.html")["hasValues"]
    assert {each["type"] for each in found.variables.values()} >= {"float32[40,50]", "str"}
    assert "class='notices'" not in Path("report.html").read_text()


def test_damage_is_reported_and_intact_variables_are_shown(run):
    (data_file,) = Path("run/ckpt-30").glob("*.safetensors")
    content = bytearray(data_file.read_bytes())
    content[content.find(np.full(5, 2.0).tobytes()) + 3] ^= 1
    data_file.write_bytes(content)
    Path("run/ckpt-20/index.json").write_bytes(b"{")
    found = run_of(pts.write_report(run))
    text = Path("report.html").read_text()
    assert "<li>ckpt-30: damaged: frozen</li>" in text
    assert "<li>ckpt-20: " in text
    assert found.steps == [30, 40, 50]
    assert np.isnan(found.curve("norm", "frozen")).tolist() == [True, False, False]
    assert np.isnan(found.curve("drift", "frozen")).tolist() == [True, True, False]
    assert found.variables["frozen"]["damaged"] == "ckpt-30"
    assert np.isfinite(found.curve("drift", "w")).tolist() == [False, True, True]


def test_damage_in_unchanged_variables_is_found(run):
    (data_file,) = Path("run/ckpt-40").glob("*.safetensors")
    content = bytearray(data_file.read_bytes())
    content[content.find(np.full(5, 2.0).tobytes()) + 3] ^= 1
    data_file.write_bytes(content)
    found = run_of(pts.write_report(run))
    assert "<li>ckpt-40: damaged: frozen</li>" in Path("report.html").read_text()
    assert np.isnan(found.curve("norm", "frozen")).tolist() == [False, False, True, False]


def test_variables_that_the_newest_checkpoint_lacks():
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, {"old": np.ones(3), "w": np.ones(2)})
        manager.save(2, {"w": np.ones(2)})
    found = run_of(pts.write_report("run", only="old"))
    assert found.steps == [1, 2]
    assert {name: each["present"] for name, each in found.variables.items()} == {"old": False}
    Path("run/ckpt-2/index.json").write_bytes(b"{")
    assert run_of(pts.write_report("run")).steps == [1]
    assert "newest readable" in Path("report.html").read_text()
    with pytest.raises(pts.VariableNotFoundError, match="nothing"):
        pts.write_report("run", only="nothing")


def test_large_variables_are_compared_in_parts():
    a = np.arange(1_500_000, dtype=np.float32)
    b = a.copy()
    b[1_000_000:] += 1
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, {"w": a})
        manager.save(2, {"w": b})
        manager.save(3, {"w": b[:10]})
    drift = np.linalg.norm(b - a.astype(float))
    assert np.allclose(run_of(pts.write_report("run")).curve("drift", "w"), [np.nan, drift, np.nan], equal_nan=True)


def test_only_selected_variables(run):
    assert set(run_of(pts.write_report(run, only="w")).rows) == {"w"}
    with pytest.raises(pts.VariableNotFoundError, match="nothing"):
        pts.write_report(run, only="nothing")


def test_a_run_beside_another(run):
    tree = {"w": np.zeros((40, 25), np.float16), "frozen": np.full(5, 2.0), "new": 1}
    with pts.CheckpointManager("other", block=True) as manager:
        for step in (5, 6):
            manager.save(step, tree, metrics={"loss": 3.0})
    data = page_data(pts.write_report(run, against="other"))
    first, second = map(Run, data["runs"])
    assert [each["label"] for each in data["runs"]] == ["run", "other"]
    assert first.steps == [20, 30, 40, 50]
    assert second.curve("norm", "frozen").tolist() == pytest.approx([20**0.5, 20**0.5])
    differences = {each["name"]: (each["first"], each["second"]) for each in data["differences"]}
    assert differences["w"] == ("float32[40,50]", "float16[40,25]")
    assert differences["new"] == (None, "int")
    assert differences["count"] == ("int", None)
    assert "frozen" not in differences
    with pytest.raises(pts.CheckpointNotFoundError, match="nowhere"):
        pts.write_report(run, against="nowhere")


def test_only_reports_are_replaced(run):
    Path("precious.html").write_text("<p>mine</p>")
    with pytest.raises(pts.CheckpointExistsError, match=r"precious\.html: expected no file or an existing report"):
        pts.write_report(run, "precious.html")
    assert Path("precious.html").read_text() == "<p>mine</p>"
    pts.write_report(run, "precious.html", overwrite=True)
    pts.write_report(run, "precious.html")
    with pytest.raises(pts.CheckpointExistsError, match="found a directory"):
        pts.write_report(run, "run")
    os.mkfifo("fifo")
    with pytest.raises(pts.CheckpointExistsError, match="found a special file"):
        pts.write_report(run, "fifo", overwrite=True)
    Path("link.html").symlink_to("precious.html")
    pts.write_report(run, "link.html")
    assert Path("link.html").is_symlink()
    with pytest.raises(pts.CheckpointIOError, match="missing: no such directory"):
        pts.write_report(run, "missing/report.html")


def test_a_directory_without_checkpoints_raises():
    with pytest.raises(pts.CheckpointNotFoundError, match="nowhere"):
        pts.write_report("nowhere")
    Path("empty").mkdir()
    with pytest.raises(pts.CheckpointNotFoundError, match="empty contains no checkpoints"):
        pts.write_report("empty")
    assert not Path("report.html").exists()


def test_an_overwrite_ends_the_lifetime_of_a_checkpoint():
    events = [CheckpointEvent("saved", "a", 1.0, 5), CheckpointEvent("saved", "a", 3.0, 5)]
    listed = [ListedCheckpoint(Path("run/a"), 5, 3.0, 10), ListedCheckpoint(Path("run/b"), None, 2.0, 10)]
    lifetimes = lifetimes_of(events, listed)
    assert [(lifetime.name, lifetime.saved, lifetime.deleted, lifetime.status) for lifetime in lifetimes] == [
        ("a", 1.0, 3.0, "deleted"), ("b", 2.0, None, "kept"), ("a", 3.0, None, "kept"),
    ]  # fmt: skip
    assert lifetimes_of(events, [])[-1].status == "missing"
