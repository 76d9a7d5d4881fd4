"""Executes examples/notebook.ipynb again, and shows it as HTML.

``python docs/make_notebook_page.py`` replaces the outputs in the notebook. With a path, it writes a page there instead:
the cells and their outputs as they are in the notebook, in one file that loads nothing from elsewhere.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


def executed(notebook: Any) -> Any:
    """Return a copy of a notebook with the outputs of a new kernel that starts in an empty directory."""
    from nbclient import NotebookClient

    notebook = nbformat.from_dict(notebook)
    with tempfile.TemporaryDirectory() as directory:
        client = NotebookClient(notebook, timeout=120, record_timing=False, resources={"metadata": {"path": directory}})
        manager = client.create_kernel_manager()
        manager.transport, manager.ip = "ipc", f"{directory}/kernel"  # sockets that only this user reaches, not TCP
        client.execute()
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}  # not the version of Python that happens to run
    return notebook


def page(notebook: Any) -> str:
    """Return the HTML of a notebook, without the head of a page: a fragment that a page can contain.

    The basic template has no scripts, while the other ones load MathJax from another site.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic")
    text: str = exporter.from_notebook_node(notebook)[0]
    return text


def main() -> None:
    """Execute the notebook, or write the page."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if sys.argv[1:]:
        head = '<!DOCTYPE html>\n<meta charset="utf-8">\n<title>A run in a notebook</title>\n'
        Path(sys.argv[1]).write_text(head + page(notebook), encoding="utf-8")
    else:
        nbformat.write(executed(notebook), NOTEBOOK)


if __name__ == "__main__":
    main()
