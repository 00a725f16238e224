"""A server of predictions in a thread, and clients that say what no good client says."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image

import runs
from classyseg.inference import Predictor
from classyseg.models import build_model
from classyseg.serve import Limits, PredictionServer

CLASSES = ("sky", "road", "<b>car</b>", "tree & 'co'")
PALETTE = ((10, 20, 30), (220, 60, 60), (60, 180, 75), (0, 110, 220))


def png(array: Any, **options: Any) -> bytes:
    content = BytesIO()
    Image.fromarray(array).save(content, "PNG", **options)
    return content.getvalue()


def small_predictor(**options: Any) -> Predictor:
    """A model of four classes that gives all of them for noise; it can be saved."""
    config = runs.tiny_config()["model"]
    torch.manual_seed(0)
    model = build_model(config, len(CLASSES))
    with torch.no_grad():
        classifier = [module for module in model.heads[model.main_head].modules() if hasattr(module, "weight")][-1]
        classifier.weight.mul_(50)  # type: ignore[operator]
    return Predictor(model, classes=CLASSES, palette=PALETTE, model_config=config, device="cpu", **options)


def whole_image_predictor(**options: Any) -> Predictor:
    config = runs.tiny_config()["model"] | {"heads": {"main": {"name": "fully_connected", "blocks": ["stage4"]}}}
    torch.manual_seed(0)
    return Predictor(build_model(config, 4), classes=CLASSES, model_config=config, device="cpu", **options)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        found: str = self.json["error"]
        return found


class Served:
    """A running server, `url`, and ways to ask it."""

    def __init__(self, server: PredictionServer) -> None:
        self.server, self.url = server, server.url
        self.port = int(self.url.rpartition(":")[2])

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}, **options: Any) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers), **options)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def predict(self, body: Any, query: str = "", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", f"/predict{query and '?' + query}", body, named)

    @contextmanager
    def connected(self, data: bytes = b"") -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as found:
            found.sendall(data)
            yield found

    def said_to(self, data: bytes) -> bytes:
        """All that the server says to these bytes, until it closes the connection."""
        with self.connected() as connection:
            with suppress(ConnectionError):  # it may have heard enough
                connection.sendall(data)
            return all_of(connection)


def all_of(connection: socket.socket) -> bytes:
    found = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return found
        if not part:
            return found
        found += part


@contextmanager
def serving(predictor: Predictor, limits: Limits = Limits(), **options: Any) -> Iterator[Served]:
    server = PredictionServer(predictor, port=0, limits=limits, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Served(server)
    finally:
        server.stop()
        thread.join()
