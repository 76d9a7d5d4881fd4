"""Tests of reports that follow a run."""

import http.client
import json
import shutil
import socket
import struct
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._inspect import measuring
from pytreesaver._inspect.report import collecting
from pytreesaver._inspect.report.serving import ReportServer


@pytest.fixture
def manager():
    with pts.CheckpointManager("run", max_to_keep=2, block=True) as manager:
        manager.save(1, {"w": np.ones(4)})
        yield manager


def ask(server, path="", host=None, *, root=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        root = urlsplit(server.url).path if root is None else root
        connection.request("GET", root + path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer, answer.read().decode()
    finally:
        connection.close()


def version_of(server):
    return json.loads(ask(server, "version.json")[1])["version"]


def test_the_page_follows_the_run(manager):
    with ReportServer("run") as server:
        answer, page = ask(server)
        version = version_of(server)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert f'data-version="{version}"' in page
        assert "connect-src 'self'" in page
        assert version_of(server) == version
        assert "ckpt-2" not in page
        manager.save(2, {"w": np.ones(4)})
        assert version_of(server) != version
        page = ask(server)[1]
        assert f'data-version="{version_of(server)}"' in page
        assert "ckpt-2" in page
    with pytest.raises(ConnectionRefusedError):
        ask(server)


def test_only_new_checkpoints_are_read_again(manager, monkeypatch):
    read = []

    def measure(reader, names, prior=None):
        read.append(reader.path.name)
        return measuring.measure_with_drift(reader, names, prior)

    monkeypatch.setattr(collecting, "measure_with_drift", measure)
    with ReportServer("run") as server:
        for step in (2, 3, 4):
            manager.save(step, {"w": np.full(4, step)})
            server.current_page()
        assert read == ["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4"]


def test_requests_of_other_hosts_are_refused(manager):
    with ReportServer("run") as server:
        assert ask(server, host=f"localhost:{server.port}")[0].status == 200
        for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", ""):
            answer, text = ask(server, host=host)
            assert answer.status == 403
            assert text == f"expected a request to 127.0.0.1:{server.port}"
        assert ask(server, "../run/checkpoint")[0].status == 404
        assert server._server.server_address[0] == "127.0.0.1"


def test_who_does_not_know_the_address_gets_nothing(manager):
    with ReportServer("run") as server, ReportServer("run", port=0) as other:
        for root in ("/", "/version.json", f"/{'0' * 32}/", urlsplit(other.url).path):
            answer, text = ask(server, root=root)
            assert answer.status == 404
            assert "ckpt" not in text


def test_a_request_that_ends_early_is_not_shown_and_an_unexpected_error_is_answered(manager, monkeypatch, capfd):
    with ReportServer("run") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(f"GET {urlsplit(server.url).path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}".encode())
        monkeypatch.setattr(server, "current_page", lambda: 1 / 0)
        answer, text = ask(server)
        assert (answer.status, text) == (500, "ZeroDivisionError: division by zero")
    assert capfd.readouterr().err == ""


def test_a_run_that_is_gone(manager):
    with ReportServer("run") as server:
        shutil.move("run", "elsewhere")
        answer, text = ask(server)
        assert (answer.status, text) == (503, "run: expected a run directory, found none")
        shutil.move("elsewhere", "run")
        assert ask(server)[0].status == 200


def test_a_port_in_use(manager):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=f"port {port} of 127.0.0.1 is in use; choose another one, or 0 for a free one"
        ):
            ReportServer("run", port=port)


def test_a_directory_without_checkpoints_raises():
    Path("empty").mkdir()
    with pytest.raises(pts.CheckpointNotFoundError, match="empty contains no checkpoints"):
        ReportServer("empty")
