"""Downloads against a local HTTP server that breaks off, refuses ranges, lies and redirects."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tokenswarm.commands import data
from tokenswarm.commands import fetch as fetching
from tokenswarm.commands.fetch import KNOWN, KnownDataset, fetch, licence_note
from tokenswarm.errors import DatasetError

BODY = bytes(range(256)) * 4000  # 1 MB that differs at every offset of a block
SHA256 = hashlib.sha256(BODY).hexdigest()


class Site:
    """How the server behaves, and what it was asked: (path, Range header) a request."""

    def __init__(self) -> None:
        self.body = BODY
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.break_after: list[int] = []  # bytes to send before breaking off, one entry a request
        self.status = 200
        self.location = ""
        self.length = True
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that refuses the answer closes the connection: that is what some tests are about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        wanted = self.headers.get("Range")
        site.asked.append((self.path, wanted))
        self.close_connection = True
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", site.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if site.status != 200:
            self.send_response(site.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if wanted and site.ranges and self.headers.get("If-Range") == site.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(site.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(site.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(site.body) - 1}/{len(site.body)}")
        else:
            self.send_response(200)
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.length:
            self.send_header("Content-Length", str(len(site.body) - start))
        self.end_headers()
        rest = site.body[start:]
        self.wfile.write(rest[: site.break_after.pop(0)] if site.break_after else rest)


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"site": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/data.json"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_whole_file_arrives_with_its_checksum_and_progress(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    got = fetch(site.url, tmp_path, SHA256.upper(), on_progress=lambda done, total: seen.append((done, total)))
    assert got.path == tmp_path / "data.json"
    assert got.path.read_bytes() == BODY
    assert (got.bytes, got.sha256, got.verified, got.resumed_bytes) == (len(BODY), SHA256, True, 0)
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"], "nothing else is left behind"


def test_an_unknown_checksum_is_recorded_but_not_called_verified(site: Site, tmp_path: Path) -> None:
    got = fetch(site.url, tmp_path / "x.json")
    assert (got.sha256, got.verified) == (SHA256, False)


def test_a_file_that_is_right_is_not_downloaded_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(BODY)
    assert fetch(site.url, tmp_path, SHA256).verified
    assert site.asked == []


def test_a_broken_connection_is_resumed_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.break_after = [300_000, 200_000]
    assert fetch(site.url, tmp_path, SHA256).path.read_bytes() == BODY
    assert [wanted for _, wanted in site.asked] == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_call_goes_on_from_the_part_file(site: Site, tmp_path: Path) -> None:
    site.break_after = [400_000, 0, 0, 0, 0, 0]
    with pytest.raises(DatasetError) as failed:
        fetch(site.url, tmp_path, SHA256)
    assert "400,000 bytes are kept: the same command goes on from there" in str(failed.value)
    assert not (tmp_path / "data.json").exists(), "half a file never has the file's name"
    got = fetch(site.url, tmp_path, SHA256)
    assert got.resumed_bytes == 400_000
    assert got.path.read_bytes() == BODY
    assert site.asked[-1][1] == "bytes=400000-"


def test_a_file_that_changed_in_between_is_fetched_from_the_start(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.json.part").write_bytes(b"old" * 1000)
    (tmp_path / "data.json.part.etag").write_text('"v0"')
    assert fetch(site.url, tmp_path, SHA256).path.read_bytes() == BODY
    assert len(site.asked) == 1, "the server answers 200 with everything, since If-Range does not match"


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_nothing_is_resumed(site: Site, tmp_path: Path, etag: str | None) -> None:
    site.etag = etag
    site.break_after = [300_000]
    assert fetch(site.url, tmp_path, SHA256).path.read_bytes() == BODY
    assert [wanted for _, wanted in site.asked] == [None, None]


def test_a_server_without_ranges_restarts(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.break_after = [300_000]
    assert fetch(site.url, tmp_path, SHA256).path.read_bytes() == BODY
    assert [wanted for _, wanted in site.asked] == [None, "bytes=300000-"]


def test_a_complete_part_file_only_needs_its_name(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.json.part").write_bytes(BODY)
    (tmp_path / "data.json.part.etag").write_text('"v1"')
    assert fetch(site.url, tmp_path, SHA256).path.read_bytes() == BODY


def test_a_part_file_that_is_too_long_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.json.part").write_bytes(BODY + b"more")
    (tmp_path / "data.json.part.etag").write_text('"v1"')
    assert fetch(site.url, tmp_path, SHA256).path.read_bytes() == BODY


@pytest.mark.parametrize("odd", ["", SHA256[:-1], f"sha256:{SHA256}"])
def test_a_checksum_that_is_none_is_told_before_the_download(site: Site, tmp_path: Path, odd: str) -> None:
    (tmp_path / "data.json.part").write_bytes(BODY[:100])
    with pytest.raises(DatasetError, match=r"--sha256 .*: takes 64 hexadecimal digits"):
        fetch(site.url, tmp_path, odd)
    assert (tmp_path / "data.json.part").read_bytes() == BODY[:100]


def test_a_wrong_checksum_deletes_the_download(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as wrong:
        fetch(site.url, tmp_path, "0" * 64)
    assert f"the download's sha256 is {SHA256}, not {'0' * 64}" in str(wrong.value)
    assert list(tmp_path.iterdir()) == []


def test_a_git_blob_checks_what_has_no_sha256(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = hashlib.sha1(b"blob %d\0" % len(BODY) + BODY).hexdigest()
    monkeypatch.setitem(KNOWN, "ours", KnownDataset(site.url, None, None, "CC0", git_blob=right))
    assert fetch("ours", tmp_path).verified
    monkeypatch.setitem(KNOWN, "ours", KnownDataset(site.url, None, None, "CC0", git_blob="0" * 40))
    with pytest.raises(DatasetError, match="git blob sha1"):
        fetch("ours", tmp_path)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_said_once_and_not_retried(site: Site, tmp_path: Path, status: int) -> None:
    site.status = status
    with pytest.raises(DatasetError) as refused:
        fetch(site.url, tmp_path)
    assert f"the server says {status}" in str(refused.value)
    assert len(site.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_known_size_catches_a_short_answer_without_a_length(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.length = False
    site.break_after = [100_000]
    monkeypatch.setitem(KNOWN, "ours", KnownDataset(site.url, SHA256, len(BODY), "CC0"))
    assert fetch("ours", tmp_path).bytes == len(BODY)
    assert len(site.asked) == 2


def test_redirects_stay_on_the_host_or_go_to_https(site: Site, tmp_path: Path) -> None:
    start = site.url.replace("data.json", "redirect")
    site.location = site.url
    assert fetch(start, tmp_path / "same.json", SHA256).verified
    for location in ("http://localhost:1/data.json", "file:///etc/hostname", "ftp://127.0.0.1/x"):
        site.location = location
        with pytest.raises(DatasetError) as refused:
            fetch(start, tmp_path / "other.json")
        assert "not followed" in str(refused.value) or "is not allowed" in str(refused.value)
        assert not (tmp_path / "other.json").exists()


def test_a_full_disk_is_said_before_the_download(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "DISK_RESERVE_BYTES", 1 << 62)
    with pytest.raises(DatasetError) as full:
        fetch(site.url, tmp_path)
    assert f"{len(BODY):,} bytes are still to come" in str(full.value)


def test_proxies_of_the_environment_are_not_used(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert fetch(site.url, tmp_path, SHA256).verified
    port = site.url.split(":")[2].split("/")[0]
    fetch("http://example.invalid/file.json", tmp_path, SHA256, proxy=f"http://127.0.0.1:{port}")
    assert site.asked[-1][0] == "http://example.invalid/file.json", "the caller's proxy is asked for the whole URL"


@pytest.mark.parametrize("name", ["gpt", "file:///etc/passwd", "ftp://x/y", "http://", "http://[bad/x"])
def test_what_is_no_known_name_and_no_url(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as unknown:
        fetch(name, tmp_path)
    assert "not a known data set (sharegpt, alpaca) and no http or https URL" in str(unknown.value)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as gone:
        fetch("http://127.0.0.1:9/data.json", tmp_path)
    assert "the download failed: " in str(gone.value)


def test_a_folder_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError) as broken:
        fetch(site.url, tmp_path / "file" / "data.json")
    assert "can't be written" in str(broken.value)


def test_the_known_data_sets_are_pinned_and_have_a_licence_note() -> None:
    for name, known in KNOWN.items():
        assert known.url.startswith("https://")
        assert "/main/" not in known.url, "a branch moves; a revision does not"
        assert known.sha256 or known.git_blob
        assert licence_note(name)
    assert licence_note("https://example.org/x.json") == ""


def test_a_destination_with_a_slash_is_a_folder(site: Site, tmp_path: Path) -> None:
    assert data.main(["fetch", f"{site.url}", "--to", f"{tmp_path}/new/sub/"]) == 0
    assert (tmp_path / "new" / "sub" / "data.json").read_bytes() == BODY


def test_a_folder_that_can_not_be_made_is_one_sentence(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match="can't be made: Not a directory"):
        data.main(["fetch", f"{site.url}", "--to", f"{tmp_path}/file/sub/"])
