"""Who may ask: names of this machine, pages of this server. And what a client sees of an error: one sentence."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from classyseg.console import printable, shown
from classyseg.errors import ConfigError

log = logging.getLogger("classyseg.serve")

LOCAL = ("localhost", "127.0.0.1", "[::1]")
EVERYWHERE = ("0.0.0.0", "::", "")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MAX_SHOWN = 100
TOO_SLOW = 408
DRAIN_SECONDS, DRAIN_PAUSE = 5.0, 1.0
"""For so long, and with pauses so long, the rest of a refused body is read and dropped: a client that still sends would
not see the answer."""
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class RefusedError(Exception):
    """A request that gets no prediction: the status, and one sentence for the client."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


Refusal = RefusedError | HTTPException


@dataclass(frozen=True)
class Hosts:
    """The names under which a server may be asked for.

    A page of another site may give its own name the address of this machine (DNS rebinding). A browser then takes the
    two for one, but it still sends that name.
    """

    names: frozenset[str]
    any_address: bool

    @classmethod
    def of(cls, host: str, more: Iterable[str] = ()) -> Hosts:
        """Local names and `more`, and `host`, the address that the server listens at. Raises: `ConfigError`."""
        everywhere = host in EVERYWHERE
        more = [checked_name(name) for name in more]
        own = [socket.gethostname()] if everywhere else [f"[{host}]" if ":" in host else host]
        return cls(frozenset(name.lower() for name in (*LOCAL, *own, *more)), everywhere)

    def accept(self, header: str) -> bool:
        """Whether a `Host` header, `name` or `name:port`, names this server."""
        found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]/?#@\s]+?)\.?(?::\d{1,5})?", header.lower())
        if found is None:
            return False
        return found[1] in self.names or (self.any_address and _is_address(found[1]))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def checked_name(text: str) -> str:
    """A name such as `gpu.example`, or an address. Raises: `ConfigError` for what no `Host` header could ever equal."""
    if re.fullmatch(r"\[[0-9a-fA-F:.]+\]|[^:\[\]/?#@\s*]*[^:\[\]/?#@\s*.]", text) is None:
        raise ConfigError(
            f"--allow-host: found {shown(text)}; accepted are such as gpu.example and [fe80::1], "
            "without http:// and port"
        )
    return text


def checked_origin(text: str) -> str:
    """An origin such as `https://example.org`. Raises: `ConfigError` for something else."""
    if re.fullmatch(r"https?://[^/?#@\s*]+", text) is None:
        raise ConfigError(
            f"--allow-origin: found {shown(text)}; accepted are such as https://example.org, without a path"
        )
    return text.lower()


@dataclass
class _Sent:
    """What is known of a request's answer."""

    status: int = 0
    told: list[str] = field(default_factory=list)


class Guard:
    """The outermost layer: checks hosts and origins, turns every error into a sentence, and logs one line a request."""

    def __init__(self, app: ASGIApp, hosts: Hosts, origins: Collection[str] = ()) -> None:
        self.app, self.hosts, self.origins = app, hosts, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        sent, started, unread = _Sent(), time.perf_counter(), True
        scope["told"] = sent.told
        scope["app"] = self  # then the router raises what it does not know
        allowed = self._allowed_origin(Headers(scope=scope))

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body", False))
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.status = message["status"]
                self._add_headers(MutableHeaders(scope=message), allowed)
            await send(message)

        try:
            refused = await self._refusal(scope, receiving, sending, sent)
            if refused is not None and not sent.status:
                await refuse(refused, receiving, sending, drain=unread and _status(refused) != TOO_SLOW)
        except Exception as error:  # the connection broke: whatever it is, the next request is answered
            sent.told.append(f"no answer could be sent: {type(error).__name__}: {error}")
        finally:
            self._log(scope, sent, time.perf_counter() - started)

    async def _refusal(self, scope: Scope, receive: Receive, send: Send, sent: _Sent) -> Refusal | None:
        """Lets the application answer; returns what is to be answered in its place."""
        try:
            self._check(scope)
            await self.app(scope, receive, send)
        except (RefusedError, HTTPException) as refused:
            sent.told.append(_sentence(refused))
            return refused
        except ClientDisconnect:
            sent.told.append("the client has gone")
        except asyncio.CancelledError:
            sent.told.append("stopped")
            raise
        except Exception as error:
            sent.told.append(f"{type(error).__name__}: {error}")
            return RefusedError(500, "an error of the server; its log has a line about it")
        return None

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.hosts.accept(host):
            raise RefusedError(
                421, f"this server does not go by the name {shown(host, MAX_SHOWN)}; `--allow-host NAME` permits one"
            )
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy in front of this server may go by the other one, and take the rest for a request of its own.
            raise RefusedError(
                400, "the head tells two lengths, Content-Length and Transfer-Encoding; send one of them"
            )
        if scope["method"] in SAFE_METHODS:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        own = origin is None or re.fullmatch(rf"https?://{re.escape(host.lower())}", origin.lower()) is not None
        elsewhere = origin is None and site not in (None, "same-origin", "none")
        if (not own or elsewhere) and self._allowed_origin(headers) is None:
            found = shown(origin, MAX_SHOWN) if origin is not None else "another site"
            raise RefusedError(403, f"a page of {found} may not ask this server; `--allow-origin ORIGIN` permits one")

    def _allowed_origin(self, headers: Headers) -> str | None:
        origin = headers.get("origin", "").lower()
        return origin if origin in self.origins else None

    def _add_headers(self, headers: MutableHeaders, allowed: str | None) -> None:
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        if self.origins:
            headers.add_vary_header("Origin")
        if allowed is not None:
            headers["access-control-allow-origin"] = allowed
            headers["access-control-allow-methods"] = "GET, POST"
            headers["access-control-allow-headers"] = "accept, content-type"

    def _log(self, scope: Scope, sent: _Sent, seconds: float) -> None:
        request = printable(f"{scope['method']} {scope['path']}", MAX_SHOWN)
        status = str(sent.status) if sent.status else "no answer"
        told = f", {printable('; '.join(sent.told), 10 * MAX_SHOWN)}" if sent.told else ""
        log.info("%s: %s%s, %.3f s", request, status, told, seconds)


def _status(refused: Refusal) -> int:
    return refused.status if isinstance(refused, RefusedError) else refused.status_code


def _sentence(refused: Refusal) -> str:
    if isinstance(refused, RefusedError):
        return refused.sentence
    known = {404: "no such page; there are /, /model, /health, and /predict for POST", 405: "not with this method"}
    return known.get(refused.status_code, str(refused.detail))


async def refuse(refused: Refusal, receive: Receive, send: Send, *, drain: bool) -> None:
    """Answers with a status and a sentence, and closes the connection.

    With `drain`, the rest of the body is read and dropped for a while, as a client may read only when it has sent all.
    """
    status = _status(refused)
    headers: Mapping[str, Any] = refused.headers or {}
    content = json.dumps({"error": _sentence(refused)}).encode() + b"\n"
    response = Response(content, status, {**headers, "connection": "close"}, "application/json")
    await send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": content, "more_body": drain})
    if drain:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while (await asyncio.wait_for(receive(), DRAIN_PAUSE)).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
