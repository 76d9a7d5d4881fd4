"""What happens if the packages of an extra are not installed."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

import pytreesaver as pts

SAMPLE = Path(__file__).parents[1] / "data" / "orbax" / "orbax-0.11.13.tar.gz"

# What is tried without the packages of the extra "orbax", by name.
ATTEMPTS = {
    "save": 'pts.save({"w": 1}, "saved", format="orbax")',
    "save_async": 'pts.save_async({"w": 1}, "saved", format="orbax")',
    "manager": 'pts.CheckpointManager("new", format="orbax")',
    "saver": 'pts.Saver(format="orbax").save({"w": 1}, "model")',
    "convert": 'pts.convert("native", "converted", format="orbax")',
    "restore": 'pts.restore("run/checkpoint_30")',
    "restore into": 'pts.restore("run/checkpoint_30", like={"w": 1})',
    "verify": 'pts.verify("run/checkpoint_30")',
    "inspect": 'pts.load_checkpoint("run/checkpoint_30")',
    "copy": 'pts.copy_checkpoint("run/checkpoint_30", "copy")',
    "handler": "import pytreesaver.orbax",
}
PROGRAM = """
import json, sys
for package in ("orbax", "tensorstore"):
    sys.modules[package] = None
import pytreesaver as pts
messages = {}
for name, code in json.load(sys.stdin).items():
    try:
        exec(code)
    except ImportError as error:
        messages[name] = str(error)
assert pts.restore("native")["w"].tolist() == [0, 1, 2]
assert [each.step for each in pts.list_checkpoints("run")] == [30]
from contextlib import redirect_stdout
from pytreesaver._cli import main
with redirect_stdout(sys.stderr):
    assert main(["verify", "run"]) == main(["report", "run"]) == 2  # and not 1, for damage
print(json.dumps(messages))
"""


def test_without_the_extra_orbax_errors_say_what_to_install():
    pts.save({"w": np.arange(3)}, "native")
    with tarfile.open(SAMPLE) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 has it
            archive.extraction_filter = tarfile.data_filter
        archive.extractall("samples")
    Path("samples/flax_with_orbax").rename("run")
    before = sorted(path for path in Path().rglob("*") if not path.name.startswith(".pytreesaver"))
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(ATTEMPTS), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    messages = json.loads(finished.stdout)
    assert messages.keys() == ATTEMPTS.keys()
    for name, message in messages.items():
        assert message.endswith("which is not installed: pip install 'pytreesaver[orbax]'"), name
    assert messages["save"].startswith('saved: writing format="orbax" needs the package orbax.checkpoint, ')
    reading = 'reading a checkpoint of the format "orbax" needs the package tensorstore, '
    assert messages["restore"].startswith(f"run/checkpoint_30: {reading}")
    assert sorted(path for path in Path().rglob("*") if not path.name.startswith(".pytreesaver")) == before
