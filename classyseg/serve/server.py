"""The server itself: a socket, uvicorn, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Collection, Iterator
from types import FrameType

import uvicorn

from classyseg.errors import ConfigError
from classyseg.inference import Predictor
from classyseg.serve.app import application
from classyseg.serve.guard import Hosts, checked_origin
from classyseg.serve.limits import Limits
from classyseg.serve.protocol import protocol_of
from classyseg.serve.worker import Worker

GRACE = 5
"""Seconds that requests have to end when the server is told to."""
MAX_HEAD = 16 * 1024
"""The most bytes of a request's line and headers."""
BACKLOG = 64


class PredictionServer:
    """A model that answers at `url` once it runs.

    The socket is open from here on, so that `url` has the port that the system chose for `port` 0. `run` serves until
    `stop`, Ctrl-C or SIGTERM. `names` are more names that it may be asked for, `origins` pages of other sites that may.

    Raises: `ConfigError` for an address that cannot be had, and for a model that takes videos.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        limits: Limits = Limits(),
        names: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        self.worker = Worker()
        allowed = [checked_origin(origin) for origin in origins]
        app = application(predictor, limits, hosts=Hosts.of(host, names), origins=allowed, worker=self.worker)
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=protocol_of(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
            h11_max_incomplete_event_size=MAX_HEAD,
        )
        self._server = _Server(config)
        self._socket = _listening(host, port)
        found = self._socket.getsockname()
        self.url = f"http://{f'[{found[0]}]' if ':' in found[0] else found[0]}:{found[1]}"

    def run(self) -> bool:
        """Serves until it is told to end. Returns False if a prediction still runs, which nobody can stop."""
        try:
            asyncio.run(self._server.serve([self._socket]))
        finally:
            self._socket.close()
        return self.worker.close(GRACE)

    def stop(self) -> None:
        """Ends `run`, from any thread."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """Ends at Ctrl-C or SIGTERM, and lets the caller go on: that is how a server is meant to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises: `ConfigError`."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host: found {host!r}, which is no address of this machine ({error})") from None
    found = socket.socket(family, kind, proto)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        told = {
            errno.EADDRINUSE: f"--port: {port} is in use by another program; choose another, or 0 for a free one",
            errno.EACCES: f"--port: {port} is for the system's own programs; choose one from 1024 on, or 0",
            errno.EADDRNOTAVAIL: f"--host: {host} is no address of this machine; 127.0.0.1 is the usual one",
        }
        raise ConfigError(told.get(error.errno or 0, f"--host {host} --port {port}: {error.strerror}")) from None
    found.setblocking(False)
    return found
