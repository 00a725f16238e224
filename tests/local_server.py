"""A server on 127.0.0.1 for the tests of downloads, which does wrong what they ask it to."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

CONTENT = bytes(range(256)) * 1024


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at every path; what it does wrong is set by the tests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.version: dict[str, str] = {"ETag": '"1"'}
        self.ranges = True
        self.honours_if_range = True
        self.cut: int | None = None
        self.most_of_the_rest: int | None = None
        self.chunked = False
        self.kind = "application/octet-stream"
        self.part_unasked = False
        self.encodings: list[str | None] = []
        self.requests: list[tuple[str, str | None]] = []

    def url(self, path: str = "w.pth") -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    @property
    def asked(self) -> list[str | None]:
        """The ranges that were asked for."""
        return [wanted for _, wanted in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        server.encodings.append(self.headers.get("Accept-Encoding"))
        if self.path.startswith("/moved"):
            self.answer(302, b"", {"Location": server.url("found.pth")})
        elif self.path.startswith("/missing"):
            self.answer(404, b"<html>no such file</html>", {})
        elif wanted and server.ranges and self.is_current():
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            size = len(server.content)
            rest = server.content[start:][: server.most_of_the_rest]
            if start >= size:
                self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            else:
                self.answer(206, rest, {"Content-Range": f"bytes {start}-{start + len(rest) - 1}/{size}"})
        elif server.part_unasked:
            self.answer(206, server.content[:500], {"Content-Range": f"bytes 0-499/{len(server.content)}"})
        else:
            self.answer(200, server.content, {})

    def is_current(self) -> bool:
        asked = self.headers.get("If-Range")
        return asked is None or not self.server.honours_if_range or asked in self.server.version.values()

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, **self.server.version, "Content-Type": self.server.kind}.items():
            self.send_header(name, value)
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        sent = content[: self.server.cut]
        if self.server.chunked:
            sent = f"{len(content):x}\r\n".encode() + sent + (b"\r\n0\r\n\r\n" if self.server.cut is None else b"")
        self.wfile.write(sent)

    def log_message(self, format: str, *args: Any) -> None: ...


S = TypeVar("S", bound=http.server.ThreadingHTTPServer)


@contextmanager
def running(server: S) -> Iterator[S]:
    """`server` at work in a thread, until the end of the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving() -> Iterator[Server]:
    """A server at work; its user takes care that no proxy is asked."""
    with running(Server()) as found:
        yield found
