"""Downloads of weights: whole or not at all, once, resumed where that is safe, and then without a network."""

from __future__ import annotations

import gzip
import hashlib
import io
import multiprocessing
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch

from classyseg import downloads
from classyseg.config import ConfigError
from classyseg.models import ResNet, create_backbone, list_models
from classyseg.models.public_weights import public_weights
from classyseg.registry import MODELS
from classyseg.weights import cache as store
from classyseg.weights.cache import HASH_IN_NAME, cache_folder, fetch, torchvision_weights
from classyseg.weights.catalogue import PUBLISHED
from local_server import CONTENT, Server, serving, sha256

OTHER = CONTENT[::-1]
PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("CLASSYSEG_CACHE", str(tmp_path / "cache"))
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with serving() as found:
        yield found


def cached() -> list[str]:
    return sorted(path.name for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock")


def break_off(server: Server, digest: str = "", after: int = 1000) -> None:
    """A first call whose connection breaks after some bytes."""
    server.cut = after
    with pytest.raises(ConfigError, match=r"(the connection ended|IncompleteRead)"):
        fetch(server.url(), digest)
    server.cut = None


def test_a_file_is_downloaded_once_and_then_found_without_a_server(server: Server) -> None:
    path = fetch(server.url(), sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache_folder())
    assert server.asked == [None]
    server.shutdown()
    server.server_close()
    assert fetch(server.url(), sha256(CONTENT)) == path
    assert cached() == ["w.pth"]


def test_the_same_name_elsewhere_is_another_file(server: Server) -> None:
    first = fetch(server.url("a/w.pth"))
    server.content = OTHER
    second = fetch(server.url("b/w.pth?download=1"))
    assert (first.read_bytes(), second.read_bytes()) == (CONTENT, OTHER)
    assert first.name == second.name


@pytest.mark.parametrize("digest", [sha256(CONTENT), ""], ids=["hash", "no hash"])
@pytest.mark.parametrize("version", [{"ETag": '"1"'}, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}], ids=list)
def test_a_broken_download_goes_on_where_it_stopped(digest: str, version: dict[str, str], server: Server) -> None:
    server.version = version
    break_off(server, digest)
    assert cached() == ["w.pth.part", "w.pth.part.version"]
    assert fetch(server.url(), digest).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]
    assert cached() == ["w.pth"]


def test_a_download_may_break_more_than_once(server: Server) -> None:
    break_off(server)
    break_off(server, after=500)
    assert fetch(server.url()).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]


def test_a_chunked_answer_that_breaks_is_no_traceback(server: Server) -> None:
    server.chunked = True
    break_off(server)
    assert fetch(server.url()).read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_sends_all_again(server: Server) -> None:
    server.ranges = False
    break_off(server)
    assert fetch(server.url(), sha256(CONTENT)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


def test_without_version_and_hash_a_download_starts_again(server: Server) -> None:
    server.version = {}
    break_off(server)
    assert fetch(server.url()).read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_with_a_hash_no_version_is_needed(server: Server) -> None:
    server.version = {"ETag": 'W/"weak"'}
    break_off(server, sha256(CONTENT))
    assert fetch(server.url(), sha256(CONTENT)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


@pytest.mark.parametrize(
    ("content", "honours"),
    [(OTHER, True), (OTHER[:900], True), (OTHER[:1000], True), (OTHER, False), (OTHER[:900], False)],
    ids=["other", "shorter", "as long as the part", "other, no If-Range", "shorter, no If-Range"],
)
def test_a_file_that_changed_between_the_parts_is_not_mixed(content: bytes, honours: bool, server: Server) -> None:
    break_off(server)
    server.content, server.version, server.honours_if_range = content, {"ETag": '"2"'}, honours
    assert fetch(server.url()).read_bytes() == content


@pytest.mark.parametrize("content", [OTHER, OTHER[:1000], OTHER[:900]])
def test_a_hash_tells_what_the_server_does_not(content: bytes, server: Server) -> None:
    server.version = {}
    break_off(server, sha256(content))
    server.content = content
    assert fetch(server.url(), sha256(content)).read_bytes() == content


def test_a_part_that_is_the_whole_file_needs_no_more(server: Server) -> None:
    break_off(server, sha256(CONTENT), after=len(CONTENT) - 1)
    (part,) = cache_folder().rglob("*.part")
    part.write_bytes(CONTENT)
    assert fetch(server.url(), sha256(CONTENT)).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT)}-"]


