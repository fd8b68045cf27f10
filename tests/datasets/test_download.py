"""Downloads from a real server on this machine: whole, cut short, resumed, refused."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from urllib3.util import Retry

from tests.artifacts.test_artifacts import unprivileged
from tests.stages.test_data import refusal
from wmdd.datasets import download
from wmdd.datasets.download import fetch
from wmdd.settings.catalogue import Archive

CONTENT = Random(0).randbytes(300_000)


class Server:
    """Serves CONTENT at /data.tgz; what it does wrong is set on it, what it was asked is kept in `ranges`."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []  # the Range of each request
        self.knows_ranges = True
        self.cuts: list[int] = []  # bytes sent before the connection ends, for the next requests
        self.statuses: list[int] = []  # of the next requests
        self.encoding = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/data.tgz"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.statuses:
            return request.send_error(self.statuses.pop(0))
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.knows_ranges else 0
        if first >= len(CONTENT):
            return request.send_error(416)
        request.send_response(206 if first else 200)
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if self.encoding:
            request.send_header("Content-Encoding", self.encoding)
        request.send_header("Content-Length", str(len(CONTENT) - first))
        request.end_headers()
        request.wfile.write(CONTENT[first:][: self.cuts.pop(0) if self.cuts else None])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(
        download, "RETRY", Retry(total=2, backoff_factor=0, status_forcelist=(503,), raise_on_status=False)
    )
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def archive(server: Server, **changes: Any) -> Archive:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Archive(**{"name": "data.tgz", "url": server.url, "size": len(CONTENT), "sha256": digest} | changes)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("kind", "size"), [("sha256", len(CONTENT)), ("md5", 0)])
def test_a_download(server: Server, tmp_path: Path, kind: str, size: int) -> None:
    server.encoding = "gzip"  # what servers say of .tgz now and then; the bytes are kept as they are
    sums = {"sha256": "", "md5": ""} | {kind: hashlib.new(kind, CONTENT).hexdigest()}
    path = fetch(archive(server, size=size, **sums), tmp_path / "new/raw", True)
    assert path == tmp_path / "new/raw/data.tgz"
    assert files(path.parent) == {"data.tgz": CONTENT}
    for wanted in (archive(server), archive(server, url="")):  # it is there, and right
        assert fetch(wanted, path.parent, False) == path
    assert server.ranges == [None]


@pytest.mark.parametrize(
    ("part", "knows_ranges", "ranges"),
    [
        (CONTENT[:123_456], True, ["bytes=123456-"]),
        (CONTENT, True, []),
        (CONTENT + b"more", True, ["bytes=300004-", None]),
        (b"x" * 1000, False, ["bytes=1000-"]),  # which the server does not heed: it starts over
    ],
    ids=["cut short", "whole", "too long", "no ranges"],
)
def test_it_goes_on_where_an_earlier_run_stopped(
    server: Server, tmp_path: Path, part: bytes, knows_ranges: bool, ranges: list[str | None]
) -> None:
    server.knows_ranges = knows_ranges
    (tmp_path / "data.tgz.part").write_bytes(part)
    fetch(archive(server), tmp_path, True)
    assert files(tmp_path) == {"data.tgz": CONTENT}
    assert server.ranges == ranges


def test_broken_connections_and_busy_servers_are_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses, server.cuts = [503, 503], [100_000, 50_000]
    fetch(archive(server), tmp_path, True)
    assert files(tmp_path) == {"data.tgz": CONTENT}
    assert server.ranges == [None, None, None, "bytes=100000-", "bytes=150000-"]


# Faults: one line that says what to fetch from where, and where to put it


def told(server: Server, root: Path, *named: str, call: Callable[[], Any] | None = None, **changes: Any) -> str:
    wanted = archive(server, **changes)
    by_hand = (f"fetch {wanted.url} (SHA-256 {wanted.sha256}) by hand", f"put it at {root / 'data.tgz'}")
    return refusal(*named, *by_hand, call=call or (lambda: fetch(wanted, root, True)))


def test_an_early_end_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.cuts = [10_000] * 10
    said = told(server, tmp_path, "cannot download", "broke at 50,000 of 300,000 bytes", "go on after 50,000 bytes")
    assert said.count("by hand") == 1
    assert files(tmp_path) == {"data.tgz.part": CONTENT[:50_000]}
    server.cuts = []
    fetch(archive(server), tmp_path, True)
    assert files(tmp_path) == {"data.tgz": CONTENT}


def test_another_file_than_was_published_is_deleted(server: Server, tmp_path: Path) -> None:
    told(server, tmp_path, "wrong checksum", "it was deleted", sha256="0" * 64)
    told(server, tmp_path, "300,000 bytes there where 299,999 were published", size=len(CONTENT) - 1)
    assert files(tmp_path) == {}


def test_a_wrong_file_of_the_user_is_kept(server: Server, tmp_path: Path) -> None:
    for content, fault in ((b"\0" * 300_000, "a wrong checksum"), (b"short", "5 bytes where 300,000 are published")):
        (tmp_path / "data.tgz").write_bytes(content)
        told(server, tmp_path, f"data.tgz has {fault}", "delete or move it")
        assert files(tmp_path) == {"data.tgz": content}
    assert server.ranges == []


@pytest.mark.parametrize(("code", "begun"), [(404, 0), (503, 5000)])
def test_a_server_that_refuses_or_is_gone(server: Server, tmp_path: Path, code: int, begun: int) -> None:
    if begun:
        (tmp_path / "data.tgz.part").write_bytes(CONTENT[:begun])
    server.statuses = [code] * 9
    told(server, tmp_path, "cannot download", str(code))
    server.server.shutdown()
    server.server.server_close()
    told(server, tmp_path, "cannot download", "refused")
    assert files(tmp_path) == ({"data.tgz.part": CONTENT[:begun]} if begun else {})


def test_not_allowed(server: Server, tmp_path: Path) -> None:
    told(server, tmp_path, "data.download is off", call=lambda: fetch(archive(server), tmp_path, False))
    refusal("does not exist", "fetch x by hand", call=lambda: fetch(Archive(name="x"), tmp_path, True))
    assert server.ranges == []


def test_a_place_without_space_that_is_read_only_or_a_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=len(CONTENT) - 1))
    refusal("disk full", str(tmp_path / "data.tgz"), "300,000", call=lambda: fetch(archive(server), tmp_path, True))
    assert files(tmp_path) == {}
    (tmp_path / "raw").touch()
    refusal("a file stands where", call=lambda: fetch(archive(server), tmp_path / "raw", True))
    with TemporaryDirectory() as folder:  # tmp_path is closed to everybody else
        os.chmod(folder, 0o555)
        with unprivileged():
            told(server, Path(folder), "cannot write", "Permission denied", "permissions")
        assert os.listdir(folder) == []


def test_two_jobs_fetch_it_once(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    jobs = [threading.Thread(target=fetch, args=(wanted, tmp_path, True)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert files(tmp_path) == {"data.tgz": CONTENT}
    assert server.ranges == [None]
