"""The server of a page: it answers this machine alone, or where it is told otherwise whoever has its token."""

from __future__ import annotations

import json
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..bounds import UPLOAD
from ..errors import InvalidParameter, PellucidError
from ..kinds import require_settings
from .page import View

LOOPBACK = "127.0.0.1"
_NEXT_PORTS = 20  # that are tried where one is taken
_OFTEN = 0.1  # seconds between what a waiting page is told
_COOKIE = "pellucid"
_OVERHEAD = 1 << 16  # bytes of a question beside a photo
# Nothing is loaded from anywhere, and nothing is sent but to the server itself.
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MOMENT = 3.0  # seconds
_GONE = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, TimeoutError)


class Server(ThreadingHTTPServer):
    """Shows a view at ``url``; ``serve_forever`` answers, each question in a thread of its own.

    On another host than this machine's own (127.0.0.1, ::1, localhost) every request needs a token, which the
    address has. A port that is taken is followed by the next ones.

    Raises:
        InvalidParameter: the host is not this machine's, or no port is free.
    """

    daemon_threads = True

    def __init__(self, view: View, host: str = LOOPBACK, port: int = 7860) -> None:
        self.view, self.host = view, host
        self.local = host in (LOOPBACK, "localhost", "::1")
        self.token = "" if self.local else secrets.token_urlsafe(24)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._bind(host, port)

    def _bind(self, host: str, port: int) -> None:
        error: OSError | OverflowError | None = None
        for number in range(port, port + _NEXT_PORTS) if port else [0]:
            try:
                super().__init__((host, number), _Handler)
                return
            except (OSError, OverflowError) as found:
                error = found
        raise InvalidParameter(f"--host {host} --port {port}: {error}; give others") from error

    @property
    def url(self) -> str:
        """Where the page is, with the token."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.server_address[1]}/{f'?token={self.token}' if self.token else ''}"

    def server_close(self) -> None:
        """Answer no more; an answer on its way has a moment to end, since a thread cut off in it may abort all."""
        super().server_close()
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:
                thread.join(_MOMENT)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of tabs that were closed."""
        if not isinstance(sys.exception(), _GONE):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 60
    server_version, sys_version = "pellucid", ""

    def log_message(self, *_: Any) -> None:
        """Keep the terminal for what matters."""

    def do_GET(self) -> None:
        """Give the page."""
        asked = urlsplit(self.path)
        given = parse_qs(asked.query).get("token", [""])[0]
        if self.server.token and secrets.compare_digest(given.encode(), self.server.token.encode()):
            self.send_response(HTTPStatus.SEE_OTHER)
            # The token moves from the address, which histories and logs keep, into a cookie.
            self.send_header("Set-Cookie", f"{_COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/")
            self.send_header("Location", "/")
            self.end_headers()
        elif not self._may():
            self._send(HTTPStatus.FORBIDDEN, b"Open the address that pellucid view has printed.", "text/plain")
        elif asked.path != "/":
            self._send(HTTPStatus.NOT_FOUND, b"There is one page: /", "text/plain")
        else:
            self._send(HTTPStatus.OK, self.server.view.html().encode(errors="replace"), "text/html")

    def do_POST(self) -> None:
        """Answer one question."""
        what, length = self.path.removeprefix("/ask/"), self.headers.get("Content-Length", "")
        if not self._may():
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that pellucid view has printed")
        elif what not in self.server.view.answers or not length.isdecimal():
            self._refuse(HTTPStatus.NOT_FOUND, f"nothing here is called {what[:99]!r}")
        # A photo comes in base64, four letters for three bytes. Of
        # more digits than 18 the first ones are too many already.
        elif int(length[:18]) > UPLOAD.value * 4 // 3 + _OVERHEAD:
            most = f"more than {UPLOAD.value:,} bytes; {UPLOAD.variable} allows more"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, most)
        else:
            self._answer(what, self.rfile.read(int(length)))

    def _may(self) -> bool:
        """Whether who asks has the token; on this machine, whether a page of this server asks and no other."""
        origin, host = self.headers.get("Origin"), self.headers.get("Host", "")
        # A page of another site may send a question here without
        # being allowed to read the answer; it is not answered.
        if origin is not None and urlsplit(origin).netloc != host:
            return False
        if self.server.local:
            # A name that another page has made to stand for this machine is none of these.
            return urlsplit(f"//{host}").hostname in (LOOPBACK, "localhost", "::1")
        try:
            given = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            return False
        return given is not None and secrets.compare_digest(given.value.encode(), self.server.token.encode())

    def _answer(self, what: str, content: bytes) -> None:
        """Lines of JSON: what is being done, as often as it changes, and the answer or what was wrong."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        last = 0.0

        def tick(doing: str) -> None:
            nonlocal last
            if monotonic() - last > _OFTEN:
                last = monotonic()
                self._line({"doing": doing})  # a tab that was closed ends the work here

        try:
            answer, asked = self.server.view.answers[what], _asked(content)
            require_settings(answer, asked, what)
            self._line({"answer": answer(tick, **asked)})
        except _GONE:
            raise
        except (PellucidError, IndexError, TypeError, ValueError) as error:
            self._line({"error": " ".join(str(error).split())})
        except Exception as error:
            traceback.print_exc()
            self._line({"error": f"{type(error).__name__}: {error}; the terminal says where"})

    def _line(self, told: Mapping[str, Any]) -> None:
        self.wfile.write(json.dumps(told).encode() + b"\n")

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, json.dumps({"error": why}).encode() + b"\n", "application/x-ndjson")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)


def _asked(content: bytes) -> dict[str, Any]:
    """What a page asks, by name; lists as tuples."""
    asked = json.loads(content)
    if not isinstance(asked, dict) or "tick" in asked:
        raise ValueError("ask by name")
    return {name: _tuples(value) for name, value in asked.items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