def test_a_wrong_hash_is_told_and_the_download_removed(server: Server) -> None:
    with pytest.raises(ConfigError) as error:
        fetch(server.url(), sha256(OTHER))
    found, expected = (sha256(content).removeprefix("sha256:") for content in (CONTENT, OTHER))
    assert str(error.value) == (
        f"{server.url()}: found the sha256 {found}, expected {expected}; the download was removed"
    )
    assert cached() == []
    server.content = OTHER
    assert fetch(server.url(), sha256(OTHER)).read_bytes() == OTHER


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_a_hash_in_the_file_name_is_checked(algorithm: str, server: Server) -> None:
    digest = hashlib.new(algorithm, CONTENT).hexdigest()[:8]
    assert fetch(server.url(f"resnet50-{digest}.pth")).is_file()
    server.content = OTHER
    with pytest.raises(ConfigError, match="expected "):
        fetch(server.url(f"other/resnet50-{digest}.pth"))


def test_the_hash_in_an_archives_name_may_be_that_of_its_one_file(server: Server) -> None:
    def packed(*contents: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for i, content in enumerate(contents):
                archive.writestr(f"models/{i}.pth", content)
        return file.getvalue()

    name = f"resnet50s-{hashlib.sha1(CONTENT).hexdigest()[:8]}.zip"
    server.content = packed(CONTENT)
    assert fetch(server.url(name)).read_bytes() == server.content
    damaged = bytearray(packed(CONTENT))
    damaged[200] ^= 1
    for i, wrong in enumerate([packed(OTHER), packed(CONTENT, OTHER), packed(), bytes(damaged), packed(CONTENT)[:-9]]):
        server.content = wrong
        with pytest.raises(ConfigError, match=r"sha256 .*removed"):
            fetch(server.url(f"{i}/{name}"))


@pytest.mark.parametrize(
    "name", ["resnet50-20240131.pth", "iter-00080000.pth", "model-1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed.pth"]
)
def test_a_date_a_count_or_an_id_in_the_file_name_is_no_hash(name: str, server: Server) -> None:
    assert fetch(server.url(name)).is_file()


def test_a_hash_that_is_only_in_the_name_is_told_as_that(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0123abcd.*file's name"):
        fetch(server.url("w-0123abcd.pth"))
    path = tmp_path / "w-0123abcd.pth"
    path.write_bytes(CONTENT)
    assert fetch(path.as_uri()) == path


def test_a_missing_file_and_a_page_are_errors_that_leave_nothing(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"/missing\.pth .*404"):
        fetch(server.url("missing.pth"))
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(ConfigError, match="web page"):
        fetch(server.url())
    assert cached() == []


def test_a_part_that_was_not_asked_for_is_refused(server: Server) -> None:
    server.part_unasked = True
    with pytest.raises(ConfigError, match="part of the file"):
        fetch(server.url())
    assert cached() == []


def test_an_answer_in_an_encoding_is_refused(server: Server) -> None:
    server.content, server.version = gzip.compress(CONTENT), {"Content-Encoding": "gzip"}
    with pytest.raises(ConfigError, match="gzip"):
        fetch(server.url())
    assert server.encodings == ["identity"]
    assert cached() == []


def test_no_server_is_an_error_that_names_the_cache(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(ConfigError, match=r"refused.*CLASSYSEG_CACHE.*download it yourself"):
        fetch(server.url())


def test_a_redirect_is_followed_also_when_resuming(server: Server) -> None:
    server.cut = 1000
    with pytest.raises(ConfigError):
        fetch(server.url("moved.pth"))
    server.cut = None
    assert fetch(server.url("moved.pth")).read_bytes() == CONTENT
    assert server.requests[-1] == ("/found.pth", "bytes=1000-")


def test_a_proxy_of_the_environment_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "")
    assert fetch("http://weights.invalid/w.pth").read_bytes() == CONTENT
    assert server.requests == [("http://weights.invalid/w.pth", None)]


@pytest.mark.parametrize("path", ["", "..", "a/..%2F..%2Fevil.pth", "%2e%2e", "a" * 300, "w%00.pth", ".lock"])
def test_a_strange_name_stays_in_the_cache(path: str, server: Server, tmp_path: Path) -> None:
    found = fetch(server.url(path))
    assert found.read_bytes() == CONTENT
    assert found.parent.parent == cache_folder()
    assert {entry.name for entry in tmp_path.iterdir()} == {"cache"}


def test_a_file_url_is_the_file_itself(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "my weights.pth"
    path.write_bytes(CONTENT)
    assert fetch(path.as_uri()) == path
    assert fetch(path.as_uri(), sha256(CONTENT)) == path
    with pytest.raises(ConfigError, match="found the sha256"):
        fetch(path.as_uri(), sha256(OTHER))
    with pytest.raises(ConfigError, match="no such file"):
        fetch((tmp_path / "none.pth").as_uri())
    assert path.is_file()


def _fetch_in_a_process(url: str, results: Any) -> None:
    results.put(fetch(url).read_bytes() == CONTENT)


def test_two_processes_at_once_download_once(server: Server) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch_in_a_process, args=(server.url(), results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert server.asked == [None]


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CLASSYSEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "classyseg" / "weights"
    monkeypatch.setenv("CLASSYSEG_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" / "weights"


def test_pretrained_downloads_what_the_name_knows(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    source = create_backbone("resnet18")
    torch.save(source.state_dict(), cache_folder().parent.parent / "w.pth")
    server.content = (cache_folder().parent.parent / "w.pth").read_bytes()
    known = {"v1": store.PublicWeights(server.url(), sha256(server.content), "CC0-1.0")}
    monkeypatch.setattr(ResNet, "known_weights", classmethod(lambda cls, variant: known))
    model = create_backbone("resnet18", pretrained=True)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_every_public_file_of_torchvision_has_a_hash() -> None:
    for name in list_models("resnet*"):
        assert all(entry.digest.startswith("sha256:") for entry in torchvision_weights(name).values())


def test_every_published_name_is_a_model_whose_weights_are_named_and_licensed() -> None:
    assert PUBLISHED.keys() <= set(list_models())
    for name, known in PUBLISHED.items():
        assert public_weights(MODELS.entry(name).component, name).items() >= known.items()  # type: ignore[arg-type]
        for entry in known.values():
            assert urlparse(entry.url).scheme == "https"
            assert entry.licence.startswith(("MIT", "Apache-2.0"))
            assert entry.resize >= entry.crop
            in_name = HASH_IN_NAME.search(entry.url)
            assert entry.digest.rpartition(":")[2] == (in_name[1] if in_name else "")


@pytest.mark.parametrize(
    ("content_range", "expected"),
    [
        ("bytes 5-9/10", True),
        ("bytes 5-9/*", True),
        ("bytes 4-9/10", False),
        ("bytes 6-9/10", False),
        ("bytes 5-8/10", False),
        ("bytes */10", False),
        ("", False),
    ],
)
def test_only_the_rest_of_a_file_is_added_to_its_part(content_range: str, expected: bool) -> None:
    assert downloads.is_the_rest(content_range, 5) == expected
