"""Errors, exit codes, pipes, signals, help and shell completion."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli.running import command, environment, run, save_run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "nowhere"], "nowhere: expected a run directory, found nothing"),
        (["ls", "a", "--depth", "1"], "a is a run directory, but these options require a checkpoint"),
        (["ls", "a/ckpt-50", "--only", "parms"], "parms"),
        (["ls", "a/ckpt-50", "--regex", "("], "unterminated subpattern"),
        (["ls", "--nonsense"], "No such option '--nonsense'. (see pytreesaver ls --help)"),
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
        (["diff", "a", "nowhere"], "nowhere: expected a checkpoint, found nothing"),
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


@pytest.mark.usefixtures("in_runs")
def test_debug_prints_the_traceback():
    plain, debug = run("ls", "nowhere"), run("ls", "nowhere", "--debug")
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert debug.err.endswith(plain.err)
    assert (plain.code, debug.code) == (2, 2)


@pytest.mark.usefixtures("in_runs")
def test_output_to_a_closed_descriptor_or_a_full_disk():
    line = " ".join(command("ls", "a"))
    closed = subprocess.run(["bash", "-c", f"{line} >&-"], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")
    full = subprocess.run(["bash", "-c", f"{line} > /dev/full"], capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr.count("\n")) == (2, 1)
    assert full.stderr.startswith("error: ")


@pytest.mark.usefixtures("in_runs")
def test_no_error_is_printed_if_the_reader_closes_the_pipe():
    for shell in ("{} | head -n 1", "{} | true"):
        result = subprocess.run(
            ["bash", "-o", "pipefail", "-c", shell.format(" ".join(command("ls", "many")))],
            capture_output=True, text=True, env=environment(), check=False,
        )  # fmt: skip
        assert result.stderr == ""
        assert result.returncode in (0, 141)


@pytest.mark.usefixtures("in_runs")
def test_the_shell_completes_commands_and_variables():
    def completions(words):
        script = Path(sys.executable).parent / "pytreesaver"
        last = str(len(words.split(" ")) - 1)
        asked = environment(COMP_WORDS=words, COMP_CWORD=last, _PYTREESAVER_COMPLETE="bash_complete")
        answer = subprocess.run([script], capture_output=True, text=True, env=asked, check=False).stdout
        return [line.removeprefix("plain,") for line in answer.split()]

    assert completions("pytreesaver ver") == ["verify"]
    assert completions("pytreesaver show a/ckpt-50 params/layer_0/") == [
        "params/layer_0/bias", "params/layer_0/kernel",
    ]  # fmt: skip
    assert completions("pytreesaver show nowhere p") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_once_for_the_current_shell(call, monkeypatch, tmp_path, shell):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    Path(".bashrc").write_text("alias l=ls")
    results = [call("--install-completion") for _ in range(2)]
    assert [(result.code, result.err) for result in results] == [(0, ""), (0, "")]
    (script,) = (each for each in tmp_path.rglob("*pytreesaver*") if each.is_file())
    assert str(script) in results[0].out
    assert script.read_text().strip() == call("--show-completion").out.strip()
    if shell == "bash":
        assert Path(".bashrc").read_text() == f"alias l=ls\nsource ~/{script.relative_to(tmp_path)}\n"
        asked = ["bash", "--norc", "-c", "source ~/.bashrc; complete -p pytreesaver"]
        assert "pytreesaver" in subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def test_completion_for_another_shell_is_an_error(call, monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    for option in ("--install-completion", "--show-completion"):
        result = call(option)
        assert (result.code, result.out) == (2, "")
        assert "expected one of the shells bash, zsh, fish in $SHELL, found 'tcsh'" in result.err


@pytest.mark.parametrize("name", ["ls", "show", "diff", "verify", "prune", "rm", "cp", "info", "report"])
def test_every_command_has_an_example_in_its_help(call, name):
    result = call(name, "--help")
    assert result.code == 0
    examples = [line.strip() for line in result.out.splitlines() if line.strip().startswith(f"pytreesaver {name} ")]
    assert examples
    assert all(line.count("pytreesaver") == 1 for line in examples)
    assert "--json" in result.out
