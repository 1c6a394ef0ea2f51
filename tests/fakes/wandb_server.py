"""A W&B server on the loopback for the unmodified client, which can be told to fail.

Whatever the client asks that this server does not know is answered by an error and kept in `unknown`, so that a change
of the protocol fails one test clearly.
"""

import gzip
import hashlib
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tests.fakes.faults import Faulty
from tests.fakes.graphql import Document, UnknownField
from tests.fakes.wandb_model import WandbModel

Fault = int | float | Literal["drop", "cut", "garble"]
"""An HTTP status · seconds to wait before answering · hang up · half of a body · a body of other bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    path: str
    operation: str
    """Of a GraphQL request."""
    authorization: str
    agent: str

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.operation}"


class WandbServer(Faulty[Fault]):
    def __init__(self, entity: str = "acme") -> None:
        super().__init__()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.model = WandbModel(self.url, entity)
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def count(self, on: str) -> int:
        """Requests whose "METHOD path operation" contains `on`."""
        return sum(on in str(request) for request in self.requests)

    def note(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            return self.fault(str(request))


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # 40 ms a call otherwise
        wbufsize = -1

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self._body()
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            document = None
            if path == "/graphql":
                asked = json.loads(body)
                document = Document(asked["query"], asked.get("variables"))
            request = Request(
                method=self.command,
                path=path,
                operation=document.name if document else "",
                authorization=self.headers.get("Authorization") or "",
                agent=self.headers.get("User-Agent") or "",
            )
            match server.note(request):
                case None:
                    self._send(*self._answer(path, document, body))
                case "drop":
                    self.close_connection = True
                    self.connection.close()
                case "cut" | "garble" as damage:
                    status, content = self._answer(path, document, body)
                    # a truncated body whose length is the truncated one: nothing but a digest can tell
                    half = content[: len(content) // 2]
                    self._send(
                        status, half if damage == "cut" else half + bytes(len(content) - len(half))
                    )
                case float() as seconds:
                    time.sleep(seconds)
                    self.close_connection = True
                    self.connection.close()
                case int() as status:
                    self._send(status, _error(f"injected {status}"))

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _answer(self, path: str, document: Document | None, body: bytes) -> tuple[int, bytes]:
            try:
                with server.model.lock:
                    if document is not None:
                        return 200, json.dumps(
                            {"data": document.answer(server.model.root())}
                        ).encode()
                    return self._rest(path.strip("/").split("/"), body)
            except (UnknownField, KeyError, TypeError, ValueError) as error:
                server.unknown.append(
                    f"{self.command} {path} {document and document.name}: {error!r}"
                )
                return 400, _error(f"Cannot query field {error}")

        def _rest(self, parts: list[str], body: bytes) -> tuple[int, bytes]:
            match self.command, parts:
                case "POST", ["files", entity, project, run, "file_stream"]:
                    server.model.file_stream((entity, project, run), json.loads(body))
                    return 200, json.dumps({"exitcode": None, "limits": {}}).encode()
                case "PUT", ["files", entity, project, run, *names]:
                    server.model.runs[entity, project, run]["_files"]["/".join(names)] = body
                    return 200, b""
                case "GET", ["files", entity, project, run, *names]:
                    return _found(
                        server.model.runs[entity, project, run]["_files"], "/".join(names)
                    )
                case "PUT", ["storage", *_]:
                    server.model.blobs["/".join(parts)] = body
                    return 200, b""
                case "GET", ["storage", *_]:
                    return _found(server.model.blobs, "/".join(parts))
                case "GET", ["artifactsV2", *_, digest, _]:
                    named = {
                        hashlib.md5(blob).hexdigest(): blob for blob in server.model.blobs.values()
                    }
                    return _found(named, digest)
                case "POST", ["sdk", "otel", *_]:  # the client's own telemetry
                    return 404, b""
                case "GET", [""]:
                    return 200, b""
                case method, _:
                    server.unknown.append(f"{method} /{'/'.join(parts)}")
                    return 404, b""

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        do_GET = do_POST = do_PUT = do_HEAD = handle_any

    return Handler


def _found(contents: dict[str, bytes], name: str) -> tuple[int, bytes]:
    return (200, contents[name]) if name in contents else (404, b"")


def _error(message: str) -> bytes:
    return json.dumps({"errors": [{"message": message}]}).encode()
