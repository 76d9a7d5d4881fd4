"""Generate docs/cli.md from its template and the help text of each command. Run by ``make docs``."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = ("ls", "show", "diff", "verify", "prune", "rm", "cp", "convert", "info", "report", "demo")


def help_of(command: str) -> str:
    """Return the output of ``pytreesaver command --help``."""
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "-m", "pytreesaver", command, "--help"],
        env={**plain, "NO_COLOR": "1", "COLUMNS": "100", "LC_ALL": "C.UTF-8"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.rstrip() for line in done.stdout.strip("\n").split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def page() -> str:
    """Return the Markdown of the page."""
    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(help_of, COMMANDS))
    sections = [f"### {name}\n\n```text\n{text}\n```" for name, text in zip(COMMANDS, texts, strict=True)]
    return (HERE / "cli.template.md").read_text().replace("{{HELP}}", "\n\n".join(sections))


if __name__ == "__main__":
    (HERE / "cli.md").write_text(page())
