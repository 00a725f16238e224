"""`classyseg serve`: a trained model as a web page and an HTTP address."""

from __future__ import annotations

import argparse
import os
import sys

from classyseg.cli.arguments import A_MODEL, add_model_arguments, positive, predictor_of
from classyseg.cli.output import emit, logging_lines
from classyseg.console import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help=A_MODEL)
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="the address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8000, metavar="P", help="its port; 0: a free one (8000)")
    add_model_arguments(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-bytes", default="64M", metavar="SIZE", help="of an image's file (64M)")
    limits.add_argument("--max-pixels", type=positive, default=50 * 10**6, metavar="N", help="of an image (50000000)")
    limits.add_argument("--receive-seconds", type=positive, default=30, metavar="S", help="for a file to come (30)")
    limits.add_argument("--predict-seconds", type=positive, default=300, metavar="S", help="to its answer (300)")
    limits.add_argument("--waiting", type=positive, default=8, metavar="N", help="images that wait at once (8)")
    limits.add_argument("--connections", type=positive, default=64, metavar="N", help="that are open at once (64)")
    access = parser.add_argument_group("access")
    access.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name that the server goes by"
    )
    access.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="a site whose pages may ask the server"
    )
    parser.set_defaults(run=run)


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"found {text:.40}; 0 to 65535 are accepted")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    from classyseg.errors import moving
    from classyseg.inference.memory import bytes_of
    from classyseg.serve import Limits, PredictionServer, check_installed

    check_installed()
    with moving("max_memory", "--max-bytes"):
        max_bytes = bytes_of(arguments.max_bytes)
    limits = Limits(
        max_bytes=max_bytes,
        max_pixels=arguments.max_pixels,
        receive_seconds=arguments.receive_seconds,
        predict_seconds=arguments.predict_seconds,
        waiting=arguments.waiting,
        connections=arguments.connections,
    )
    with logging_lines():
        server = PredictionServer(
            predictor_of(arguments),
            host=arguments.host,
            port=arguments.port,
            limits=limits,
            names=arguments.allow_host,
            origins=arguments.allow_origin,
        )
        emit(f"{server.url} serves {printable(arguments.model)}; Ctrl-C ends it")
        has_ended = server.run()
        emit("stopped")
    if not has_ended:  # its thread would be torn apart while the interpreter ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0
