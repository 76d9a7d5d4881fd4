"""``pytreesaver report``."""

import json
from pathlib import Path

from cli.running import save_run


def test_report_writes_a_page(call):
    save_run()
    result = call("report", "run", "-o", "run.html")
    assert result.code == 0
    assert result.out.startswith("wrote run.html, ")
    assert "made by pytreesaver report" in Path("run.html").read_text()
    assert json.loads(call("report", "run", "-o", "run.html", "--no-values", "--json").out)["path"] == "run.html"
    Path("mine.html").write_text("mine")
    assert call("report", "run", "-o", "mine.html").code == 2
    assert Path("mine.html").read_text() == "mine"
