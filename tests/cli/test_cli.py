"""Tests of the command-line interface: stdout, stderr and the exit code of every command."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._cli import main, output

ESCAPE = "\x1b"
HOSTILE = "evil\x1b[31m\x1b[2J\r\u202etxt"
CODES = re.compile(r"\x1b\[[0-9;]*m")


class Result(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def environment(**extra):
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return {**kept, "TERM": "xterm-256color", **extra}


def command(*arguments, module="pytreesaver"):
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(*arguments, columns=None, module="pytreesaver", **extra):
    """Run a command whose output goes to pipes."""
    if columns is not None:
        extra["COLUMNS"] = str(columns)
    result = subprocess.run(
        command(*arguments, module=module), capture_output=True, env=environment(**extra), check=False, timeout=120
    )
    return Result(result.returncode, result.stdout.decode(), result.stderr.decode())


def run_on_terminal(*arguments, columns, **extra):
    """Run a command whose stdout and stderr are terminals with `columns` columns."""
    texts = [bytearray(), bytearray()]
    pairs = [pty.openpty() for _ in texts]
    for _, slave in pairs:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        command(*arguments), stdin=subprocess.DEVNULL, stdout=pairs[0][1], stderr=pairs[1][1], env=environment(**extra)
    )

    def drain(master, text):
        try:
            while part := os.read(master, 1 << 16):
                text += part
        except OSError:  # the other end is closed
            pass

    for _, slave in pairs:
        os.close(slave)
    readers = [threading.Thread(target=drain, args=(master, text)) for (master, _), text in zip(pairs, texts)]
    for reader in readers:
        reader.start()
    code = process.wait(120)
    for reader in readers:
        reader.join()
    for master, _ in pairs:
        os.close(master)
    out, err = (text.decode().replace("\r\n", "\n") for text in texts)
    return Result(code, out, err)


def layers(count, scale):
    return {f"layer_{i}": {"kernel": jnp.full((4, 8), scale + i), "bias": np.zeros(8)} for i in range(count)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints that tests must not modify: `a` has four, `damaged` a flipped bit, `hostile` hostile names."""
    root = tmp_path_factory.mktemp("runs")
    days_ago = time.time() - 3.5 * 86400
    with pts.CheckpointManager(root / "a", max_to_keep=4, block=True, clock=lambda: days_ago) as manager:
        for step in range(0, 60, 10):
            tree = {"params": layers(3, 0.5 * step), "count": np.int32(step), "note": "words"}
            if step == 50:
                tree["params"]["layer_1"]["bias"] = np.where(np.arange(8) < 2, np.nan, 1.0)
            manager.save(step, tree, metrics={"loss": 1 / (step + 1)}, metadata={"git": "abc"})
    damaged = pts.save({"w": np.arange(100.0), "v": np.ones(3)}, root / "damaged")
    (data,) = damaged.glob("*.safetensors")
    content = bytearray(data.read_bytes())
    content[content.find(np.arange(100.0).tobytes()) + 77] ^= 1
    data.write_bytes(content)
    with pts.CheckpointManager(root / "hostile", block=True) as manager:
        for step in (1, 2):
            tree = {HOSTILE: {HOSTILE: np.full(3, step), "text": HOSTILE}, "words": np.array([HOSTILE] * 2)}
            manager.save(step, tree, metrics={HOSTILE: 1.0}, metadata={HOSTILE: HOSTILE})
    pts.save({f"layer_{i}/w{j}": np.zeros(3, np.float32) for i in range(500) for j in range(10)}, root / "many")
    return root


