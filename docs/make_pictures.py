"""Generate the pictures in the documentation from real output of the commands. Run by ``make docs``.

Rich exports the terminal pictures as SVG files. Chromium takes a screenshot of the report as a PNG file.
"""

import contextlib
import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from pathlib import Path

IMAGES = Path(__file__).parent / "images"

TERMINALS = {
    "ls-run": (["ls", "runs/a"], 140),
    "ls": (["ls", "runs/a/ckpt-10000", "--fold"], 84),
    "show": (["show", "runs/a", "params/layers/layer_7/mlp/up", "--printoptions", "precision=3"], 100),
    "diff": (["diff", "runs/a/ckpt-9750", "runs/a", "--only", "params/layers/layer_7"], 130),
}
"""The arguments of the command and the width of the terminal in columns, by picture name."""


def terminal_output(arguments: list[str], columns: int, directory: Path) -> str:
    """Return what a command writes to a terminal with `columns` columns, including colour codes."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytreesaver", *arguments],
        cwd=directory, stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.DEVNULL,
        env={**plain, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(slave)
    text = bytearray()

    def drain() -> None:
        try:
            while part := os.read(master, 1 << 16):
                text.extend(part)
        except OSError:  # the process closed its end
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    process.wait()
    reader.join()
    os.close(master)
    return text.decode().replace("\r\n", "\n")


def terminal_picture(name: str, directory: Path) -> str:
    """Return as SVG the output of a command in `directory`, which contains the sample run as ``runs/a``."""
    from rich.console import Console
    from rich.text import Text

    arguments, columns = TERMINALS[name]
    output = terminal_output(arguments, columns, directory).rstrip("\n")
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "dim"), (f"pytreesaver {' '.join(arguments)}", "bold")))
    console.print(Text.from_ansi(output))
    picture = console.export_svg(title="pytreesaver", unique_id=f"pytreesaver-{name}")
    return re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)  # no fonts from the network


def report_picture(page: Path, target: Path) -> None:
    """Save a screenshot of the top of a report, taken with Chromium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium not found: apt-get install chromium chromium-driver")
    options.binary_location = chromium
    with tempfile.TemporaryDirectory() as profile:
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
            f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(argument)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or "chromedriver"))
        try:
            driver.set_window_size(1240, 1500)
            driver.get(page.absolute().as_uri())
            driver.implicitly_wait(20)
            driver.find_element("css selector", "#heatmap svg")
            driver.save_screenshot(str(target))
        finally:
            driver.quit()


def main() -> None:
    """Generate all pictures."""
    from sample_run import sample_run

    import pytreesaver as pts

    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        sample_run(Path("runs/a"))
        for name in TERMINALS:
            (IMAGES / f"{name}.svg").write_text(terminal_picture(name, Path()))
        report_picture(pts.write_report("runs/a"), IMAGES / "report.png")


if __name__ == "__main__":
    main()
