"""Tests of the contents of reports."""

import base64
import json
import os
import re
import subprocess
import sys
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


def data_of(path):
    text = Path(path).read_text()
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(found)
    for name in ("norms", "drifts"):
        values = np.frombuffer(base64.b64decode(data[name]), "<f8")
        data[name] = values.reshape(len(data["variables"]), len(data["steps"]))
    data["rows"] = {each["name"]: i for i, each in enumerate(data["variables"])}
    return data


def test_norms_and_drift_match_numpy(run):
    data = data_of(pts.write_report(run))
    assert data["steps"] == [20, 30, 40, 50]
    kept = [tree for step, tree in trees() if step >= 20]
    norms = [np.linalg.norm(tree["w"].astype(float)) for tree in kept]
    drifts = [np.linalg.norm(b["w"].astype(float) - a["w"]) for a, b in pairwise(kept)]
    row = data["rows"]["w"]
    assert np.allclose(data["norms"][row], norms, rtol=1e-12)
    assert np.isnan(data["drifts"][row, 0])
    assert np.allclose(data["drifts"][row, 1:], drifts, rtol=1e-12)
    assert data["drifts"][data["rows"]["frozen"], 1:].tolist() == [0.0, 0.0, 0.0]
    assert data["norms"][data["rows"]["count"]].tolist() == [20, 30, 40, 50]
    assert np.isnan(data["norms"][data["rows"]["name"]]).all()
    assert data["notFinite"] == [[data["rows"]["bad"], 3, 3, 0]]


def test_deleted_checkpoints_and_their_metrics_are_shown(run):
    data = data_of(pts.write_report(run, "other.html"))
    assert [(each["step"], each["status"]) for each in data["checkpoints"]] == [
        (0, "deleted"), (10, "deleted"), (20, "kept"), (30, "kept"), (40, "kept"), (50, "kept"),
    ]  # fmt: skip
    assert [each["metrics"]["loss"] for each in data["checkpoints"]] == [1 / (step + 1) for step in range(0, 60, 10)]
    assert data["checkpoints"][-1]["note"] == "newest, last 4"
    assert set(data["figures"]) == {"lifetimes", "reasons", "metrics", "treemap"}


def test_text_from_checkpoints_is_escaped(run):
    text = pts.write_report(run).read_text()
    assert "alert(1)</script>" not in text

    class Scripts(HTMLParser):
        found = 0

        def handle_starttag(self, tag, attrs):
            self.found += tag == "script"
            assert not any(name in ("src", "href") for name, _ in attrs)

    scripts = Scripts()
    scripts.feed(text)
    assert scripts.found == 3
    labels = data_of("report.html")["figures"]["treemap"]["data"][0]["labels"]
    assert labels.count("&lt;") == 1  # the slash in the name starts another component
    assert "script&gt;&lt;script&gt;alert(1)&lt;" in labels


def test_without_values_no_data_is_read(run):
    for data_file in run.glob("*/*.safetensors"):
        content = bytearray(data_file.read_bytes())
        content[-1] ^= 1
        data_file.write_bytes(content)
    data = data_of(pts.write_report(run, values=False))
    assert not data["hasValues"]
    assert {each["type"] for each in data["variables"]} >= {"float32[40,50]", "str"}
    assert "class='notices'" not in Path("report.html").read_text()


def test_damage_is_reported_and_intact_variables_are_shown(run):
    (data_file,) = Path("run/ckpt-30").glob("*.safetensors")
    content = bytearray(data_file.read_bytes())
    content[content.find(np.full(5, 2.0).tobytes()) + 3] ^= 1
    data_file.write_bytes(content)
    Path("run/ckpt-20/index.json").write_bytes(b"{")
    data = data_of(pts.write_report(run))
    text = Path("report.html").read_text()
    assert "<li>ckpt-30: damaged: frozen</li>" in text
    assert "<li>ckpt-20: " in text
    assert data["steps"] == [30, 40, 50]
    assert np.isnan(data["norms"][data["rows"]["frozen"]]).tolist() == [True, False, False]
    assert np.isnan(data["drifts"][data["rows"]["frozen"]]).tolist() == [True, True, False]
    assert data["variables"][data["rows"]["frozen"]]["damaged"] == "ckpt-30"
    assert np.isfinite(data["drifts"][data["rows"]["w"]]).tolist() == [False, True, True]


def test_damage_in_unchanged_variables_is_found(run):
    (data_file,) = Path("run/ckpt-40").glob("*.safetensors")
    content = bytearray(data_file.read_bytes())
    content[content.find(np.full(5, 2.0).tobytes()) + 3] ^= 1
    data_file.write_bytes(content)
    data = data_of(pts.write_report(run))
    assert "<li>ckpt-40: damaged: frozen</li>" in Path("report.html").read_text()
    assert np.isnan(data["norms"][data["rows"]["frozen"]]).tolist() == [False, False, True, False]


def test_variables_that_the_newest_checkpoint_lacks():
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, {"old": np.ones(3), "w": np.ones(2)})
        manager.save(2, {"w": np.ones(2)})
    data = data_of(pts.write_report("run", only="old"))
    assert data["steps"] == [1, 2]
    assert [(each["name"], each["present"]) for each in data["variables"]] == [("old", False)]
    Path("run/ckpt-2/index.json").write_bytes(b"{")
    data = data_of(pts.write_report("run"))
    assert data["steps"] == [1]
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
    data = data_of(pts.write_report("run"))
    drift = np.linalg.norm(b - a.astype(float))
    assert np.allclose(data["drifts"][0], [np.nan, drift, np.nan], equal_nan=True)


def test_only_selected_variables(run):
    assert set(data_of(pts.write_report(run, only="w"))["rows"]) == {"w"}
    with pytest.raises(pts.VariableNotFoundError, match="nothing"):
        pts.write_report(run, only="nothing")


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


def test_missing_plotly_is_reported():
    pts.save({"w": 1}, "run/model")
    code = (
        "import sys; sys.modules['plotly'] = None\nfrom pytreesaver._cli import main; sys.exit(main(['report', 'run']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: reports require Plotly: pip install 'pytreesaver[report]'\n"


def test_an_overwrite_ends_the_lifetime_of_a_checkpoint():
    events = [CheckpointEvent("saved", "a", 1.0, 5), CheckpointEvent("saved", "a", 3.0, 5)]
    listed = [ListedCheckpoint(Path("run/a"), 5, 3.0, 10), ListedCheckpoint(Path("run/b"), None, 2.0, 10)]
    lifetimes = lifetimes_of(events, listed)
    assert [(lifetime.name, lifetime.saved, lifetime.deleted, lifetime.status) for lifetime in lifetimes] == [
        ("a", 1.0, 3.0, "deleted"), ("b", 2.0, None, "kept"), ("a", 3.0, None, "kept"),
    ]  # fmt: skip
    assert lifetimes_of(events, [])[-1].status == "missing"
