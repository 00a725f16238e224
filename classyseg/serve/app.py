"""The addresses of the server: the page, `/model`, `/health`, `/predict`."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import hashlib
import logging
import re
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from classyseg.config import listed
from classyseg.datasets.files.images import TooLargeError, UnreadableError
from classyseg.errors import ConfigError
from classyseg.inference import Predictor
from classyseg.serve.answers import Answer, Answers, Wish
from classyseg.serve.guard import TOO_SLOW, Guard, Hosts, RefusedError
from classyseg.serve.limits import Limits
from classyseg.serve.worker import Worker

log = logging.getLogger("classyseg.serve")

PAGE = Path(__file__).with_name("page.html")
RAW = "send the image's bytes as the body: curl --data-binary @photo.jpg"
TYPES = {"application/json": "json", "image/png": "png", "application/*": "json", "image/*": "png", "*/*": "json"}
QUERY = ("answer", "class", "labels", "picture")
SWITCHES = {"": True, "1": True, "true": True, "0": False, "false": False}


def application(
    predictor: Predictor,
    limits: Limits = Limits(),
    *,
    hosts: Hosts | None = None,
    origins: Collection[str] = (),
    worker: Worker | None = None,
) -> ASGIApp:
    """The server as an ASGI application, for `PredictionServer` or any other server.

    `hosts` are the names that it may be asked for, by default those of this machine; `origins` the pages of other sites
    that may ask, such as `https://example.org`. Raises: `ConfigError` for a model that takes videos.
    """
    predictions = Predictions(Answers(predictor, limits), worker or Worker())
    page = Page(PAGE.read_text(encoding="utf-8"))
    routes = [
        Route("/", page.answer, methods=["GET"]),
        Route("/model", predictions.model, methods=["GET"]),
        Route("/health", predictions.health, methods=["GET"]),
        Route("/predict", predictions, methods=["POST", "OPTIONS"]),
    ]
    return Guard(Router(routes, redirect_slashes=False), hosts or Hosts.of("127.0.0.1"), origins)


class Page:
    """The page, with a policy that lets it load and run nothing but itself."""

    def __init__(self, text: str) -> None:
        self.content = text.encode()
        self.policy = (
            f"default-src 'none'; script-src {_own(text, 'script')}; style-src {_own(text, 'style')}; "
            "img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    async def answer(self, request: Request) -> Response:
        headers = {"content-security-policy": self.policy}
        return Response(self.content, media_type="text/html", headers=headers)


def _own(text: str, tag: str) -> str:
    """The sources of a policy that permit what the page itself has within `tag`."""
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode("ascii") for part in parts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


class Predictions:
    """`/predict`, and what is told about the model. A slot is taken before a body is read, so that few are held."""

    def __init__(self, answers: Answers, worker: Worker) -> None:
        self.answers, self.limits, self.worker = answers, answers.limits, worker
        self.taken = 0
        self._model = answers.model()

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._model)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "requests": self.taken, "most": 1 + self.limits.waiting})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method == "OPTIONS":
            await Response(status_code=204, headers={"allow": "POST"})(scope, receive, send)
            return
        wish = _wish(request, self.answers)
        self._check_head(request)
        if self.taken > self.limits.waiting:
            raise RefusedError(503, f"{self.taken} images are being predicted; try again in a second", retry_after="1")
        self.taken += 1
        future: concurrent.futures.Future[Answer] | None = None
        try:
            content = await self._body(request)
            future = self.worker.submit(partial(self.answers.answer, content, wish))
            del content
            found = await self._found(future, receive)
            if found is None:
                scope["told"].append("the client has gone")
                return
            scope["told"].append(found.told)
            await _send_whole(Response(found.content, media_type=found.kind), send)
        finally:
            self._free(future)

    def _free(self, future: concurrent.futures.Future[Answer] | None) -> None:
        """Gives the slot back: at once, or when work that nobody waits for any more has ended."""
        if future is None or future.cancel() or future.done():
            self.taken -= 1
            return
        loop = asyncio.get_running_loop()

        def freed(_: object) -> None:
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._less)

        future.add_done_callback(freed)

    def _less(self) -> None:
        self.taken -= 1

    def _check_head(self, request: Request) -> None:
        kind, length = request.headers.get("content-type", ""), request.headers.get("content-length")
        if kind.lower().startswith("multipart/"):
            raise RefusedError(415, f"found a form ({kind.partition(';')[0][:40]}); {RAW}")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RefusedError(415, "found a body with Content-Encoding; send the image as its file is")
        if length is not None and (len(length) > 18 or int(length) > self.limits.max_bytes):
            raise RefusedError(413, f"the body has {length:.20} bytes; accepted are up to {self.limits.max_bytes:,}")

    async def _body(self, request: Request) -> bytes:
        """Raises: `RefusedError` for one that is empty, too large or too slow."""
        most, parts, size = self.limits.max_bytes, list[bytes](), 0
        try:
            async with asyncio.timeout(self.limits.receive_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise RefusedError(413, f"the body has more than {most:,} bytes, the most that is accepted")
                    parts.append(part)
        except TimeoutError:
            raise RefusedError(
                TOO_SLOW, f"the image did not come within {self.limits.receive_seconds:g} s ({size} bytes did)"
            ) from None
        if not size:
            raise RefusedError(400, f"an empty body; {RAW}")
        return b"".join(parts)

    async def _found(self, future: concurrent.futures.Future[Answer], receive: Receive) -> Answer | None:
        """The answer; None if the client has gone. Raises: `RefusedError`."""
        waiting, gone = asyncio.wrap_future(future), asyncio.ensure_future(_disconnected(receive))
        both: set[asyncio.Future[Any]] = {waiting, gone}
        try:
            await asyncio.wait(both, timeout=self.limits.predict_seconds, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if gone.done():
                return None
        except Exception as error:
            raise _refusal_of(error) from None
        finally:
            gone.cancel()
            waiting.cancel()
        raise RefusedError(504, f"no prediction within {self.limits.predict_seconds:g} s; a smaller image takes less")


async def _send_whole(response: Response, send: Send) -> None:
    """Sends a response, and waits until the client has taken it: till then its slot is not free."""
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})  # waits while much is not yet taken


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal_of(error: Exception) -> RefusedError:
    if isinstance(error, TooLargeError):
        return RefusedError(413, str(error))
    if isinstance(error, UnreadableError):
        return RefusedError(415, str(error))
    if isinstance(error, ConfigError):  # also of the data and of a memory budget
        return RefusedError(422, str(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return RefusedError(
            413, "the image takes more memory than there is; send a smaller one, or start with --max-memory"
        )
    log.warning("the model failed: %s: %s", type(error).__name__, error)
    return RefusedError(500, "the model failed on this image; the server's log has a line about it")


def _wish(request: Request, answers: Answers) -> Wish:
    """What the query asks for, else what `Accept` does. Raises: `RefusedError`."""
    query = request.query_params
    unknown = [name for name in query if name not in QUERY]
    if unknown:
        raise RefusedError(400, f"the query has {unknown[0][:40]!r}; accepted are {listed(QUERY)}")
    form = query.get("answer") or _accepted(request.headers.get("accept", "*/*"))
    if form not in ("json", "png"):
        raise RefusedError(400, f"answer={form[:40]!r}; accepted are json and png")
    if form == "png" and not answers.gives_maps:
        raise RefusedError(406, "this model gives classes of whole images, and no label map; ask for JSON")
    for name in ("labels", "picture"):
        if query.get(name, "0").lower() not in SWITCHES:
            raise RefusedError(400, f"{name}={query[name][:40]!r}; accepted are 1 and 0")
    labels, picture = (SWITCHES[query.get(name, "0").lower()] for name in ("labels", "picture"))
    if labels and not answers.gives_maps:
        raise RefusedError(406, "this model gives classes of whole images, and no label map; leave labels out")
    return Wish("png" if form == "png" else "json", labels, picture, _class(query.get("class"), form, answers))


def _class(name: str | None, form: str, answers: Answers) -> int:
    """The number of the class whose map is asked for. Raises: `RefusedError`."""
    classes = answers.predictor.classes
    if name is None:
        if form == "png" and answers.gives_flags and len(classes) > 1:
            raise RefusedError(
                406, f"pixels have several classes here, and a PNG holds one: add class={quote(classes[0])}"
            )
        return 0
    if form != "png" or not answers.gives_flags:
        raise RefusedError(400, "class means nothing here; it is of a PNG of a model that gives several classes")
    if name not in classes:
        raise RefusedError(400, f"class={name[:40]!r}; accepted are {listed(classes)}")
    return classes.index(name)


def _accepted(header: str) -> str:
    """`json` or `png`, which of them an `Accept` header likes best. Raises: `RefusedError` if neither."""
    best, found = 0.0, ""
    for part in header.split(","):
        kind, *more = (word.strip().lower() for word in part.split(";"))
        quality = next((word[2:] for word in more if word.startswith("q=")), "1")
        weight = float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 0.0
        if kind in TYPES and weight > best:
            best, found = weight, TYPES[kind]
    if not found:
        raise RefusedError(406, "Accept names neither application/json nor image/png, which are the answers there are")
    return found
