"""The examples in the documentation run, and the pages agree with the code."""

import html
import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


PAGES = ["README.md", *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))]
NOT_RUN = {"docs/processes.md": "its program needs several hosts"}
HAS_GRAIN = importlib.util.find_spec("grain") is not None  # not on every version of Python


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in NOT_RUN])
def test_examples_run(page, capsys):
    names = {}
    language = "py(?:thon)?" if page == "docs/how-to/data-position.md" and HAS_GRAIN else "python"
    for block in blocks(page, language):
        exec(compile(block, page, "exec"), names)
    printed = capsys.readouterr().out
    for block in blocks(page, "text"):
        assert block in printed


def test_links_between_pages_are_valid():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_modules_named_on_a_page_exist(page):
    files = {f"/{file.relative_to(ROOT)}" for part in ("pytreesaver", "tests") for file in (ROOT / part).rglob("*.py*")}
    names = re.findall(r"[A-Za-z_./]+\.pyi?\b", (ROOT / page).read_text())
    assert names
    assert [name for name in names if not any(file.endswith(f"/{name}") for file in files)] == []


def test_format_page_lists_every_key_and_every_tag():
    import inspect

    import pytreesaver._tree.plain
    import pytreesaver._tree.rebuild
    from pytreesaver.formats.indexed.index import DataFile, Index

    text = (ROOT / "docs/format.md").read_text()
    for key in (*Index.__struct_fields__, *DataFile.__struct_fields__):
        assert f"`{key}`" in text or f'"{key}"' in text, key
    for module in (pytreesaver._tree.rebuild, pytreesaver._tree.plain):
        for tag in re.findall(r'case "(\$[a-z_]+)"', inspect.getsource(module)):
            assert tag in text, tag


# Command line.


def test_drawings_show_what_the_library_does():
    module = runpy.run_path(str(ROOT / "docs/drawings.py"))
    for name, draw in module["DRAWINGS"].items():
        assert (ROOT / f"docs/images/{name}.svg").read_text() == draw(), f"{name}: run `make docs`"


@pytest.fixture
def docs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield ROOT / "docs"
    sys.modules.pop("sample_run", None)


def test_cli_page_matches_the_help(docs):
    assert (docs / "cli.md").read_text() == runpy.run_path(str(docs / "make_cli_page.py"))["page"](), "run `make docs`"


def test_pictures_match_the_output_of_the_cli(docs, tmp_path):
    from sample_run import sample_run

    make = runpy.run_path(str(docs / "make_pictures.py"))
    sample_run(tmp_path / "runs/a")
    for name in make["TERMINALS"]:
        committed, current = (
            [html.unescape(text) for text in re.findall(r">([^<]+)</text>", picture)]
            for picture in ((docs / f"images/{name}.svg").read_text(), make["terminal_picture"](name, tmp_path))
        )
        assert committed == current, f"{name}: run `make docs`"


def test_cli_page_lists_every_json_key(docs, capsys):
    import numpy as np

    import pytreesaver as pts
    from pytreesaver._cli import main

    with pts.CheckpointManager("run", block=True) as manager:
        for step in (1, 2, 3):
            manager.save(step, {"w": np.full(3, step), "s": "a" * step}, metrics={"loss": 1.0})
    keys = set()

    def collect(value):
        if isinstance(value, list):
            for each in value:
                collect(each)
        elif isinstance(value, dict):
            # Names of variables, metrics and files are not keys of the command line.
            keys.update(
                key for key in value if key not in ("w", "s", "loss") and not key.endswith((".json", ".safetensors"))
            )
            for each in value.values():
                collect(each)

    for command in (
        "ls run", "ls run/ckpt-1", "show run w", "show run --stats", "diff run/ckpt-1 run", "verify run", "info run",
        "prune run --keep-last 2", "cp run copy", "report run", "rm copy",
    ):  # fmt: skip
        main([*command.split(), "--json"])
        collect(json.loads(capsys.readouterr().out))
    text = (docs / "cli.md").read_text()
    assert len(keys) > 50
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []
