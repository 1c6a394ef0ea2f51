"""A proxy before a real S3-protocol server that misbehaves on request.

A fault is one of these; without one the request is passed on:

"503", "500", "403"   answer so, without asking the server
"drop"                close the connection without an answer
"stall"               wait for longer than any client should
"cut"                 promise the whole body and send half of it
"lose the reply"      ask the server, and close the connection instead of answering
"ignore create-only"  pass the request on without its If-None-Match
"""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.fakes.faults import Faulty

STALL_S = 30.0


class FaultProxy(Faulty[str]):
    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.upstream = urlsplit(upstream)
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and fault of every request."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._lock = threading.Lock()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def decide(self, method: str, path: str) -> str | None:
        with self._lock:
            fault = self.fault(f"{method} {path}")
            self.requests.append((method, path, fault))
        return fault

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self._body()
            match proxy.decide(self.command, self.path):
                case "503" | "500" | "403" as status:
                    code = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}[
                        status
                    ]
                    content = f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
                    self._answer(
                        int(status), [], b"" if self.command == "HEAD" else content.encode()
                    )
                case "drop":
                    self.close_connection = True
                    self.connection.close()
                case "stall":
                    time.sleep(STALL_S)
                    self.close_connection = True
                case "cut":
                    status, headers, content = self._ask(body)
                    self._answer(status, headers, content, send=len(content) // 2)
                    self.close_connection = True
                    self.wfile.flush()
                    self.connection.close()
                case "lose the reply":
                    self._ask(body)
                    self.close_connection = True
                    self.connection.close()
                case "ignore create-only":
                    self._answer(*self._ask(body, without="if-none-match"))
                case None:
                    self._answer(*self._ask(body))
                case other:
                    raise AssertionError(f"no fault {other!r}")

        def _body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
                self.wfile.flush()
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _ask(
            self, body: bytes, *, without: str = ""
        ) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(
                proxy.upstream.hostname or "", proxy.upstream.port, timeout=60
            )
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("expect", without)
            }
            connection.request(self.command, self.path, body=body, headers=headers)
            response = connection.getresponse()
            content = response.read()
            headers_back = [
                (name, value)
                for name, value in response.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "date", "server")
            ]
            connection.close()
            return response.status, headers_back, content

        def _answer(
            self,
            status: int,
            headers: list[tuple[str, str]],
            content: bytes,
            send: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if "content-length" not in {name.lower() for name, _ in headers}:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[:send])
            self.wfile.flush()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    return Handler
