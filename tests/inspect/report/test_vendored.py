"""The libraries in reports are those that their README states."""

import hashlib
import re
from pathlib import Path

import pytreesaver as pts
from pytreesaver._inspect import report

VENDORED = Path(report.__file__).parent / "web" / "vendored"
ROW = re.compile(r"\| `(\S+)` \| .*? \| (\S+) \| [^`|]+, `(\S+)` \| `([0-9a-f]{64})` \|")


def test_the_files_are_those_that_were_published():
    pts.save({"w": 1}, "run/a")
    page = pts.write_report("run").read_text()
    rows = ROW.findall((VENDORED / "README.md").read_text())
    assert {name for name, *_ in rows} == {file.name for file in VENDORED.glob("*.js")}
    for name, version, license_file, checksum in rows:
        content = (VENDORED / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == checksum
        assert f" v{version} Copyright ".encode() in content.split(b"\n")[0]
        license_text = (VENDORED / license_file).read_text()
        assert "Permission to use, copy, modify" in license_text
        assert license_text in page
        assert b"</script" not in content  # which would end the script in the page
        assert b"<!--" not in content
