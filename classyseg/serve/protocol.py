"""Connections of clients that are slow, silent or too many, which uvicorn alone would keep for ever."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from classyseg.serve.limits import Limits

log = logging.getLogger("classyseg.serve")

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s"
)
TOO_MANY = b'{"error": "too many connections; try again in a second"}\n'


def protocol_of(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's protocol with `limits`."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with a time for the head of a request, for what follows an answer, and for reading an answer."""

    limits = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._silent: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            log.info("refused a connection: %d are open", len(self.connections) - 1)
            transport.write(FULL % (len(TOO_MANY), TOO_MANY))
            transport.close()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except h11.ProtocolError as error:  # nonsense after an answer has begun
            log.info("closed a connection: %s", error)
            self.transport.abort()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._silent, self._unread):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.receive_seconds, self._close, "it does not read its answer")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        """Starts the clock where a client has to send: a head, or the rest of a body that nobody waits for."""
        theirs, ours = self.conn.their_state, self.conn.our_state
        waiting = theirs is h11.IDLE or (theirs is h11.SEND_BODY and ours is h11.DONE)
        if not waiting and self._silent is not None:
            self._silent.cancel()
            self._silent = None
        elif waiting and self._silent is None:
            self._silent = self.loop.call_later(self.limits.receive_seconds, self._close, "it sends no whole request")

    def _close(self, why: str) -> None:
        log.info("closed a connection after %g s: %s", self.limits.receive_seconds, why)
        self.transport.abort()
