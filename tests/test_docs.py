"""The examples in the documentation run, and the format page says what the code does."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/partial.md", "docs/training.md"])
def test_the_examples_of_a_page_run(page, capsys):
    text = (ROOT / page).read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, page, "exec"), names)
    printed = capsys.readouterr().out
    for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL):
        assert block in printed


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_format_page_names_every_key_and_every_notation():
    import inspect

    import pytreesaver._rebuild
    import pytreesaver._values
    from pytreesaver.formats._index import DataFile, Index

    text = (ROOT / "docs/format.md").read_text()
    for key in (*Index.__struct_fields__, *DataFile.__struct_fields__):
        assert f"`{key}`" in text or f'"{key}"' in text, key
    for module in (pytreesaver._rebuild, pytreesaver._values):
        for tag in re.findall(r'case "(\$[a-z_]+)"', inspect.getsource(module)):
            assert tag in text, tag