@pytest.fixture
def in_runs(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


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
    # Typer formats the help; verify prints a rate.
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


# Most tests from here on run in this process, which is faster.


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    output.columns.cache_clear()

    def call(*arguments):
        code = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "nowhere"], "nowhere: expected a run directory, found nothing"),
        (["ls", "a", "--depth", "1"], "a is a run directory, but these options require a checkpoint"),
        (["ls", "a/ckpt-50", "--only", "parms"], "parms"),
        (["ls", "a/ckpt-50", "--regex", "("], "unterminated subpattern"),
        (["ls", "--nonsense"], "No such option: --nonsense (see pytreesaver ls --help)"),
        (["nonsense"], "No such command 'nonsense'. (see pytreesaver --help)"),
        (["show", "a"], "expected the NAME of a variable, or --stats"),
        (["show", "a", "parms"], "a/ckpt-50 has no variable 'parms'"),
        (["show", "a", "count", "--slice", "x"], "expected integers and slices"),
        (["show", "a", "params/layer_0/kernel", "--slice", "9"], "index 9 is out of bounds for axis 0 of length 4"),
        (["show", "a", "count", "--printoptions", "colour=3"], "expected KEY=VALUE with KEY one of precision"),
        (["show", "a", "count", "--printoptions", "edgeitems=abc"], "edgeitems: expected a number, found 'abc'"),
        (["show", "a", "count", "--printoptions", "suppress=maybe"], "suppress: expected true or false"),
        (["ls", "a/ckpt-50", "--flat", "--depth", "1"], "--depth and --fold cannot be combined with --flat or --json"),
        (["cp", "a", "a/ckpt-50/copy"], "expected a path outside of checkpoints"),
        (
            ["cp", "a", "copy", "--rename", "note=x", "--rename", "note=y"],
            "--rename: repeated old name: note",
        ),
        (["diff", "a", "nowhere"], "nowhere does not exist: expected a checkpoint or a run directory"),
        (["verify", "nowhere"], "nowhere: expected a checkpoint or a directory of checkpoints, found neither"),
        (["prune", "a", "--keep-best", "loss"], "expected N:METRIC or N:METRIC:max"),
        (["prune", "a", "--keep-younger-than", "3 moons"], "expected an age such as 30s"),
        (["prune", "a", "--keep-every-hours", "-1"], "hours"),
        (["rm", "nowhere"], "nothing was deleted; expected checkpoints, found none at these paths: nowhere"),
        (["rm", "a"], "a"),
        (["cp", "a", "damaged"], "damaged"),
        (["cp", "a", "copy", "--rename", "x"], "--rename: expected OLD=NEW, found 'x'"),
        (["cp", "a", "copy", "--rename", "x=y"], "x"),
        (["cp", "a", "copy", "--rename", "note=x", "--rename", "count=x"], "--rename: repeated new name: x"),
        (["show", "a", "params/layer_0/kernel", "--slice", "0,,1"], "expected integers and slices"),
        (
            ["prune", "a/ckpt-50", "--keep-last", "1", "--yes"],
            "ckpt-50: expected a run directory, found a checkpoint",
        ),
        (["prune", "a", "--keep-best", "1:los", "--yes"], "expected one of the metrics ['loss']"),
        (["info", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere: expected a run directory, found nothing"),
    ],
)
@pytest.mark.usefixtures("in_runs")
def test_wrong_usage_prints_one_line_and_exits_with_2(call, arguments, message):
    before = sorted(os.listdir()), sorted(os.listdir("a"))
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert (sorted(os.listdir()), sorted(os.listdir("a"))) == before


@pytest.mark.usefixtures("in_runs")
def test_damage_exits_with_1_and_names_the_variables(call):
    result = call("verify", "damaged", "--json")
    assert result.code == 1
    (found,) = json.loads(result.out)["checkpoints"]
    assert (found["intact"], found["damaged"]) == (False, ["w"])
    result = call("show", "damaged", "w")
    assert (result.code, result.out) == (1, "")
    assert "w" in result.err
    assert call("show", "damaged", "v").code == 0
    assert call("show", "damaged", "--stats").code == 1


def test_without_a_command_the_help_is_printed(call):
    result = call()
    assert (result.code, result.err) == (2, "")
    assert "Usage: pytreesaver" in result.out


def test_an_unexpected_error_is_printed_as_one_line(call, monkeypatch):
    def fail(path):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("pytreesaver._run.listing.list_checkpoints", fail)
    Path("run").mkdir()
    result = call("ls", "run")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: RuntimeError: two; lines (unexpected error; --debug prints the traceback)\n"


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


@pytest.mark.usefixtures("in_runs")
def test_verify_continues_after_an_unreadable_checkpoint(call):
    for name in "abc":
        pts.save({"w": np.ones(3)}, f"newer/{name}")
    index = Path("newer/b/index.json")
    index.write_text(re.sub(r'"version": ?[0-9]+', '"version": 999', index.read_text()))
    result = call("verify", "newer")
    assert result.code == 1
    assert sorted(line.split()[0] for line in result.out.splitlines() if line[0] != " ") == [
        "DAMAGED",
        "intact",
        "intact",
    ]
    found = json.loads(call("verify", "newer", "--json").out)["checkpoints"]
    assert {each["path"]: each["intact"] for each in found} == {"newer/a": True, "newer/b": False, "newer/c": True}
    assert ["999" in each["problem"] for each in found if each["problem"]] == [True]
    shutil.rmtree("newer")


