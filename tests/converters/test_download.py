"""Downloads from a real server that drops connections, ignores Range, changes its file."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from converters.download import ATTEMPTS, download
from infi_edge.errors import ConfigError, SourceError
from tests.conftest import ROOT

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """How the server behaves, and what it was asked.

    drops: bytes after which each of the next answers breaks off, None for not. statuses: of the
    next answers. reset: break off by a reset instead of an orderly end.
    """

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True
    heeds_if_range: bool = True
    length: bool = True
    chunked: bool = False
    reset: bool = False
    shift: int = 0
    drops: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    redirect: str | None = None
    asked: list[dict[str, str]] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StateServer

    def do_GET(self) -> None:
        state = self.server.state
        state.asked.append({name.lower(): value for name, value in self.headers.items()})
        self.close_connection = True
        if state.redirect is not None:
            self.send_response(302)
            self.send_header("Location", state.redirect)
            self.end_headers()
            return
        if state.statuses:
            self.send_error(state.statuses.pop(0))
            return
        first = self._first(state)
        if first is not None and first >= len(state.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(state.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._answer(state, first)

    def _first(self, state: Server) -> int | None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range") in (None, state.etag) or not state.heeds_if_range
        return int(asked[1]) if asked and state.ranges and unchanged else None

    def _answer(self, state: Server, first: int | None) -> None:
        body = state.content[first or 0 :]
        self.send_response(200 if first is None else 206)
        if first is not None:
            first += state.shift
            last, total = len(state.content) - 1, len(state.content)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        if state.etag is not None:
            self.send_header("ETag", state.etag)
        if state.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif state.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        drop = state.drops.pop(0) if state.drops else None
        sent = body if drop is None else body[:drop]
        if state.chunked:
            self.wfile.write(f"{len(body):x}\r\n".encode() + sent)
            if drop is None:
                self.wfile.write(b"\r\n0\r\n\r\n")
        else:
            self.wfile.write(sent)
        if drop is not None and state.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass


class StateServer(http.server.ThreadingHTTPServer):
    state: Server
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a connection that the test reset on purpose


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with StateServer(("127.0.0.1", 0), Handler) as running:
        running.state = Server(f"http://127.0.0.1:{running.server_address[1]}/data.bin")
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running.state
        running.shutdown()
        thread.join()


def fetch(server: Server, path: Path, sha256: str | None = SHA256) -> Path:
    return download(server.url, path, sha256, backoff_s=0.0)


def begun(server: Server, path: Path, data: bytes, etag: str | None = '"one"') -> None:
    """What an earlier, interrupted call leaves."""
    path.with_name(path.name + ".part").write_bytes(data)
    about = {"url": server.url, "validator": etag}
    path.with_name(path.name + ".part.json").write_text(json.dumps(about))


def only(path: Path) -> bool:
    return [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_whole_file_arrives_and_nothing_else_stays(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = download(
        server.url, tmp_path / "a.bin", SHA256, lambda done, total: seen.append((done, total))
    )
    assert path.read_bytes() == CONTENT
    assert only(path)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    assert "range" not in server.asked[0]


def test_a_file_that_is_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path / "a.bin")
    fetch(server, path)
    fetch(server, path, None)
    assert len(server.asked) == 1


def test_another_file_under_the_name_is_not_touched(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"mine")
    with pytest.raises(SourceError, match=r"a\.bin is there already with another content"):
        fetch(server, path)
    assert path.read_bytes() == b"mine"
    assert not server.asked


@pytest.mark.parametrize("reset", [False, True])
def test_a_dropped_connection_is_resumed_where_it_broke(
    server: Server, tmp_path: Path, reset: bool
) -> None:
    server.drops, server.reset = [100_000, 150_000], reset
    path = fetch(server, tmp_path / "a.bin")
    assert path.read_bytes() == CONTENT
    assert only(path)
    starts = [int(asked.get("range", "bytes=0-")[6:-1]) for asked in server.asked]
    assert len(starts) == 3
    assert starts == sorted(starts)
    if not reset:  # a reset may lose what was under way
        assert starts == [0, 100_000, 250_000]
    resumed = [asked for asked in server.asked if "range" in asked]
    assert all(asked["if-range"] == '"one"' for asked in resumed)
    assert reset or resumed


def test_an_interrupted_call_is_gone_on_with_by_the_next(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    server.drops = [200_000] + [0] * ATTEMPTS
    with pytest.raises(SourceError, match=f"failed {ATTEMPTS} times in a row at byte 200000"):
        fetch(server, path)
    assert not path.exists()
    assert fetch(server, path).read_bytes() == CONTENT
    assert server.asked[-1]["range"] == "bytes=200000-"


def test_without_a_hash_it_resumes_by_the_servers_version(server: Server, tmp_path: Path) -> None:
    server.drops = [100_000]
    assert fetch(server, tmp_path / "a.bin", None).read_bytes() == CONTENT
    assert server.asked[1]["range"] == "bytes=100000-"


@pytest.mark.parametrize("etag", [None, 'W/"one"'])
def test_without_hash_and_version_it_begins_anew(
    server: Server, tmp_path: Path, etag: str | None
) -> None:
    server.etag, server.drops = etag, [100_000]
    assert fetch(server, tmp_path / "a.bin", None).read_bytes() == CONTENT
    assert "range" not in server.asked[1]


def test_a_server_that_ignores_range_gives_the_file_once(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drops = False, [100_000]
    assert fetch(server, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked[1]["range"] == "bytes=100000-"


def test_a_server_that_always_drops_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drops = False, [100_000] * 50
    with pytest.raises(SourceError, match="times in a row"):
        fetch(server, tmp_path / "a.bin")
    assert len(server.asked) == 1 + ATTEMPTS


def test_a_changed_file_is_never_joined_to_the_old_part(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    begun(server, path, b"x" * 1000)
    server.etag = '"two"'
    assert fetch(server, path, None).read_bytes() == CONTENT
    assert server.asked[0]["if-range"] == '"one"'


def test_a_changed_file_is_seen_though_if_range_is_not_heeded(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    begun(server, path, b"x" * 1000)
    server.etag, server.heeds_if_range = '"two"', False
    assert fetch(server, path, None).read_bytes() == CONTENT
    assert "range" not in server.asked[-1]


def test_a_part_from_another_place_is_not_joined(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    begun(server, path, CONTENT[:1000])
    server.shift = 7
    assert fetch(server, path).read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_joined(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    begun(server, path, b"x" * 1000)
    about = path.with_name("a.bin.part.json")
    about.write_text(about.read_text().replace("data.bin", "other.bin"))
    assert fetch(server, path, None).read_bytes() == CONTENT
    assert "range" not in server.asked[0]


@pytest.mark.parametrize("about", ["", "[]", "{}", '{"url": 1, "validator": "a\\nb"}', "\0"])
def test_a_part_that_says_nothing_of_itself_is_not_joined(
    server: Server, tmp_path: Path, about: str
) -> None:
    path = tmp_path / "a.bin"
    begun(server, path, b"x" * 1000)
    path.with_name("a.bin.part.json").write_text(about)
    assert fetch(server, path, None).read_bytes() == CONTENT


def test_a_part_that_is_whole_needs_only_a_416(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    begun(server, path, CONTENT)
    assert fetch(server, path).read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_part_longer_than_the_file_begins_anew(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    begun(server, path, CONTENT + b"more")
    assert fetch(server, path).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_truncated_chunk_is_noticed(server: Server, tmp_path: Path) -> None:
    server.chunked, server.drops = True, [1000]
    assert fetch(server, tmp_path / "a.bin", None).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_another_content_is_removed_and_said(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT + b"!"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(SourceError, match=f"{found}, not {SHA256}; it was removed"):
        fetch(server, tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_an_unknown_length_cut_short_is_caught_by_the_hash(server: Server, tmp_path: Path) -> None:
    server.length, server.drops = False, [1000]
    with pytest.raises(SourceError, match="it was removed"):
        fetch(server, tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_asked_for_again(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status] * 50
    with pytest.raises(SourceError, match=rf"data\.bin answered {status} .*check the address"):
        fetch(server, tmp_path / "a.bin")
    assert len(server.asked) == 1
    assert not (tmp_path / "a.bin").exists()


def test_a_server_in_trouble_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 500]
    assert fetch(server, tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_that_stays_in_trouble_is_given_up(server: Server, tmp_path: Path) -> None:
    server.statuses = [500] * 50
    with pytest.raises(SourceError, match="500 Internal Server Error"):
        fetch(server, tmp_path / "a.bin")
    assert len(server.asked) == ATTEMPTS


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/again"])
def test_a_redirect_out_of_http_or_in_circles_is_refused(
    server: Server, tmp_path: Path, target: str
) -> None:
    server.redirect = target
    with pytest.raises(SourceError, match=r"[Rr]edirect|unknown url type"):
        fetch(server, tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def test_nobody_listening_is_one_sentence(server: Server, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(SourceError, match="cannot be reached: Connection refused"):
            download(url, tmp_path / "a.bin", None)
    assert not list(tmp_path.iterdir())


def test_a_file_address_is_copied(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(CONTENT)
    path = download((tmp_path / "there").as_uri(), tmp_path / "a.bin", SHA256)
    assert path.read_bytes() == CONTENT
    with pytest.raises(SourceError, match="cannot be reached: No such file"):
        download((tmp_path / "gone").as_uri(), tmp_path / "b.bin", None)


@pytest.mark.parametrize(
    "url",
    ["ftp://a/b", "data:,x", "a.bin", "http://a/b c", "http://[x/", "http://ä/", "http://a\n"],
)
def test_an_impossible_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="no address to download from"):
        download(url, tmp_path / "a.bin", None)


def test_an_impossible_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        download("http://127.0.0.1/", tmp_path / "a.bin", "123")


def test_a_folder_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no/a\.bin\.part cannot be written: no such file"):
        fetch(server, tmp_path / "no" / "a.bin")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").symlink_to("/dev/full")
    with pytest.raises(SourceError, match="no space left on device; make room"):
        fetch(server, tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def test_what_fitted_on_the_disk_is_kept_for_the_next_call(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    program = "import sys; from converters.download import download; download(*sys.argv[1:3], None)"

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(
        [sys.executable, "-c", program, server.url, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=little_room,
        check=False,
    )
    assert "SourceError" in done.stderr
    assert "cannot be written: file too large" in done.stderr
    assert not path.exists()
    assert fetch(server, path, None).read_bytes() == CONTENT
    assert server.asked[-1]["range"] == "bytes=300000-"
