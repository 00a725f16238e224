"""Clients that ask too much, too slowly, from elsewhere, or not at all; and the end of the server."""

from __future__ import annotations

import http.client
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from memory import memory_within
from predicted import noise

from classyseg.cli.main import main
from classyseg.errors import ConfigError
from classyseg.inference import Predictor
from classyseg.serve import Limits, PredictionServer
from served import Served, all_of, png, serving

ROOT = Path(__file__).parents[2]
GOOD = png(noise(20, 30))
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


class Gate:
    """Holds every prediction until it is opened, and counts them."""

    def __init__(self, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.begun, self.count = threading.Event(), threading.Event(), 0
        right = predictor.predict

        def held(image: Any) -> Any:
            self.count += 1
            self.begun.set()
            assert self.open.wait(30)
            return right(image)

        monkeypatch.setattr(predictor, "predict", held)


@pytest.fixture
def gate(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(predictor, monkeypatch)
    yield found
    found.open.set()


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def asking(server: Served, count: int) -> Iterator[list[Any]]:
    """So many clients that ask at once; their answers are there at the end."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(server.predict(GOOD))) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield found
    for thread in threads:
        thread.join()


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(predictor: Predictor) -> None:
    with serving(predictor, Limits(max_bytes=1000, receive_seconds=20)) as server:
        started = time.monotonic()
        with server.connected(HEAD + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n") as connection:
            answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"accepted are up to 1,000" in answer
        assert time.monotonic() - started < 10
        huge = server.predict(b"1", content_length="9" * 18)
        assert huge.status == 413
        assert server.predict(GOOD[:1000]).status == 415


def test_a_body_in_chunks_that_grows_too_large_takes_no_memory(predictor: Predictor) -> None:
    with serving(predictor, Limits(max_bytes=10**6)) as server, memory_within(30 * 2**10):
        pieces = (bytes(10**6) for _ in range(200))
        answer = server.ask("POST", "/predict", pieces, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        assert answer.status == 413
        assert "more than 1,000,000 bytes" in answer.error
        assert server.predict(GOOD).status == 200


@pytest.mark.parametrize(
    ("headers", "status", "word"),
    [
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "--data-binary"),
        ({"Content-Encoding": "gzip"}, 415, "Content-Encoding"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200, ""),
        ({"Content-Type": "text/plain"}, 200, ""),
    ],
)
def test_the_body_is_the_image_itself(served: Served, headers: dict[str, str], status: int, word: str) -> None:
    answer = served.ask("POST", "/predict", GOOD, headers)
    assert answer.status == status
    assert not word or word in answer.error


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 400), (b"/etc/passwd", 415), (b"http://127.0.0.1/a.png", 415), (b"GIF89a", 415), (GOOD[:-30], 415)],
)
def test_what_is_no_image_is_refused_and_no_path_or_address_is_opened(
    served: Served, content: bytes, status: int
) -> None:
    answer = served.predict(content)
    assert answer.status == status
    assert "Traceback" not in answer.error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/predict", 405),
        ("DELETE", "/", 405),
        ("POST", "/", 405),
        ("BREW", "/model", 405),
        ("GET", "/page.html", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/config.yaml", 404),
        ("GET", "/model/", 404),
        ("HEAD", "/", 200),
        ("OPTIONS", "/predict", 204),
    ],
)
def test_other_methods_and_pages_have_their_status(served: Served, method: str, path: str, status: int) -> None:
    assert served.ask(method, path, GOOD if method in ("PUT", "POST") else None).status == status


# -- time and number ---------------------------------------------------------------------------------------------------


def test_slow_and_silent_clients_are_let_go_and_others_answered(predictor: Predictor) -> None:
    with serving(predictor, Limits(receive_seconds=0.4, waiting=2)) as server:
        starts = [b"", b"POST /pre", HEAD + b"Content-Length: 500\r\n\r\nabc"]
        starts.append(b"PUT / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in starts:
            answer = server.said_to(start)
            assert answer == b"" if b"\r\n\r\n" not in start else b"HTTP/1.1 40" in answer, start
            assert server.predict(GOOD).status == 200
        slow = server.said_to(HEAD + b"Content-Length: 500\r\n\r\nabc")
        assert slow.startswith(b"HTTP/1.1 408 ")
        assert b"within 0.4 s (3 bytes did)" in slow


def test_a_client_that_sends_for_ever_after_its_answer_is_let_go(predictor: Predictor) -> None:
    with serving(predictor, Limits(receive_seconds=0.5)) as server:
        start = b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        with server.connected(start) as connection:

            def send_for_ever() -> None:
                for _ in range(2000):
                    connection.sendall(b"3\r\nabc\r\n")
                    time.sleep(0.005)

            with pytest.raises(OSError):
                send_for_ever()


def test_a_slow_client_that_reads_only_when_it_has_sent_all_sees_why_it_was_refused(predictor: Predictor) -> None:
    piece = b"3e8\r\n%s\r\n" % bytes(1000)
    with serving(predictor, Limits(max_bytes=1500)) as server, server.connected() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(6):
            connection.sendall(piece)
            time.sleep(0.3)
        connection.sendall(b"0\r\n\r\n")
        assert all_of(connection).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_does_not_read_its_answer_is_let_go(predictor: Predictor) -> None:
    big = png(noise(1500, 2000))  # its answer has 12 MB, more than the system takes for a client
    with serving(predictor, Limits(receive_seconds=0.5, waiting=1)) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", server.port))
            request = HEAD.replace(b"/predict", b"/predict?picture=1&labels=1")
            connection.sendall(request + b"Content-Length: %d\r\n\r\n%s" % (len(big), big))
            until(lambda: server.ask("GET", "/health").json["requests"] == 1)
            until(lambda: server.ask("GET", "/health").json["requests"] == 0)
        assert len(server.predict(big, "picture=1&labels=1").json["picture"]) > 10**7  # who reads gets all of it


def test_health_is_told_while_the_model_works_and_more_than_may_wait_are_sent_away(
    predictor: Predictor, gate: Gate
) -> None:
    with serving(predictor, Limits(waiting=2)) as server:
        with asking(server, 3) as answers:
            until(lambda: server.ask("GET", "/health").json["requests"] == 3)
            assert server.ask("GET", "/health").json == {"status": "ok", "requests": 3, "most": 3}
            refused = server.predict(GOOD)
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert gate.count == 1
            gate.open.set()
        assert [answer.status for answer in answers] == [200] * 3
        assert len({answer.content.partition(b'"seconds"')[0] for answer in answers}) == 1
        assert server.predict(GOOD).status == 200


def test_an_image_whose_client_has_gone_is_not_predicted(predictor: Predictor, gate: Gate) -> None:
    with serving(predictor, Limits(waiting=4)) as server:
        with asking(server, 1):
            assert gate.begun.wait(20)
            with server.connected(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)):
                until(lambda: server.ask("GET", "/health").json["requests"] == 2)
            with server.connected(HEAD + b"Content-Length: 5000\r\n\r\nabc"):
                until(lambda: server.ask("GET", "/health").json["requests"] == 2)
            until(lambda: server.ask("GET", "/health").json["requests"] == 1)
            gate.open.set()
        assert gate.count == 1


def test_images_of_clients_that_have_gone_take_no_memory(predictor: Predictor, gate: Gate) -> None:
    body = bytes(5 * 10**6)
    with serving(predictor, Limits(waiting=1)) as server, asking(server, 1):
        assert gate.begun.wait(20)
        with memory_within(50 * 2**10):
            for _ in range(20):
                with server.connected(HEAD + b"Content-Length: %d\r\n\r\n" % len(body)) as connection:
                    connection.sendall(body)
                    until(lambda: server.ask("GET", "/health").json["requests"] == 2)
                until(lambda: server.ask("GET", "/health").json["requests"] == 1)
        gate.open.set()


def test_a_prediction_that_takes_too_long_is_given_up_but_keeps_its_place(predictor: Predictor, gate: Gate) -> None:
    with serving(predictor, Limits(predict_seconds=0.3, waiting=1)) as server:
        late = server.predict(GOOD)
        assert late.status == 504
        assert "within 0.3 s" in late.error
        assert server.ask("GET", "/health").json["requests"] == 1  # nobody can stop it
        gate.open.set()
        until(lambda: server.ask("GET", "/health").json["requests"] == 0)
        assert server.predict(GOOD).status == 200


def test_more_connections_than_may_be_open_are_sent_away(predictor: Predictor) -> None:
    with serving(predictor, Limits(connections=3)) as server:
        open_ = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        until(lambda: server.said_to(b"GET / HTTP/1.1\r\n").startswith(b"HTTP/1.1 503 "))
        for connection in open_:
            connection.close()
        until(
            lambda: b" 200 " in server.said_to(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        )


# -- who asks ----------------------------------------------------------------------------------------------------------


def status_for(server: Served, host: str, **headers: str) -> int:
    return server.predict(GOOD, host=host, **headers).status


def test_only_local_names_are_answered_against_dns_rebinding(served: Served) -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "localhost."):
        assert status_for(served, host) == 200, host
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io:80",
        "192.168.0.1",
        "a@localhost",
        "",
        "[",
        "l:x",
    ):
        assert status_for(served, host) == 421, host
        assert served.ask("GET", "/", headers={"Host": host}).status == 421
    assert served.said_to(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421 ")
    assert served.said_to(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_other_names_are_answered_where_the_options_say_so(predictor: Predictor) -> None:
    with serving(predictor, host="0.0.0.0", names=["gpu.example"]) as server:
        for host in ("192.168.0.1:80", "[fe80::1]", "gpu.example", socket.gethostname()):
            assert status_for(server, host) == 200, host
        assert status_for(server, "evil.example") == 421


@pytest.mark.parametrize(
    "options",
    [
        *({"names": [name]} for name in ("gpu.example:8000", "http://gpu.example", "*", "gpu.example/", "", "fe80::1")),
        *({"origins": [origin]} for origin in ("https://app.example/", "app.example", "*", "null")),
    ],
)
def test_a_name_or_an_origin_that_no_request_could_have_is_refused(
    predictor: Predictor, options: dict[str, list[str]]
) -> None:
    with pytest.raises(ConfigError, match="--allow-host" if "names" in options else "--allow-origin"):
        PredictionServer(predictor, port=0, **options)


def test_a_request_of_two_lengths_is_refused_and_nothing_after_it_is_answered(served: Served) -> None:
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    both = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s" % (len(hidden) + 5, hidden)
    for start in (HEAD, b"GET /health HTTP/1.1\r\nHost: localhost\r\n"):
        said = served.said_to(start + both)
        assert said.startswith(b"HTTP/1.1 400 ")
        assert said.count(b"HTTP/1.1 ") == 1


def test_pages_of_other_sites_may_not_ask_unless_allowed(predictor: Predictor, served: Served) -> None:
    def ask(server: Served, **headers: str) -> Any:
        return server.predict(GOOD, host="localhost:8000", **headers)

    assert ask(served, origin="http://localhost:8000").status == 200
    assert ask(served, sec_fetch_site="same-origin").status == 200
    for origin in ("http://evil.example", "http://localhost:3000", "null", "http://localhost:8000.evil.example"):
        assert ask(served, origin=origin).status == 403, origin
    assert ask(served, sec_fetch_site="cross-site").status == 403
    with serving(predictor, origins=["https://app.example"]) as server:
        allowed = ask(server, origin="https://app.example")
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        before = server.ask("OPTIONS", "/predict", headers={"Origin": "https://app.example"})
        assert (before.status, before.headers["access-control-allow-methods"]) == (204, "GET, POST")
        other = ask(server, origin="https://evil.example")
        assert other.status == 403
        assert "access-control-allow-origin" not in other.headers


def test_nonsense_on_the_socket_gets_400_and_the_next_is_answered(served: Served) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(300),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 300_000 + b"\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ):
        assert served.said_to(data)[:10] in (b"HTTP/1.1 4", b""), data[:80]
        assert served.predict(GOOD).status == 200


def test_requests_that_follow_each_other_on_one_connection_are_each_answered(served: Served) -> None:
    one = HEAD + b"Accept: image/png\r\nContent-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)
    last = one.replace(b"Accept", b"Connection: close\r\nAccept")
    said = served.said_to(one + one + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + last)
    assert said.count(b"HTTP/1.1 200 OK") == 4
    assert said.count(served.predict(GOOD, accept="image/png").content) == 3


# -- what is said and logged -------------------------------------------------------------------------------------------


def test_an_error_of_the_model_is_a_line_in_the_log_and_no_traceback(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(image: Any) -> Any:
        raise RuntimeError("a secret\nof the machine")

    caplog.set_level(logging.INFO)
    with serving(predictor) as server:
        with monkeypatch.context() as context:
            context.setattr(predictor, "predict", fails)
            answer = server.predict(GOOD)
            context.setattr(predictor, "predict", lambda image: exec("raise MemoryError"))
            short = server.predict(GOOD)
        assert answer.status == 500
        assert "secret" not in answer.error
        assert (short.status, "--max-memory" in short.error) == (413, True)
        assert server.predict(GOOD).status == 200
    assert [record.getMessage() for record in caplog.records if "secret" in record.getMessage()]
    assert not [record for record in caplog.records if record.exc_info]


def test_each_request_is_one_line_in_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    served.predict(GOOD)
    served.ask("GET", "/%0d%0aforged%1b[2J")
    served.predict(b"nonsense")
    served.predict(GOOD, host="evil.example")
    until(lambda: len(caplog.records) >= 4)
    lines = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"POST /predict: 200, 30 x 20, \d+\.\d{3} s", lines[0])
    assert lines[1].startswith(r"GET /\r\nforged\x1b[2J: 404, ")
    assert lines[2].startswith("POST /predict: 415, cannot be read (no JPEG")
    assert lines[3].startswith("POST /predict: 421, ")
    assert len(lines) == 4
    assert not any("\n" in line for line in lines)


def test_the_page_may_load_and_run_nothing_but_itself(served: Served) -> None:
    page = served.ask("GET", "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert not re.findall(rb"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page.content)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_its_address_serves_and_ends_cleanly(folder: Path) -> None:
    words = [sys.executable, "-m", "classyseg", "serve", str(folder), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+) serves ", line)
        assert found, process.communicate(timeout=20)
        connection = socket.create_connection(("127.0.0.1", int(found[1])))
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD))
        assert all_of(connection).startswith(b"HTTP/1.1 200 OK")
        connection.close()
        process.send_signal(signal.SIGTERM)
        rest, log = process.communicate(timeout=20)
        assert (process.returncode, rest) == (0, "stopped\n")
        assert "Traceback" not in log
        assert len(log.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_its_caller_goes_on(
    folder: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def end_it() -> None:
        def is_up() -> bool:
            with suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            return False

        until(is_up)  # a signal before would end the tests
        os.kill(os.getpid(), number)

    before, thread = signal.getsignal(number), threading.Thread(target=end_it)
    thread.start()
    assert main(["serve", str(folder), "--port", str(port), "--device", "cpu"]) == 0
    thread.join()
    assert capsys.readouterr().out.endswith("Ctrl-C ends it\nstopped\n")
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "192.0.2.1"], "--host: 192.0.2.1 is no address of this machine"),
        (["--host", "no such host"], "--host: found 'no such host'"),
        (["--max-bytes", "many"], "--max-bytes: found 'many'"),
        (["--allow-origin", "example.org"], "--allow-origin: found 'example.org'"),
    ],
)
def test_wrong_options_are_one_error(
    folder: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(folder), "--port", "0", "--device", "cpu", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_a_port_in_use_is_one_error(folder: Path, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(folder), "--port", str(served.port), "--device", "cpu"]) == 2
    assert f"error: --port: {served.port} is in use by another program" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_extra_is_one_error_with_the_command(
    folder: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", str(folder), "--port", "0"]) == 2
    assert "pip install 'classyseg[serve]'" in capsys.readouterr().err
