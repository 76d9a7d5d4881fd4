"""A server on this machine for the report of a run that is still being trained."""

import errno
import hashlib
import hmac
import json
import os
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError
from pytreesaver._inspect.report.collecting import Memory, collect
from pytreesaver._inspect.report.page import page
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._run.history import HISTORY_NAME
from pytreesaver._run.state_text import STATE_FILE_NAME
from pytreesaver._text import printable
from pytreesaver._tree.names.select import Selection

ADDRESS = "127.0.0.1"
_HTTP_PORT = 80


class ReportServer:
    """Serves the page of a report on 127.0.0.1, and collects it again when the run has changed.

    Only checkpoints that are new are read again. Requests that name another host are refused, so that a web page from
    elsewhere cannot reach the server through a name that it resolves to this machine.

    Example:
        >>> with pytreesaver.CheckpointManager("served") as manager:
        ...     path = manager.save(1, {"w": np.zeros(2)})
        >>> with ReportServer("served", port=0) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        against: PathLike | None = None,
        only: Selection | None = None,
        values: bool = True,
        port: int = 0,
    ) -> None:
        """Collect the report, and listen on `port`, or on a free port if it is 0.

        Raises:
            CheckpointNotFoundError: if a run directory does not exist or has no checkpoints.
            VariableNotFoundError: if `only` selects nothing in any checkpoint.
            OSError: if the port is in use, or not allowed.
        """
        self._runs = [
            (local_path(each), Memory()) for each in ([directory] if against is None else [directory, against])
        ]
        self._only = only
        self._values = values
        self._lock = threading.Lock()
        self._secret = os.urandom(16).hex()
        self._version = ""
        self._page = b""
        try:
            self._server = _Server((ADDRESS, port), _Handler)
        except OverflowError:
            raise ValueError(f"port: expected a number from 0 to 65535, found {port}") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(f"port {port} of {ADDRESS}: {error.strerror}") from error
            raise OSError(f"port {port} of {ADDRESS} is in use; choose another one, or 0 for a free one") from error
        self._server.report = self
        self.port: int = self._server.server_address[1]
        self._thread: threading.Thread | None = None
        try:
            self.current_page()
        except BaseException:
            self._server.server_close()
            raise

    @property
    def url(self) -> str:
        """The address of the page. It has a random part, so that no other user of the machine can guess it."""
        return f"http://{ADDRESS}:{self.port}/{self._secret}/"

    def version(self) -> str:
        """Return what changes when the run does: from its history, its state file, and the names in its directory.

        Raises:
            CheckpointNotFoundError: if a run directory no longer exists.
            CheckpointIOError: if the system cannot look.
        """
        seen: list[Any] = []
        for run, _ in self._runs:
            with wrap_os_errors("read", run):
                if not filesystem.is_directory(run):
                    raise CheckpointNotFoundError(f"{run}: expected a run directory, found none")
                seen.append(sorted(filesystem.list_directory(run)))
                seen += [_changes(run / name) for name in (HISTORY_NAME, STATE_FILE_NAME)]
        return hashlib.sha256(repr(seen).encode("utf-8", "backslashreplace")).hexdigest()[:16]

    def current_page(self) -> bytes:
        """Return the page of the current version.

        Raises:
            CheckpointNotFoundError: if a run directory no longer exists or has no checkpoints.
            CheckpointError: if the run cannot be read for another reason.
        """
        with self._lock:
            version = self.version()  # before the run is read: what changes meanwhile makes another version
            if version != self._version:
                runs = [collect(run, self._only, values=self._values, memory=memory) for run, memory in self._runs]
                self._page = page(runs, version).encode("utf-8", "backslashreplace")
                self._version = version
            return self._page

    def serve_forever(self) -> None:
        """Answer requests until `close` is called in another thread, or until an exception such as Ctrl-C."""
        self._server.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop answering requests, and free the port."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def __enter__(self) -> "ReportServer":
        self._thread = threading.Thread(target=self.serve_forever, name="pytreesaver-report", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _changes(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does, or None if there is none."""
    return filesystem.fingerprint(path)[0][1:] if filesystem.exists(path) else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    report: ReportServer

    def server_bind(self) -> None:
        """Bind the socket, without the search for a host name that `http.server` makes."""
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write nothing: a browser may end a request at any time."""


class _Handler(BaseHTTPRequestHandler):
    """Answers requests for the page and its version."""

    server_version, sys_version = "pytreesaver", ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer a request, unless it names another host."""
        report = cast(_Server, self.server).report
        hosts = [f"{name}:{report.port}" for name in (ADDRESS, "localhost")]
        if report.port == _HTTP_PORT:  # which browsers leave out
            hosts += [ADDRESS, "localhost"]
        if self.headers.get("Host") not in hosts:
            self._answer(HTTPStatus.FORBIDDEN, f"expected a request to {ADDRESS}:{report.port}".encode())
            return
        root = urlsplit(report.url).path
        try:
            if hmac.compare_digest(self.path.encode(), root.encode()):
                self._answer(HTTPStatus.OK, report.current_page(), "text/html")
            elif hmac.compare_digest(self.path.encode(), f"{root}version.json".encode()):
                self._answer(HTTPStatus.OK, json.dumps({"version": report.version()}).encode(), "application/json")
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"no such page: open the address that pytreesaver report printed")
        except ConnectionError:
            raise
        except CheckpointError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, printable(str(error)).encode())
        except Exception as error:
            text = printable(f"{type(error).__name__}: {error}")
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, text.encode())

    def _answer(self, status: HTTPStatus, content: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Write nothing about requests."""
