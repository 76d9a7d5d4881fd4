"""What the site needs beyond docs/: pages from files elsewhere, links to them, and the check that it works offline.

The pages are written for GitHub too, so that their links to files outside docs/ are paths in the repository.
"""

import ast
import base64
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "ARCHITECTURE.md": "architecture.md",
    "SECURITY.md": "security.md",
}
"""Files at the top of the repository, and their pages. The README has none; links to it lead to the start page."""

_LINK = re.compile(r"(\]\(|^\[[^\]]+\]: *|(?:href|src)=\")(?![a-z]+:|#|/)([^)\s#\"]+)", re.MULTILINE)
_FENCE = re.compile(r"^([ \t]*)(`{3,})([^\n]*)\n(.*?)^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
_MENTION = re.compile(  # headings and links stay as they are
    r"^#.*$|\[(?:[^\[\]]|\[[^\]]*\])*\](?:\([^)]*\)|\[[^\]]*\])|`(?P<module>pts\.|pytreesaver\.)?(?P<name>[A-Za-z_]+)(?:\(\))?`"
    r"|``.*?``|`[^`\n]*`",
    re.MULTILINE,
)
_EXTERNAL = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\ssrc=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|<link\b(?=[^>]*\srel=[\"']?(?:stylesheet|preload|preconnect|icon|modulepreload))[^>]*\shref=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|url\(\s*[\"']?(?:https?:)?//[^\s\"')]+|@import\s+[\"'](?:https?:)?//[^\"']+"
)


# Pages from files elsewhere.


def examples() -> dict[str, str]:
    """Return the programs and notebooks in examples/, and the page of each."""
    found = sorted(
        path.relative_to(ROOT).as_posix() for end in ("py", "ipynb") for path in ROOT.glob(f"examples/**/*.{end}")
    )
    return {path: f"{path.rpartition('.')[0]}.md" for path in found if ".ipynb_checkpoints" not in path}


def page_of(path: str) -> str | None:
    """Return the page of a file or a directory of the repository, or None if the site has none."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.rstrip("/").startswith("examples") and (ROOT / path).is_dir():
        return "examples/index.md"
    return PAGES.get(path) or examples().get(path)


def with_links_of_the_site(markdown: str, source: str, page: str) -> str:
    """Return Markdown whose links, which are relative to `source` in the repository, are relative to `page`."""
    inside = posixpath.dirname(source)

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(inside, match[2]))
        found = page_of(target) if (ROOT / target).exists() else None
        return match[0] if found is None else match[1] + posixpath.relpath(found, posixpath.dirname(page) or ".")

    return _outside_fences(markdown, lambda text: _LINK.sub(link, text))


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def with_links_to_the_reference(markdown: str) -> str:
    """Return Markdown in which the first mention of each public name is a link to its docstring."""
    stub = (ROOT / "pytreesaver/__init__.pyi").read_text()
    unlinked = set(re.findall(r" as (\w+)$", stub, re.MULTILINE))

    def link(match: re.Match[str]) -> str:
        name = match["name"] or ""
        # Words such as `restore` and `verify` are also methods, commands and arguments.
        is_ours = match["module"] or "_" in name or re.search("[a-z][A-Z]", name)
        if name not in unlinked or not is_ours:
            return match[0]
        unlinked.remove(name)
        return f"[{match[0]}][pytreesaver.{name}]"

    return _outside_fences(markdown, lambda text: _MENTION.sub(link, text))


def page_of_program(path: Path) -> str:
    """Return the page of an example: its docstring, and the program."""
    source = path.read_text()
    module = ast.parse(source)
    docstring = ast.get_docstring(module)
    program = "\n".join(source.split("\n")[(module.body[0].end_lineno or 0) if docstring else 0 :])
    return f"# {path.name}\n\n{_plain(docstring or '')}\n\n```python\n{program.strip()}\n```\n"


def page_of_notebook(path: Path) -> str:
    """Return the page of a notebook, as it was executed. Its pictures are in the page."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # for the colours
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    for name, data in resources["outputs"].items():
        kind = "svg+xml" if name.endswith(".svg") else "png"
        text = text.replace(f"]({name})", f"](data:image/{kind};base64,{base64.b64encode(data).decode()})")
    return re.sub(r"\n{4,}", "\n\n", text)


def index_of_examples() -> str:
    """Return the page that lists the examples, with the first sentence of each."""
    lines = ["# Examples", "", "Programs to read and to run.", ""]
    for path, page in examples().items():
        about = "A notebook, as it was executed."
        if path.endswith(".py"):
            docstring = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
            about = _plain(docstring.partition("\n\n")[0].replace("\n", " "))
        lines.append(f"* [`{path}`]({page.removeprefix('examples/')}): {about}")
    return "\n".join(lines) + "\n"


def _plain(docstring: str) -> str:
    return re.sub(r"::\n\n(?= )", ":\n\n", docstring)


def generated_pages() -> dict[str, str]:
    """Return the Markdown of the pages that are not in docs/, by their paths in the site."""
    pages = {
        page: with_links_of_the_site((ROOT / source).read_text(), source, page)
        for source, page in PAGES.items()
        if source != "README.md"
    }
    for path, page in examples().items():
        make = page_of_program if path.endswith(".py") else page_of_notebook
        pages[page] = with_links_of_the_site(make(ROOT / path), path, page)
    pages["examples/index.md"] = index_of_examples()
    return pages


def with_bars_in_tables(markdown: str) -> str:
    r"""Return Markdown whose tables have ``|`` in code where GitHub needs ``\|``."""

    def unescaped(row: re.Match[str]) -> str:
        return re.sub(r"`[^`\n]*`", lambda code: code[0].replace(r"\|", "|"), row[0])

    return _outside_fences(markdown, lambda text: re.sub(r"^\|.*\|$", unescaped, text, flags=re.MULTILINE))


# Diagrams.


def with_diagrams(markdown: str) -> str:
    """Return Markdown with its Mermaid diagrams drawn, since a browser would fetch Mermaid from the network."""
    return _FENCE.sub(lambda fence: _drawn(fence[4]) if fence[3].strip() == "mermaid" else fence[0], markdown)


def _drawn(diagram: str) -> str:
    import mermaidx

    settings = '%%{init: {"theme": "neutral", "flowchart": {"htmlLabels": false, "wrappingWidth": 600}}}%%\n'
    svg = mermaidx.render(settings + diagram).svg()
    data = base64.b64encode(svg.encode()).decode()
    return f'<img class="diagram" alt="Diagram: what the text says" src="data:image/svg+xml;base64,{data}">'


# Offline.


def external_resources(text: str) -> list[str]:
    """Return what a page or a style sheet would load from elsewhere. Links that a reader follows are none of it."""
    return [match[0] for match in _EXTERNAL.finditer(text)]


def check_offline(site: Path) -> None:
    """Raise a ValueError if a file of the built site would load something from elsewhere."""
    files = [path for end in ("html", "css", "svg") for path in sorted(site.rglob(f"*.{end}"))]
    found = [f"{path.relative_to(site)}: {each}" for path in files for each in external_resources(path.read_text())]
    if not files or found:
        raise ValueError("expected a site that loads nothing from elsewhere, found:\n" + "\n".join(found))


# Events of mkdocs.


def on_config(config: Any) -> None:
    """Set the address of the published site, which only the workflow knows."""
    config.site_url = os.environ.get("SITE_URL", "")


def on_files(files: Any, config: Any) -> None:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    for page, text in generated_pages().items():
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adapt the Markdown of a page."""
    if page.file.generated_by is None:
        markdown = with_links_of_the_site(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    if not page.file.src_uri.startswith(("examples/", "reference/")):
        markdown = with_links_to_the_reference(markdown)
    return with_diagrams(with_bars_in_tables(markdown))


def on_post_build(config: Any) -> None:
    """Check the site."""
    check_offline(Path(config.site_dir))
