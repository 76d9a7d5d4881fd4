"""Tests of the HTML for notebooks, with and without Treescope, and with hostile names."""

import sys
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings

import pytreesaver as pts
from pytreesaver._inspect import notebook
from pytreesaver.testing import pytrees

HOSTILE = "<script>alert(1)</script>\x1b[31m\"' onclick=alert(2)"


class Text(HTMLParser):
    """Collects the text and the tags of an HTML document."""

    def __init__(self):
        super().__init__()
        self.text = ""
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def parsed(text):
    parser = Text()
    parser.feed(text)
    parser.close()
    return parser


@pytest.fixture
def without_treescope(monkeypatch):
    monkeypatch.setitem(sys.modules, "treescope", None)


@pytest.mark.usefixtures("without_treescope")
def test_facts_and_variables_are_shown():
    tree = {"params": {"dense": {"kernel": np.zeros((3, 4), np.float32)}}, "step": 7}
    with pts.CheckpointManager("run", block=True) as manager:
        path = manager.save(7, tree, metrics={"loss": 0.25}, metadata={"git": "abc"})
    found = parsed(pts.load_checkpoint(path)._repr_html_())
    for text in (
        "run/ckpt-7",
        "metrics/loss",
        "0.25",
        "'abc'",
        "kernel: float32[3,4], 12 params, 48 bytes",
        "85.7\xa0%",
    ):
        assert text in found.text
    assert found.tags.count("details") == 2


def test_treescope_renders_the_tree_if_installed(monkeypatch):
    import treescope

    path = pts.save({"params": {"kernel": np.zeros((3, 4))}, HOSTILE: 1}, "model")
    compressed = pts.load_checkpoint(path)._repr_html_()
    assert "treescope" in compressed
    # Treescope compresses its output, so check the uncompressed form.
    monkeypatch.setattr(treescope, "render_to_html", partial(treescope.render_to_html, compressed=False))
    text = pts.load_checkpoint(path)._repr_html_()
    assert "float64[3,4], 12 params, 96 bytes" in parsed(text).text
    assert "alert(1)" in text
    assert "<script>alert(1)" not in text
    assert parsed(text).text.count("onclick=alert(2)") == text.count("onclick=alert(2)") == 1
    assert "\x1b" not in text


@pytest.mark.usefixtures("without_treescope")
def test_hostile_names_are_escaped():
    path = pts.save({HOSTILE: {"w": np.ones(2)}}, "model", metadata={HOSTILE: HOSTILE})
    found = parsed(pts.load_checkpoint(path)._repr_html_())
    assert "script" not in found.tags
    assert "<script>alert(1)<" in found.text
    assert "\x1b" not in found.text


@pytest.mark.usefixtures("without_treescope")
def test_omitted_variables_are_counted(monkeypatch):
    monkeypatch.setattr(notebook, "_MAX_ROWS", 10)
    path = pts.save({name: {str(i): np.zeros(1) for i in range(20)} for name in "ab"}, "model")
    found = parsed(pts.load_checkpoint(path)._repr_html_())
    assert "and 31 more variables" in found.text  # one of the ten rows is that of the branch
    assert "variables40" in found.text
    assert "a: 20 variables, 20 params, 160 bytes 50.0\xa0%" in found.text


def test_a_deep_tree_is_rendered_without_treescope():
    tree = np.ones(2)
    for _ in range(90):
        tree = {"level": tree}
    text = pts.load_checkpoint(pts.save(tree, "deep"))._repr_html_()
    assert text.count("<details") == 89


@settings(max_examples=30)
@given(pytrees())
def test_every_tree_can_be_rendered(tree):
    path = pts.save(tree, "any", overwrite=True)
    with pts.load_checkpoint(path) as checkpoint:
        text = checkpoint._repr_html_()
    assert text.count("<div") == text.count("</div>")
