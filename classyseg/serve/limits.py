"""What a server accepts, so that no client takes more than its share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that one request may take, and how many there may be.

    Args:
        max_bytes: Of a body.
        max_pixels: Of an image. Its header tells, before memory is taken for them.
        receive_seconds: For the head of a request, for its body, and for a client that does not read its answer.
        predict_seconds: From a whole body to the answer, the time in the queue included.
        waiting: How many requests may be received or wait while one is predicted.
        connections: How many may be open.
    """

    max_bytes: int = 64 * 10**6
    max_pixels: int = 50 * 10**6
    receive_seconds: float = 30.0
    predict_seconds: float = 300.0
    waiting: int = 8
    connections: int = 64