def test_a_missing_file_is_detected_without_reading(call):
    save_run(3)
    (data,) = Path("run/ckpt-1").glob("*.safetensors")
    data.unlink()
    shutil.copytree("run/ckpt-1", "copy")
    for line in ("ls run", "ls run/ckpt-1", "info run/ckpt-1", "diff run/ckpt-1 copy", "verify run/ckpt-1"):
        result = call(*line.split())
        assert result.code == 1, line
        assert data.name in result.out + result.err
    assert call("ls", "run/ckpt-2").code == 0


@pytest.mark.usefixtures("in_runs")
def test_output_to_a_closed_descriptor_or_a_full_disk():
    line = " ".join(command("ls", "a"))
    closed = subprocess.run(["bash", "-c", f"{line} >&-"], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")
    full = subprocess.run(["bash", "-c", f"{line} > /dev/full"], capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr.count("\n")) == (2, 1)
    assert full.stderr.startswith("error: ")


@pytest.mark.usefixtures("in_runs")
def test_a_note_lists_columns_omitted_on_a_narrow_terminal(call):
    narrow = run_on_terminal("ls", "a", columns=60, NO_COLOR="1")
    assert "kept: newest, last 4" in narrow.out
    assert "terminal too narrow for metrics and metadata; see --json" in narrow.out
    assert "terminal too narrow" not in run("ls", "a").out


def test_a_name_with_an_equals_sign_can_be_renamed(call):
    pts.save({"a=b": 1, "c": 2}, "model")
    assert call("cp", "model", "copy", "--rename", r"a\=b=d\=e").code == 0
    assert pts.restore("copy") == {"d=e": 1, "c": 2}


def test_folded_names_keep_zero_padding(call):
    pts.save({f"v{i:03}": 1 for i in range(8, 12)}, "model")
    assert "v{008..011}" in call("ls", "model", "--fold").out


@pytest.mark.usefixtures("in_runs")
def test_debug_prints_the_traceback():
    plain, debug = run("ls", "nowhere"), run("ls", "nowhere", "--debug")
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert debug.err.endswith(plain.err)
    assert (plain.code, debug.code) == (2, 2)


# JSON.


@pytest.mark.usefixtures("in_runs")
def test_json_of_a_run(call):
    found = json.loads(call("ls", "a", "--json").out)
    assert found["path"] == "a"
    last = found["checkpoints"][-1]
    assert list(last) == ["path", "step", "time", "nbytes", "metrics", "metadata", "keep", "reasons", "problem"]
    assert (last["step"], last["metadata"], last["keep"]) == (50, {"git": "abc"}, True)
    assert (last["metrics"], last["reasons"], last["problem"]) == ({"loss": 1 / 51}, ["newest", "last 4"], None)
    assert json.loads(call("prune", "a", "--keep-last", "1", "--json").out)["deleted"] is False


@pytest.mark.usefixtures("in_runs")
def test_json_of_a_checkpoint(call):
    found = json.loads(call("ls", "a/ckpt-50", "--only", "**/kernel", "--json").out)
    assert (found["step"], found["size"], found["nbytes"]) == (50, 96, 384)
    assert found["variables"][0] == {
        "name": "params/layer_0/kernel", "kind": "jax", "dtype": "float32", "shape": [4, 8], "type": "float32[4,8]",
        "size": 32, "nbytes": 128,
    }  # fmt: skip
    found = json.loads(call("info", "a", "--json").out)
    assert (found["format"], found["version"], found["variables"]) == ("pytreesaver", 1, 8)
    assert found["structure"]["type"] == "dict"
    assert [child["key"] for child in found["structure"]["children"]] == ["params", "count", "note"]


@pytest.mark.usefixtures("in_runs")
def test_json_of_values(call):
    found = json.loads(call("show", "a", "params/layer_1/bias", "--slice", "1:4", "--json").out)
    assert found["values"] == ["nan", 1.0, 1.0]
    assert (found["statistics"]["nan"], found["statistics"]["max"]) == (1, 1.0)
    assert sum(found["histogram"]["counts"]) == 2
    assert json.loads(call("show", "a", "note", "--json").out)["values"] == "words"
    found = json.loads(call("show", "a", "--stats", "--json").out)["statistics"]
    assert found["count"]["min"] == 50
    assert found["note"]["min"] is None


def test_json_of_unusual_values(call):
    tree = {"least": np.int64(-(2**63)), "most": np.uint64(2**64 - 1), "big": 2**64, "bytes": b"a\xff"}
    pts.save(tree, "model")
    found = {name: json.loads(call("show", "model", name, "--json").out)["values"] for name in tree}
    assert found == {"least": -(2**63), "most": 2**64 - 1, "big": str(2**64), "bytes": "a\xff"}
    pts.save({**tree, "bytes": b"b\xfe"}, "other")
    changed = json.loads(call("diff", "model", "other", "--json").out)["changed"]
    assert changed["bytes"]["values"] == ["a\xff", "b\xfe"]


@pytest.mark.usefixtures("in_runs")
def test_json_of_a_diff(call):
    result = call("diff", "a/ckpt-40", "a/ckpt-50", "--json")
    found = json.loads(result.out)
    assert result.code == 1
    assert found["differs"]
    assert found["changed"]["params/layer_0/kernel"]["max_abs_difference"] == 5.0
    result = call("diff", "a/ckpt-40", "a/ckpt-50", "--only", "note")
    assert (result.code, result.out) == (0, "0 added, 0 removed, 0 changed, 1 variable equal\n")


# Options.


@pytest.mark.usefixtures("in_runs")
def test_options_of_ls(call):
    lines = call("ls", "a/ckpt-50", "--depth", "1", "--sort", "size").out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["params", "note", "count"]
    assert "6 variables…" in lines[2]
    out = call("ls", "a/ckpt-50", "--fold").out
    assert "layer_{0..2}" in out
    assert re.search(r"kernel +3 × float32\[4,8\] +96 +384 B", out)
    lines = call("ls", "a/ckpt-50", "--flat", "--regex", "kernel$").out.splitlines()
    assert "3 of 8 variables" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == [f"params/layer_{i}/kernel" for i in range(3)]


@pytest.mark.usefixtures("in_runs")
def test_print_options_and_slices(call):
    out = call("show", "a", "params/layer_2/kernel", "--slice", "0:2, 1", "--printoptions", "sign=+").out
    assert "[+27. +27.]" in out
    assert "params/layer_2/kernel [0:2, 1]" in out


def test_a_histogram_counts_every_value(call):
    pts.save({"w": np.random.default_rng(0).normal(size=5000)}, "model")
    out = call("show", "model", "w").out
    bars = out.splitlines()[-16:]
    assert sum(int(line.split()[-1].replace(",", "")) for line in bars) == 5000
    assert max(bars, key=lambda line: line.count("█")) == max(
        bars, key=lambda line: int(line.split()[-1].replace(",", ""))
    )


def test_ls_of_a_parent_directory_lists_the_runs_in_it(call):
    pts.save({"w": 1}, "runs/a/model")
    Path("runs/empty").mkdir()
    result = call("ls", "runs")
    assert (result.code, result.out.splitlines()) == (0, ["runs: no checkpoints", "  but runs/a contains checkpoints"])


# Commands that modify files.


def save_run(count=5):
    with pts.CheckpointManager("run", max_to_keep=None, block=True) as manager:
        for step in range(count):
            manager.save(step, {"w": np.full(3, step), "b": {"c": 1.0}}, metrics={"loss": float(step)})


def remaining_steps():
    return [each.step for each in pts.list_checkpoints("run")]


def test_prune_deletes_only_with_yes(call):
    save_run()
    policy = ["--keep-last", "1", "--keep-every-steps", "3"]
    dry = call("prune", "run", *policy)
    assert remaining_steps() == [0, 1, 2, 3, 4]
    assert dry.out.count("would be deleted") == 2
    result = call("prune", "run", *policy, "--yes")
    assert remaining_steps() == [0, 3, 4]
    assert result.out.splitlines()[-1].startswith("deleted 2 checkpoints, ")
    assert call("prune", "run", *policy, "-y").out.splitlines()[-1] == "deleted 0 checkpoints, 0 B"


def test_prune_without_a_policy_uses_the_recorded_one(call):
    save_run()
    assert "would delete 0 checkpoints" in call("prune", "run").out


def test_rm_deletes_the_given_checkpoints(call):
    save_run()
    result = call("rm", "run/ckpt-4", "run/ckpt-1")
    assert (result.code, result.out) == (0, "deleted run/ckpt-4\ndeleted run/ckpt-1\n")
    assert remaining_steps() == [0, 2, 3]
    assert pts.latest_checkpoint("run") == Path("run/ckpt-3")
    assert json.loads(call("rm", "run/ckpt-0", "--json").out) == {"deleted": ["run/ckpt-0"]}


def test_rm_deletes_nothing_if_a_checkpoint_does_not_exist(call):
    save_run()
    result = call("rm", "run/ckpt-4", "run/ckpt-9")
    assert (result.code, result.out) == (2, "")
    assert remaining_steps() == [0, 1, 2, 3, 4]


def test_cp_selects_and_renames(call):
    save_run()
    result = call("cp", "run", "copy", "--only", "new", "--rename", "b/=new/")
    assert (result.code, result.out) == (0, "copied run/ckpt-4 to copy: 1 variable, 8 B\n")
    assert pts.restore("copy") == {"new": {"c": 1.0}}
    Path("shelf").mkdir()
    for target in ("shelf", "new-shelf/"):
        assert call("cp", "run/ckpt-2", target).code == 0
        assert pts.restore(Path(target) / "ckpt-2")["w"].tolist() == [2, 2, 2]
    assert call("cp", "run/ckpt-3", "copy").code == 2
    found = json.loads(call("cp", "run/ckpt-3", "copy", "--overwrite", "--json").out)
    assert found == {"source": "run/ckpt-3", "target": "copy", "variables": 2, "nbytes": 32}
    assert pts.restore("copy")["w"].tolist() == [3, 3, 3]


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


# Untrusted names, pipes, signals and shell completion.


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


@pytest.mark.usefixtures("in_runs")
def test_no_error_is_printed_if_the_reader_closes_the_pipe():
    for shell in ("{} | head -n 1", "{} | true"):
        result = subprocess.run(
            ["bash", "-o", "pipefail", "-c", shell.format(" ".join(command("ls", "many")))],
            capture_output=True, text=True, env=environment(), check=False,
        )  # fmt: skip
        assert result.stderr == ""
        assert result.returncode in (0, 141)


def test_an_interrupted_copy_leaves_no_files_behind():
    pts.save({"w": np.zeros(96 << 20, np.uint8)}, "model", durable=False)
    before = sorted(os.listdir())
    process = subprocess.Popen(command("cp", "model", "copy"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while sorted(os.listdir()) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it had already finished
        assert sorted(os.listdir()) == sorted([*before, "copy"])
    else:
        assert (process.returncode, out, err) == (130, b"", b"interrupted\n")
        assert [name for name in os.listdir() if name not in (*before, "copy")] == []
        assert not os.path.lexists("copy") or pts.verify("copy") is None


@pytest.mark.usefixtures("in_runs")
def test_the_shell_completes_commands_and_variables():
    def completions(words):
        script = Path(sys.executable).parent / "pytreesaver"
        last = str(len(words.split(" ")) - 1)
        asked = environment(COMP_WORDS=words, COMP_CWORD=last, _PYTREESAVER_COMPLETE="complete_bash")
        return subprocess.run([script], capture_output=True, text=True, env=asked, check=False).stdout.split()

    assert completions("pytreesaver ver") == ["verify"]
    assert completions("pytreesaver show a/ckpt-50 params/layer_0/") == [
        "params/layer_0/bias", "params/layer_0/kernel",
    ]  # fmt: skip
    assert completions("pytreesaver show nowhere p") == []


@pytest.mark.usefixtures("in_runs")
def test_inspecting_does_not_import_jax():
    code = (
        "import sys; from pytreesaver._cli import main\n"
        "for line in ('ls a', 'ls many', 'info a', 'show a count', 'show a --stats', 'diff a a', 'verify a'):\n"
        "    assert main(line.split()) == 0, line\n"
        "assert 'jax' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["ls", "show", "diff", "verify", "prune", "rm", "cp", "info", "report"])
def test_every_command_has_an_example_in_its_help(call, name):
    result = call(name, "--help")
    assert result.code == 0
    examples = [line.strip() for line in result.out.splitlines() if line.strip().startswith(f"pytreesaver {name} ")]
    assert examples
    assert all(line.count("pytreesaver") == 1 for line in examples)
    assert "--json" in result.out
