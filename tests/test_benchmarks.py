"""The benchmarks run, and measure everything that the bounds compare."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.check
    import benchmarks.report

    return benchmarks


def row(contestant, median, *, operation="save, durable", unit="s"):
    times = {"median": median, "lowest": median / 2, "highest": median * 2}
    return {"tree": "tiny", "operation": operation, "contestant": contestant, "unit": unit} | times


def bound(most, against="orbax"):
    return {"tree": "tiny", "operation": "save, durable", "against": against, "most": most}


def test_a_small_run_covers_every_bound_and_produces_a_page(benchmarks, tmp_path):
    bounds = tomllib.loads((ROOT / "benchmarks" / "bounds.toml").read_text())
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--scale", "0.001", "--rounds", "1", "--no-report"]
    command += ["--json", str(results), "--trees", *dict.fromkeys(each["tree"] for each in bounds["bound"])]
    command += ["--parts", *bounds["parts"], "--directory", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    found = json.loads(results.read_text())
    cold = [each for each in bounds["bound"] if each["operation"] == "restore, cold"]  # measured only for large trees
    lines, _ = benchmarks.check.compared([each for each in bounds["bound"] if each not in cold], found["rows"])
    assert len(lines) == len(bounds["bound"]) - len(cold)
    page = benchmarks.report.page(found)
    assert "| **save, durable** | raw |" in page
    assert "every tree scaled by 0.001" in page
    assert list(tmp_path.iterdir()) == [results]


def test_incremental_saves_and_models_are_measured(benchmarks, tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--scale", "0.01", "--rounds", "1", "--no-report", "--trees", "tiny"]
    command += ["--parts", "incremental", "models", "--json", str(results), "--directory", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    page = benchmarks.report.page(json.loads(results.read_text()))
    for heading in ("save, 5 % changed", "bytes written, nothing changed", "load and first call"):
        assert f"| **{heading}** | pytreesaver |" in page


def test_a_ratio_above_its_bound_is_reported(benchmarks):
    rows = [row("pytreesaver", 0.2), row("orbax", 1.0)]
    lines, excess = benchmarks.check.compared([bound(0.3), bound(0.1)], rows)
    assert excess == [bound(0.1)]
    assert lines == [
        "  tiny, save, durable: pytreesaver / orbax = 0.2, within 0.3",
        "  tiny, save, durable: pytreesaver / orbax = 0.2, above 0.1",
    ]
    with pytest.raises(LookupError):
        benchmarks.check.compared([bound(1, against="unknown")], rows)


def test_the_page_lists_where_a_peer_is_better_and_shows_units(benchmarks):
    machine = {"date": "", "system": "", "cores": 2, "python": "", "jax": "", "backend": "", "rounds": 1, "scale": 1}
    rows = [row("pytreesaver", 0.2), row("orbax", 0.1), row("raw", 0.05), row("pytreesaver, copy", 0.1)]
    rows += [row("orbax", 3 << 20, operation="peak memory above the tree, saving", unit="bytes")]
    rows += [row("pytreesaver", 0.9, operation="kept", unit="of 1"), row("orbax", 2e-6, operation="x")]
    page = benchmarks.report.page({"machine": machine, "rows": rows})
    assert "* tiny, save, durable: orbax 0.5" in page
    assert page.count("\n* tiny, ") == 1  # neither raw nor a variant of pytreesaver is a peer
    assert "| **save, durable** | pytreesaver | 200 ms (100 to 400) | 1 |" in page
    assert "| orbax | 3 MiB (1.5 to 6) |  |" in page
    assert "| **kept** | pytreesaver | 90 % (45 to 180) |  |" in page
    assert "| **x** | orbax | 2 µs (1 to 4) |  |" in page
