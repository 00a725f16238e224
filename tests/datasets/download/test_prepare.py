"""Public data sets: downloaded and unpacked whole or not at all, by an extractor that trusts no archive."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from memory import memory_within

from classyseg.cli.main import main
from classyseg.config import ConfigError, DataError
from classyseg.datasets.download import archives
from classyseg.datasets.download import prepare as recipes
from classyseg.datasets.download.archives import MAX_DIRECTORY, unpack
from classyseg.datasets.download.prepare import RECIPES, Source, prepare
from classyseg.registry import DATASETS
from local_server import Server, serving, sha256


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(*members: tuple[str, Any], mode: str = "w", **options: Any) -> bytes:
    """A tar archive of (name, contents or what else a member's header says)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                for key, value in content.items():
                    setattr(info, key, value)
                archive.addfile(info)
    return buffer.getvalue()


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../outside")
    return buffer.getvalue()


def tar_link() -> bytes:
    return tarred(("a", {"type": tarfile.SYMTYPE, "linkname": ".."}), ("a/outside.txt", b"x"))


def encrypted() -> bytes:
    content = bytearray(zipped({"a.txt": b"a"}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    return bytes(content)


def zip_of_a_long_list() -> bytes:
    """A list of files too long for memory, as its end says; nothing of it is right otherwise."""
    entry = b"PK\x01\x02" + bytes(24) + b"\x01" + bytes(17) + b"a"
    entries = entry * (MAX_DIRECTORY // len(entry) + 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0, 0, len(entries), 4, 0)
    return b"PK\x03\x04" + entries + end


def tar_of_a_long_sparse_map() -> bytes:
    """One header that goes on and on: pieces of a sparse file."""
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(format=tarfile.GNU_FORMAT))
    header[482], header[148:156] = 1, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 4000)


def broken(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


TWO_FILES = tarred(("a", b"x" * 600), ("b", b"y" * 600))
GLOBAL_HEADERS = {f"k{i}": "v" for i in range(101)}
GOOD = {"set/a.txt": b"one", "set/deep/b.txt": b"two"}
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip_slip": (lambda: zipped({**GOOD, "../outside.txt": b"x"}), r"holds '../outside.txt', which would be written"),
    "zip_slip_within": (lambda: zipped({"set/../../outside.txt": b"x"}), r"which would be written outside"),
    "zip_absolute": (lambda: zipped({"/tmp/outside.txt": b"x"}), r"which would be written outside"),
    "zip_drive": (lambda: zipped({"C:outside.txt": b"x"}), r"which would be written outside"),
    "zip_backslash": (lambda: zipped({"..\\outside.txt": b"x"}), r"which would be written outside"),
    "zip_escape": (lambda: zipped({"../\x1b[2J\n": b"x"}), r"holds '../\\x1b\[2J\\n', which would be written outside"),
    "zip_long_name": (lambda: zipped({"x" * 256: b""}), r"holds a name of 256 characters, 'xx"),
    "zip_deep": (lambda: zipped({"a/" * 50 + "a": b""}), r"holds folders in folders, 51 deep"),
    "zip_lzma": (lambda: zipped(GOOD, zipfile.ZIP_LZMA), r"'set/a.txt', packed by method 14; accepted is deflate"),
    "zip_bzip2": (lambda: zipped(GOOD, zipfile.ZIP_BZIP2), r"'set/a.txt', packed by method 12; accepted is deflate"),
    "zip_long_list": (zip_of_a_long_list, r"has a list of files of \d+ bytes; accepted are 16777216"),
    "zip_link": (zip_link, r"holds 'link', a link or a device"),
    "zip_encrypted": (encrypted, r"holds 'a.txt', which is encrypted"),
    "zip_bomb": (lambda: zipped({"a.txt": bytes(2 * 10**6)}), r"unpacks to more than 1000000 bytes"),
    "zip_cut": (lambda: zipped(GOOD)[:-30], r"cannot be unpacked"),
    "zip_of_too_many": (lambda: zipped({f"{i}.txt": b"" for i in range(11)}), r"holds more than 10 files"),
    "zip_file_and_folder": (lambda: zipped({"a": b"x", "a/b": b"y"}), r"cannot be unpacked"),
    "tar_slip": (lambda: tarred(("../outside.txt", b"x")), r"which would be written outside"),
    "tar_absolute": (lambda: tarred(("/tmp/outside.txt", b"x")), r"which would be written outside"),
    "tar_link": (
        lambda: tarred(("a", {"type": tarfile.SYMTYPE, "linkname": ".."}), ("a/outside.txt", b"x")),
        r"'a', a link",
    ),
    "tar_hard_link": (lambda: tarred(("a", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})), r"'a', a link"),
    "tar_device": (lambda: tarred(("a", {"type": tarfile.CHRTYPE, "devmajor": 1})), r"'a', a link, a device"),
    "tar_fifo": (lambda: tarred(("a", {"type": tarfile.FIFOTYPE})), r"'a', a link, a device"),
    "tar_twice": (lambda: tarred(("a", b"x"), ("./a", b"y")), r"holds './a' twice"),
    "tar_bomb": (lambda: tarred(("a", bytes(4 * 10**6)), mode="w:gz"), r"unpacks to more than"),
    "tar_bomb_of_headers": (
        lambda: tarred(("x" * 2 * 10**6, b""), mode="w:gz", format=tarfile.PAX_FORMAT),
        r"has a header of \d+ bytes",
    ),
    "tar_bomb_of_folders": (
        lambda: tarred(*((f"{i}", {"type": tarfile.DIRTYPE}) for i in range(6000)), mode="w:gz"),
        r"unpacks to more than 3048576 bytes",
    ),
    "tar_back": (
        lambda: tarred(("a", b""), ("b", {"size": -512}), format=tarfile.GNU_FORMAT),
        r"(has headers that lead back|is cut off or broken)",  # as Python reads negative sizes
    ),
    "tar_sparse": (tar_of_a_long_sparse_map, r"has a header of \d+ bytes"),
    "tar_global_headers": (
        lambda: tarred(("a", b""), format=tarfile.PAX_FORMAT, pax_headers=GLOBAL_HEADERS),
        r"has 101 headers for all files",
    ),
    "tar_cut": (lambda: tarred(("a", bytes(5000)))[:2000], r"cannot be unpacked"),
    "tar_cut_between": (lambda: TWO_FILES[:1536], r"cannot be unpacked \(it is cut off or broken after 1536 bytes\)"),
    "tar_broken": (lambda: broken(TWO_FILES, 1536), r"cannot be unpacked \(it is cut off or broken after 2048 bytes\)"),
    "gz_broken": (lambda: broken(gzip.compress(TWO_FILES), -6), r"cannot be unpacked \(BadGzipFile: CRC"),
    "tar_xz": (lambda: tarred(("a", b"x"), mode="w:xz"), r"cannot be unpacked"),
    "gz_cut": (lambda: tarred(("a", bytes(5000)), mode="w:gz")[:-20], r"cannot be unpacked"),
    "text": (lambda: b"<html>no such file</html>", r"cannot be unpacked"),
    "empty": (lambda: b"", r"cannot be unpacked"),
}


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_writes_nothing_and_is_named(tmp_path: Path, name: str) -> None:
    make, message = HOSTILE[name]
    (tmp_path / "archive").write_bytes(make())
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_bytes(b"mine")
    before = tree(tmp_path)
    with memory_within(200_000), pytest.raises(DataError, match=rf"archive: .*{message}"):
        unpack(tmp_path / "archive", tmp_path / "target", max_bytes=10**6, members=10)
    assert tree(tmp_path) == before
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:bz2"])
def test_a_good_archive_is_unpacked_over_what_is_there(tmp_path: Path, mode: str) -> None:
    content = zipped(GOOD) if mode == "zip" else tarred(("set", {"type": tarfile.DIRTYPE}), *GOOD.items(), mode=mode)
    (tmp_path / "archive").write_bytes(content)
    (tmp_path / "target" / "set").mkdir(parents=True)
    for name in ("set/a.txt", "set/mine.txt"):
        (tmp_path / "target" / name).write_bytes(b"old")
    assert unpack(tmp_path / "archive", tmp_path / "target") == 2
    assert tree(tmp_path / "target") == {**GOOD, "set/mine.txt": b"old"}


def test_a_part_of_an_archive_is_taken_and_moved(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(zipped(GOOD))
    assert unpack(tmp_path / "archive", tmp_path / "target", move="set/deep/", to="new/") == 1
    assert tree(tmp_path / "target") == {"new/b.txt": b"two"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_that_takes_no_more_is_no_fault_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    (tmp_path / "archive").write_bytes(zipped(GOOD))
    monkeypatch.setattr(archives, "write_file", full)
    with pytest.raises(ConfigError, match=rf"archive.*{os.strerror(code)}") as caught:
        unpack(tmp_path / "archive", tmp_path / "target")
    assert not isinstance(caught.value, DataError)
    assert list((tmp_path / "target").iterdir()) == []


def test_files_go_to_another_disk_where_a_link_leads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_another_disk(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    (tmp_path / "archive").write_bytes(zipped(GOOD))
    monkeypatch.setattr(os, "replace", to_another_disk)
    assert unpack(tmp_path / "archive", tmp_path / "target") == 2
    assert tree(tmp_path / "target") == GOOD


def test_a_folder_where_a_file_should_go_is_named(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(zipped(GOOD))
    (tmp_path / "target" / "set" / "a.txt").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"target/set/a.txt.*directory") as caught:
        unpack(tmp_path / "archive", tmp_path / "target")
    assert not isinstance(caught.value, DataError)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as found:
        found.content = zipped({**GOOD, "inner.zip": zipped({"in/c.txt": bytes(30000)})})
        source = Source(
            found.url("set.zip"),
            {"data/set/*.txt": 1, "data/in/*": 1},
            sha256(found.content),
            into="data",
            inner=("inner.zip",),
        )
        monkeypatch.setitem(RECIPES, "small", (source,))
        yield found


ALL = {"data/set/a.txt": b"one", "data/set/deep/b.txt": b"two", "data/in/c.txt": bytes(30000)}


def test_a_set_is_prepared_once(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "small", "--data-root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"small: ready in {tmp_path}\n"
    assert tree(tmp_path) == ALL
    prepare("small", tmp_path)
    assert len(server.requests) == 1


def test_archives_are_kept_on_request(server: Server, tmp_path: Path) -> None:
    prepare("small", tmp_path, keep=True)
    assert (tmp_path / ".downloads" / "set.zip").read_bytes() == server.content


def test_a_download_that_was_cut_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 100
    stopped = r"set.zip could not be downloaded: .* after 100 of .* download it yourself to \S+/.downloads/set.zip$"
    with pytest.raises(ConfigError, match=stopped):
        prepare("small", tmp_path)
    server.cut = None
    prepare("small", tmp_path)
    assert server.asked == [None, "bytes=100-"]
    assert tree(tmp_path) == ALL


def test_archives_that_were_kept_stay_when_another_set_is_prepared(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("small", tmp_path, keep=True)
    monkeypatch.setitem(RECIPES, "other", (Source(server.url("other.zip"), {"other/set/*.txt": 1}, into="other"),))
    prepare("other", tmp_path)
    assert [path.name for path in (tmp_path / ".downloads").iterdir()] == ["set.zip"]


def test_more_files_than_known_are_no_reason_to_download_again(server: Server, tmp_path: Path) -> None:
    prepare("small", tmp_path)
    (tmp_path / "data/set/mine.txt").write_bytes(b"mine")
    prepare("small", tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("moved", range(3))
def test_what_was_broken_off_while_files_were_moved_is_not_taken_for_whole(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    left = moved
    replace = os.replace

    def broken_off(source: Path, target: Path) -> None:
        nonlocal left
        if ".unpacking-" in str(source):  # not the download
            if not left:
                raise KeyboardInterrupt
            left -= 1
        replace(source, target)

    source = RECIPES["small"][0]
    monkeypatch.setitem(RECIPES, "small", (Source(source.url, {}, source.digest, "data", inner=source.inner),))
    (tmp_path / "data/.unpacking-set.zip").mkdir(parents=True)  # as somebody who was killed leaves it
    monkeypatch.setattr(os, "replace", broken_off)
    with pytest.raises(KeyboardInterrupt):
        prepare("small", tmp_path)
    assert tree(tmp_path) != ALL
    left = 9
    prepare("small", tmp_path)
    assert tree(tmp_path) == ALL
    assert len(server.requests) == 1


def test_an_interrupt_while_files_are_unpacked_leaves_nothing_behind(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("small", tmp_path)
    assert tree(tmp_path) == {".downloads/set.zip": server.content}


def test_of_two_processes_one_downloads_and_unpacks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, problems = [], []
    unpack_one, both = recipes.unpack, threading.Barrier(2)

    def counted(*arguments: Any, **options: Any) -> int:
        calls.append(arguments)
        return unpack_one(*arguments, **options)

    def work() -> None:
        both.wait()
        try:
            prepare("small", tmp_path)
        except BaseException as error:
            problems.append(error)

    monkeypatch.setattr(recipes, "unpack", counted)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(server.requests) == 1
    assert len(calls) == 2  # the archive, and the one within
    assert tree(tmp_path) == ALL


def test_a_server_that_sends_a_part_of_the_rest_is_not_believed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "small", (Source(server.url("set.zip"), {"set/*.txt": 1}),))
    server.cut = 100
    with pytest.raises(ConfigError, match=r"after 100 of"):
        prepare("small", tmp_path)
    server.cut, server.most_of_the_rest = None, 50
    prepare("small", tmp_path)
    assert server.asked == [None, "bytes=100-", None]
    assert tree(tmp_path)["set/a.txt"] == b"one"


def test_a_root_that_cannot_be_used_is_one_message(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/.downloads.*Not a directory"):
        prepare("small", tmp_path / "file")


def test_a_wrong_hash_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = zipped(GOOD)
    with pytest.raises(ConfigError, match=r"set.zip.*sha256.*removed"):
        prepare("small", tmp_path)
    assert [name for name in tree(tmp_path) if not name.endswith(".lock")] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped({"../x": b""}), r"set.zip: holds '../x'"),
        (zipped({"set/a.txt": b"", "inner.zip": zipped({"../../x": b""})}), r"inner.zip: holds '../../x'"),
    ],
)
def test_a_hostile_download_is_removed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    server.content = content
    source = Source(server.url("set.zip"), {"in/*": 1}, inner=("inner.zip",))
    monkeypatch.setitem(RECIPES, "small", (source,))
    with pytest.raises(DataError, match=rf"{message}.*removed$"):
        prepare("small", tmp_path)
    assert not (tmp_path / ".downloads").exists()
    assert not list(tmp_path.rglob("x"))


def test_a_wrong_number_of_files_is_told(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "small", (Source(server.url("set.zip"), {"set/*.txt": 7}),))
    with pytest.raises(DataError, match=r"set.zip.*1 of 7.*/set/\*.txt.*kept"):
        prepare("small", tmp_path)


def test_names_without_a_recipe_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'cityscapes'.*account.*https://www.cityscapes"):
        prepare("cityscapes", tmp_path)
    with pytest.raises(ConfigError, match=r"'camvit' cannot be prepared; .*camvid"):
        prepare("camvit", tmp_path)


def test_every_recipe_is_of_a_registered_data_set() -> None:
    assert {*RECIPES, *recipes.BY_HAND} <= set(DATASETS.names())


def test_folders_within_archives_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(zipped({"set/": b"", **GOOD, "set/empty/": b""}))
    (tmp_path / "set.tar").write_bytes(tarred(("set", {"type": tarfile.DIRTYPE}), *GOOD.items()))
    for name in ("set.zip", "set.tar"):
        assert unpack(tmp_path / name, tmp_path / "out") == 2
        assert tree(tmp_path / "out") == GOOD
