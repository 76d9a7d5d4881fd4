"""Output of the commands: widths, colours, and untrusted names."""

import re

import hypothesis.strategies as st
import pytest
from cli.running import CODES, ESCAPE, HOSTILE, run, run_on_terminal
from hypothesis import given, settings

import pytreesaver as pts
from pytreesaver._cli import output

# The arguments, the exit code, and texts that appear in the output at any width.
OUTPUTS = {
    "ls run": (["ls", "a"], 0, ["a: 4 checkpoints", "ckpt-50", "newest, last 4", "loss=0.0196", "git=abc", "3 d"]),
    "ls checkpoint": (
        ["ls", "a/ckpt-50"],
        0,
        ["step 50, 8 variables, 122 params, 585 B", "├─ layer_0", "│  ├─ bias", "float32[4,8]", "128 B", "21.9 %"],
    ),
    "show": (
        ["show", "a/ckpt-50", "params/layer_2/kernel"],
        0,
        ["params/layer_2/kernel: float32[4,8], 128 B", "[[27. 27.", "min 27", "mean 27", "std 0", "norm 152.735"],
    ),
    "show stats": (
        ["show", "a", "--stats"],
        0,
        ["params/layer_1/bias", "2 NaN and 0 Inf in 1 of 8 variables: params/layer_1/bias", "float64[8]", "27"],
    ),
    "diff": (
        ["diff", "a/ckpt-40", "a/ckpt-50"],
        1,
        ["~ count: int32[], 1 of 1 element differs", "NaN 0 -> 2", "0 added, 0 removed, 5 changed, 3 variables equal"],
    ),
    "verify": (["verify", "a", "damaged"], 1, ["intact   a/ckpt-20: 8 variables", "DAMAGED", "w"]),
    "prune": (
        ["prune", "a", "--keep-last", "1", "--keep-best", "1:loss:max"],
        0,
        ["would be deleted", "kept: newest, last 1", "best 1 by loss (max)", "would delete 2 checkpoints", "--yes"],
    ),
    "info": (
        ["info", "a"],
        0,
        ["a/ckpt-50", "pytreesaver, version 1", "metadata/git", "'abc'", "├─ count: int32[]", "layer_0: dict"],
    ),
    "version": (["--version"], 0, [f"pytreesaver {pts.__version__}"]),
    "help": (["--help"], 0, ["Inspect, compare, verify", "Exit codes: 0 success"]),
}  # fmt: skip


def normalized(text):
    """Collapse whitespace and table borders, which depend on the width."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", CODES.sub("", text))


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.usefixtures("in_runs")
def test_every_command_on_a_pipe_and_on_a_terminal(name, columns):
    arguments, code, texts = OUTPUTS[name]
    plain = {"NO_COLOR": "1"} if columns == 200 else {}
    piped, on_terminal = run(*arguments, columns=columns), run_on_terminal(*arguments, columns=columns, **plain)
    for result in (piped, on_terminal):
        assert (result.code, result.err) == (code, "")
        for text in texts:
            assert normalized(text).strip() in normalized(result.out)
    assert ESCAPE not in piped.out
    if name != "diff":  # the terminal wraps its lines
        assert max(len(CODES.sub("", line)) for line in on_terminal.out.split("\n")) <= columns
    if columns == 80 and name != "version":
        assert ESCAPE in on_terminal.out
    # Click formats the help; verify prints a rate.
    if columns == 200 and name not in ("help", "verify"):
        assert on_terminal.out == piped.out


def test_lines_are_not_wrapped_on_a_pipe_without_a_width(in_runs):
    result = run("ls", "a")
    assert len(result.out.splitlines()) == 1 + 1 + 4
    result = run("show", "a", "--stats")
    assert len(result.out.splitlines()) == 1 + 8 + 1


@pytest.mark.usefixtures("in_runs")
def test_colour_can_be_forced_and_disabled():
    assert ESCAPE in run("ls", "a", FORCE_COLOR="1").out
    assert ESCAPE not in run_on_terminal("ls", "a", columns=80, NO_COLOR="1").out
    assert ESCAPE not in run_on_terminal("ls", "a", columns=80, TERM="dumb").out


@pytest.mark.usefixtures("in_runs")
def test_a_note_lists_columns_omitted_on_a_narrow_terminal(call):
    narrow = run_on_terminal("ls", "a", columns=60, NO_COLOR="1")
    assert "kept: newest, last 4" in narrow.out
    assert "terminal too narrow for metrics and metadata; see --json" in narrow.out
    assert "terminal too narrow" not in run("ls", "a").out


TEXTS = st.text("ab é日\n\x1b\u0301👍", max_size=8)


@settings(max_examples=30)
@given(st.lists(st.tuples(TEXTS, st.text("0123.e", max_size=8), TEXTS), max_size=4))
def test_a_table_without_colours_is_as_rich_lays_it_out(rows):
    headings = [("name", "left"), ("size", "right"), ("text", "left")]
    cells = [[output.printable(cell) for cell in row] for row in rows]
    plain, rich = output._plain_lines(headings, cells), output._rich_lines(headings, cells, ())
    assert [line.rstrip() for line in plain if line.strip()] == [line.rstrip() for line in rich if line.strip()]


def test_extreme_names_and_times(call):
    digits = "9" * 5000
    with pts.CheckpointManager("run", block=True, clock=lambda: 1e300) as manager:
        manager.save(1, {digits: 2**20000, f"layer_{digits}": 1, "a\nb": 2})
    for line in (
        "ls run",
        "ls run/ckpt-1",
        "ls run/ckpt-1 --fold",
        "info run",
        "info run --json",
        f"show run {digits}",
    ):
        assert call(*line.split()).code == 0
    assert "a\\nb: int" in call("info", "run").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "hostile"],
        ["ls", "hostile/ckpt-2"],
        ["ls", "hostile/ckpt-2", "--flat"],
        ["show", "hostile", "words"],
        ["show", "hostile", f"{HOSTILE}/text"],
        ["show", "hostile", "--stats"],
        ["show", "hostile", HOSTILE],
        ["diff", "hostile/ckpt-1", "hostile/ckpt-2"],
        ["diff", "hostile/ckpt-1", "a"],
        ["verify", "hostile", "damaged"],
        ["prune", "hostile", "--keep-last", "1"],
        ["info", "hostile"],
        ["ls", HOSTILE],
        ["ls", "hostile/ckpt-2", "--only", HOSTILE + "x"],
        [HOSTILE],
    ],
)
@pytest.mark.usefixtures("in_runs")
def test_hostile_names_are_escaped(call, arguments):
    result = call(*arguments)
    for text in (result.out, result.err):
        assert all(each.isprintable() or each == "\n" for each in text)
    assert "\\x1b[31m" in result.out + result.err or "damaged" in arguments


@pytest.mark.usefixtures("in_runs")
def test_hostile_names_are_escaped_on_a_colour_terminal():
    result = run_on_terminal("ls", "hostile/ckpt-2", columns=80)
    assert all(each.isprintable() or each == "\n" for each in CODES.sub("", result.out))
    assert f"{ESCAPE}[31m" not in result.out
