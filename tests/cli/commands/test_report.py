"""``pytreesaver report``."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cli.running import command, environment, save_run


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


def test_report_against_another_run(call):
    save_run()
    assert call("report", "run", "--against", "run").out.startswith("wrote report.html, ")
    assert "against run" in Path("report.html").read_text()
    result = call("report", "run", "--against", "nowhere")
    assert result.code == 2
    assert "nowhere: expected a run directory" in result.err


def test_report_serves_until_it_is_interrupted():
    save_run()
    with subprocess.Popen(
        command("report", "run", "--serve", "--port", "0"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    ) as process:  # fmt: skip
        try:
            words = process.stdout.readline().split()
            assert words[0] == "serving"
            address = urlsplit(words[1])
            with contextlib.closing(http.client.HTTPConnection(address.netloc, timeout=60)) as connection:
                connection.request("GET", address.path)
                assert "made by pytreesaver report" in connection.getresponse().read().decode()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
    assert not Path("report.html").exists()


def test_report_serves_on_a_port_that_is_free(call):
    save_run()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = call("report", "run", "--serve", "--port", port)
    assert result.code == 2
    assert result.err == f"error: port {port} of 127.0.0.1 is in use; choose another one, or 0 for a free one\n"


@pytest.mark.parametrize("options", [("--serve", "-o", "a.html"), ("--serve", "--overwrite"), ("--port", "80")])
def test_report_refuses_options_that_contradict(call, options):
    save_run()
    result = call("report", "run", *options)
    assert result.code == 2
    assert "expected" in result.err
