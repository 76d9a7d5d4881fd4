"""The documentation site has every page and every public name, and loads nothing from elsewhere."""

import ast
import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE = runpy.run_path(str(DOCS / "hooks/site.py"))


def nav_pages(entries):
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            yield from nav_pages(entry.values())
        else:
            yield from nav_pages(entry)


def test_navigation_has_every_page_once():
    pages = list(nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if not path.match("*.template.md")]
    generated = [page for source, page in SITE["PAGES"].items() if source != "README.md"]
    notebooks = [page for source, page in SITE["examples"]().items() if source.endswith(".ipynb")]
    expected = [*written, *generated, *notebooks, "examples/index.md"]
    assert (set(pages) - set(expected), set(expected) - set(pages)) == (set(), set())
    assert len(pages) == len(set(pages))


def test_reference_has_every_public_name_once():
    def names_in(module):
        tree = ast.parse((ROOT / "pytreesaver" / module).read_text())
        (names,) = [ast.literal_eval(each.value) for each in tree.body if isinstance(each, ast.Assign)
                    and ast.unparse(each.targets[0]) == "__all__"]  # fmt: skip
        return names

    public = re.findall(r" as (\w+)$", (ROOT / "pytreesaver/__init__.pyi").read_text(), re.MULTILINE)
    for module in ("formats/__init__.py", "orbax.py", "testing/__init__.py"):
        public += [f"{re.split('[/.]', module)[0]}.{name}" for name in names_in(module)]
    pages = [page.read_text() for page in (DOCS / "reference").glob("*.md")]
    listed = [name for page in pages for name in re.findall(r"^::: pytreesaver\.(\S+)$", page, re.MULTILINE)]
    assert sorted(listed) == sorted(public)
    assert len(public) > 100


def test_reference_has_every_error():
    errors = [each.name for each in ast.parse((ROOT / "pytreesaver/_errors.py").read_text()).body
              if isinstance(each, ast.ClassDef)]  # fmt: skip
    page = (DOCS / "reference/errors.md").read_text()
    assert sorted(re.findall(r"^::: pytreesaver\.(\w+)$", page, re.MULTILINE)) == sorted(errors)


def test_search_works_without_a_server():
    polyfills = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["extra"]["polyfills"]
    assert ["iframe-worker" in path and (DOCS / path).is_file() for path in polyfills] == [True]


@pytest.mark.parametrize(
    ("link", "source", "page", "expected"),
    [
        ("[a](../SECURITY.md#reporting)", "docs/reliability.md", "reliability.md", "[a](security.md#reporting)"),
        ("[a](../SECURITY.md)", "docs/how-to/lora.md", "how-to/lora.md", "[a](../SECURITY.md)"),  # leads nowhere
        ("[a](../../SECURITY.md)", "docs/how-to/lora.md", "how-to/lora.md", "[a](../security.md)"),
        ("[a](../examples/digits.py)", "docs/guide.md", "guide.md", "[a](examples/digits.md)"),
        ("[a](../../examples/)", "docs/how-to/lora.md", "how-to/lora.md", "[a](../examples/index.md)"),
        ("[a](../README.md)", "docs/guide.md", "guide.md", "[a](index.md)"),
        ("![a](docs/images/ls.svg)", "CHANGELOG.md", "changelog.md", "![a](images/ls.svg)"),
        ("[a](docs/format.md)", "ARCHITECTURE.md", "architecture.md", "[a](format.md)"),
        ("[a](partial.md) [b](#c) [d](https://e.org)", "docs/guide.md", "guide.md", None),
        ("```text\n[a](../SECURITY.md)\n```\n", "docs/guide.md", "guide.md", None),
    ],
)
def test_links_lead_to_pages_of_the_site(link, source, page, expected):
    assert SITE["with_links_of_the_site"](link, source, page) == (expected or link)


def test_first_mention_of_a_public_name_leads_to_the_reference():
    text = "# `pts.save`\n`pts.save`, `save`, [`Saver`](a.md), `list_variables()`, `pts.save`\n```\n`pts.diff`\n```\n"
    assert SITE["with_links_to_the_reference"](text) == text.replace(
        "\n`pts.save`", "\n[`pts.save`][pytreesaver.save]"
    ).replace("`list_variables()`", "[`list_variables()`][pytreesaver.list_variables]")


def test_bars_in_tables_need_no_backslash():
    assert SITE["with_bars_in_tables"]("| `a \\| b` | c |\n`\\|`") == "| `a | b` | c |\n`\\|`"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('<script src="https://unpkg.com/a.js"></script>', 1),
        ("<script async src=//cdn.org/a.js></script>", 1),
        ('<link rel="stylesheet" href="https://fonts.googleapis.com/css">', 1),
        ('<link href="https://fonts.gstatic.com" rel="preconnect" crossorigin>', 1),
        ('<img alt="a" src="https://img.shields.io/a.svg">', 1),
        ("@font-face { src: url('https://fonts.org/a.woff2') } @import \"https://a.org/b.css\";", 2),
        ('<a href="https://jax.dev">JAX</a> <link rel="canonical" href="https://a.org/">', 0),
        ('<script src="a.js"></script><img src="data:image/png;base64,aa"><link rel="stylesheet" href="b.css">', 0),
    ],
)  # fmt: skip
def test_external_resources_are_found(text, count):
    assert len(SITE["external_resources"](text)) == count


def test_a_site_that_loads_something_from_elsewhere_is_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text("<p>well</p>")
    SITE["check_offline"](tmp_path)
    (tmp_path / "sub/page.html").write_text('<script src="https://a.org/b.js"></script>')
    with pytest.raises(ValueError, match=r"sub/page\.html: .*a\.org"):
        SITE["check_offline"](tmp_path)
