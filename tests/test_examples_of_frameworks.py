"""The programs for each framework resume bit for bit; the transformer and the notebook do what their pages say."""

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np

import pytreesaver as pts

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
COMPILED = {"JAX_COMPILATION_CACHE_DIR": "compiled", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
PYTHON = [sys.executable, "-W", "error::UserWarning"]


def environment(devices):
    # These programs compile for longer than they run, so that optimized code would only cost time.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | COMPILED | {"XLA_FLAGS": flags}


def run(*arguments, devices=1):
    finished = subprocess.run(
        [*PYTHON, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment(devices)
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


# Frameworks.

PROGRAMS = sorted(path.stem for path in (EXAMPLES / "frameworks").glob("*.py"))
RUN_ALL = """
import runpy, sys
folder, *calls = sys.argv[1:]
for call in calls:
    name, *arguments = call.split(":")
    sys.argv[1:] = arguments
    runpy.run_path(f"{folder}/{name}.py", run_name="__main__")
"""


def run_all(*runs):
    """Run every program with each of the runs (directory, steps), all in one process. Return what each run prints."""
    calls = [f"{name}:{name}/{directory}:{steps}" for name in PROGRAMS for directory, steps in runs]
    lines = run("-c", RUN_ALL, EXAMPLES / "frameworks", *calls)
    assert len(lines) == 2 * len(calls)
    return [lines[at : at + 2] for at in range(0, len(lines), 2)]


def test_the_program_of_each_framework_resumes_bit_for_bit_in_another_process():
    assert len(PROGRAMS) == 5
    for started, _ in run_all(("halfway", 50)):
        assert started == "starting from step 0"
    printed = run_all(("halfway", 100), ("whole", 100))
    for name, resumed, whole in zip(PROGRAMS, printed[::2], printed[1::2], strict=True):
        assert resumed[0] == "starting from step 50", name
        assert resumed[1] == whole[1], name  # what the restored weights predict
        assert re.match(r"0\.5 \* 0\.5 = \d\.\d{3}", resumed[1]), name
        difference = pts.diff(f"{name}/halfway/ckpt-100", f"{name}/whole/ckpt-100")
        assert not difference, difference
        assert len(difference.equal) > 10, name
        assert pts.list_checkpoints(f"{name}/whole")[-1].metrics["loss"] < 1 / 9, name  # that of predicting 0


# The transformer.


def transformer(name):
    return EXAMPLES / "transformer" / f"{name}.py"


def losses_of(lines):
    found = (re.fullmatch(r"step (\d+): loss (\d+\.\d+)", line.strip()) for line in lines)
    return {int(match[1]): float(match[2]) for match in found if match}


def killed_after(step, *arguments, devices):
    """Run a program until it has printed the loss of a step, and kill it. Return all that it has printed."""
    with subprocess.Popen(
        [*PYTHON, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment(devices)
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"step {step}:"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return lines


SERVE = """
import runpy, sys
program, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(program, run_name="__main__")
assert not {"model", "train", "finetune", "optax", "flax"} & set(sys.modules)
"""


def test_the_transformer_is_killed_resumed_on_fewer_devices_fine_tuned_and_served():
    arguments = (transformer("train"), "base", "--save-every", "10")
    killed = killed_after(15, *arguments, "--steps", "100000", devices=8)
    assert killed[0] == "starting from step 0 on 8 devices\n"
    expected = losses_of(killed)

    first, *lines = run(*arguments, "--steps", max(expected) + 1, devices=4)
    started = int(re.fullmatch(r"starting from step (\d+) on 4 devices", first)[1])
    assert started >= 10
    resumed = losses_of(lines)
    assert list(resumed) == list(range(started + 1, max(expected) + 2))
    repeated = resumed.keys() & expected.keys()
    assert repeated
    for step in repeated:  # devices add up in another order
        assert np.isclose(resumed[step], expected[step], rtol=1e-3), step
    assert resumed[max(resumed)] < expected[1] - 1

    before, after, saved = run(transformer("finetune"), "base", "adapters", "--steps", "10")
    assert float(after.split()[-1]) < float(before.split()[-1])
    assert saved == "saved 4 variables to adapters"
    assert [name.rpartition("/")[2] for name, _ in pts.list_variables("adapters")] == ["lora_a", "lora_b"] * 2

    run(transformer("export"), "base", "adapters", "served")
    (text,) = run("-c", SERVE, transformer("serve"), "served", "def main(", "20")
    assert text.startswith("def main(")
    assert len(text) > len("def main(")
    restored = pts.restore("served", only="blocks/attention")["blocks"]["attention"]
    tuned, base = pts.restore("adapters"), pts.restore("base", only="params/blocks")["params"]
    for name in ("qkv", "out"):
        assert np.array_equal(restored[name]["lora_b"], tuned["blocks"]["attention"][name]["lora_b"])
        assert np.array_equal(restored[name]["w"], base["blocks"]["attention"][name]["w"])


def test_the_page_of_the_transformer_shows_its_code():
    programs = [path.read_text() for path in (EXAMPLES / "transformer").glob("*.py")]
    page = (ROOT / "docs/how-to/transformer.md").read_text()
    blocks = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 3
    assert [block for block in blocks if not any(block in program for program in programs)] == []


# The notebook.


def outputs_of(notebook):
    """Return the outputs of a notebook by cell, in which a number is a number."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = output.get("text") or output["data"]["text/plain"]
            found[cell.id] = (sorted(output.get("data", ())), re.sub(r"-?\d[\d.,]*(e-?\d+)?", "#", text))
    return found


def test_the_notebook_has_the_outputs_that_its_cells_have():
    committed = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    executed = runpy.run_path(str(ROOT / "docs/make_notebook_page.py"))["executed"](committed)
    assert outputs_of(executed) == outputs_of(committed), "run `python docs/make_notebook_page.py`"
    shown = [output.data for cell in executed.cells for output in cell.get("outputs", ()) if "data" in output]
    assert any("pytreesaver-checkpoint" in data.get("text/html", "") for data in shown)
    assert any("<polyline" in data.get("image/svg+xml", "") for data in shown)
