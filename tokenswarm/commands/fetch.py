"""Downloads a data set: known names or any http(s) URL, with resume, checksum and an atomic end. Blocking; no gevent.

Writes DEST.part beside DEST and renames it when it is whole and its checksum is right, so DEST is never half a file. A
broken download goes on where it stopped (Range + If-Range on the ETag). TLS is always verified; a proxy is used only
where the caller passes one. Raises DatasetError, one sentence each.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import msgspec

from tokenswarm.errors import DatasetError

TIMEOUT_S = 30.0  # for connecting and for each read: a stalled mirror ends the download, it does not hang it
ATTEMPTS = 5  # broken connections in a row without a single new byte
BLOCK_BYTES = 1 << 20
DISK_RESERVE_BYTES = 64 << 20  # left free beside the file itself

OnProgress = Callable[[int, int | None], None]
"""Called with (bytes on disk, bytes in all or None where the server does not say)."""


class KnownDataset(msgspec.Struct, frozen=True):
    url: str
    sha256: str | None
    size: int | None
    licence: str
    git_blob: str | None = None  # the sha1 that git gives the file, where the sha256 is not published


KNOWN = {
    "sharegpt": KnownDataset(
        "https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered/resolve/"
        "bcd32a724d8460ebe14e1d05b0195e30e9a46cb1/ShareGPT_V3_unfiltered_cleaned_split.json",
        "35f0e213ce091ed9b9af2a1f0755e9d39f9ccec34ab281cd4ca60d70f6479ba4",
        672_837_942,
        "ShareGPT V3: conversations that users shared from a chat service. The uploader states Apache-2.0, but nobody "
        "has shown the rights to the texts, and they hold personal data: use it to test, don't pass it on.",
    ),
    "alpaca": KnownDataset(
        "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/761dc5bfbdeeffa89b8bff5d038781a4055f796a/"
        "alpaca_data.json",
        None,
        None,
        "Stanford Alpaca: CC BY-NC 4.0, for research and other non-commercial use.",
        git_blob="3779ddbc040543ab1834ef216c983d6fcc06cc9a",  # git ls-tree 761dc5bf alpaca_data.json
    ),
}


class Fetched(msgspec.Struct, frozen=True):
    """What came: the file, its size and sha256, and where from. `resumed_bytes` were there from an earlier try."""

    path: Path
    url: str
    bytes: int
    sha256: str
    verified: bool  # a checksum was known beforehand and is right
    resumed_bytes: int


class _Response(Protocol):
    status: int
    headers: http.client.HTTPMessage

    def read(self, amount: int) -> bytes: ...


def licence_note(name_or_url: str) -> str:
    """The sentence to show before a download starts; "" for a URL that is not known."""
    known = KNOWN.get(name_or_url)
    return known.licence if known else ""


def fetch(
    name_or_url: str,
    dest: Path,
    sha256: str | None = None,
    on_progress: OnProgress | None = None,
    proxy: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Fetched:
    """Download to `dest` (a file, or a folder to put it in). A `dest` that is already right is kept as it is.

    `sha256`: 64 hex digits, checked before the file gets its name; the known one is used for a known name.
    """
    known = KNOWN.get(name_or_url)
    url = known.url if known else _checked_url(name_or_url)
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DatasetError(f"--sha256 {sha256[:80]}: takes 64 hexadecimal digits, as `sha256sum` writes them")
    wanted = (sha256 or (known.sha256 if known else None) or "").lower() or None
    blob = known.git_blob if known else None
    path = _target(dest, url)
    if path.exists() and wanted is not None and _sha256_of(path) == wanted:
        return Fetched(path, url, path.stat().st_size, wanted, True, 0)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.stat().st_size if part.exists() else 0
        _download(_opener(proxy), url, part, on_progress, timeout_s, known.size if known else None)
        digest = _sha256_of(part)
        if wanted is not None:
            _refuse_other(url, part, "sha256", digest, wanted)
        elif blob is not None:
            _refuse_other(url, part, "git blob sha1", _git_blob_of(part), blob)
        part.replace(path)
        _etag_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(f"{path}: can't be written: {error.strerror or error}") from None
    return Fetched(path, url, path.stat().st_size, digest, bool(wanted or blob), resumed)


def _checked_url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError:
        parts = urllib.parse.SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DatasetError(f"{text}: not a known data set ({', '.join(KNOWN)}) and no http or https URL")
    return text


def _target(dest: Path, url: str) -> Path:
    if not dest.is_dir():
        return dest
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    return dest / (name or "dataset.json")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect to https, or within the same host; never from https down to http elsewhere, never to file:."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        same_host = (old.scheme, old.hostname) == (new.scheme, new.hostname)
        if new.scheme != "https" and not same_host:
            raise DatasetError(f"{req.full_url}: redirected to {newurl}, which is not https; not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(proxy: str | None) -> urllib.request.OpenerDirector:
    """An opener that ignores the environment's proxies and verifies TLS (urllib's own default context)."""
    proxies = {"http": proxy, "https": proxy} if proxy else {}
    return urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _SafeRedirects())


def _download(
    opener: urllib.request.OpenerDirector,
    url: str,
    part: Path,
    on_progress: OnProgress | None,
    timeout_s: float,
    size: int | None,
) -> None:
    """Fill `part` until it is whole, going on after each break. DatasetError where it can't be."""
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        problem = ""
        try:
            with opener.open(_request(url, part, have), timeout=timeout_s) as response:
                if _receive(response, url, part, have, on_progress, size):
                    return
                problem = "the connection was closed early"
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and have and error.headers.get("Content-Range") == f"bytes */{have}":
                    return  # all of it was there already, and only the rename was missing
                if error.code == 416 and have:
                    part.unlink()  # longer than the file is now
                    problem = "the server refused to go on"
                elif error.code < 500:
                    raise DatasetError(f"{url}: the server says {error.code} {error.reason}") from None
                else:
                    problem = f"the server says {error.code} {error.reason}"
        except urllib.error.URLError as error:
            problem = str(error.reason)
        except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            problem = str(error) or type(error).__name__
        now = part.stat().st_size if part.exists() else 0
        failures = 0 if now > have else failures + 1
        if failures >= ATTEMPTS or (not now and not have):
            kept = f" ({now:,} bytes are kept: the same command goes on from there)" if now else ""
            raise DatasetError(f"{url}: the download failed: {problem}{kept}")


def _request(url: str, part: Path, have: int) -> urllib.request.Request:
    headers = {"User-Agent": "tokenswarm", "Accept-Encoding": "identity"}
    etag = _etag_file(part)
    if have and etag.exists():  # without an ETag nothing says that it is still the same file: from the start
        headers["Range"] = f"bytes={have}-"
        headers["If-Range"] = etag.read_text(encoding="ascii")
    return urllib.request.Request(url, headers=headers)


def _receive(
    response: _Response, url: str, part: Path, have: int, on_progress: OnProgress | None, size: int | None
) -> bool:
    """Write one response to `part`; True when the file is whole, False when the connection broke before."""
    going_on = response.status == 206
    if going_on and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
        raise DatasetError(f"{url}: the server sent another range than was asked for; delete {part} and try again")
    done = have if going_on else 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length is not None and length.isdigit() else size
    _check_disk(part, total, done)
    _remember_etag(response, part)
    with part.open("ab" if going_on else "wb") as file:
        if on_progress is not None:
            on_progress(done, total)
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            done += len(block)
            if on_progress is not None:
                on_progress(done, total)
    return total is None or done >= total


def _check_disk(part: Path, total: int | None, done: int) -> None:
    if total is None:
        return
    free = shutil.disk_usage(part.parent).free
    if free < total - done + DISK_RESERVE_BYTES:
        need = total - done
        raise DatasetError(f"{part.parent}: {need:,} bytes are still to come, but only {free:,} are free on the disk")


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember_etag(response: _Response, part: Path) -> None:
    etag = response.headers.get("ETag") or ""
    if (
        etag.startswith('"') and etag.isascii()
    ):  # a weak tag (W/) promises no equal bytes and is not allowed in If-Range
        _etag_file(part).write_text(etag, encoding="ascii")
    else:
        _etag_file(part).unlink(missing_ok=True)


def _refuse_other(url: str, part: Path, kind: str, came: str, wanted: str) -> None:
    if came == wanted:
        return
    part.unlink()
    _etag_file(part).unlink(missing_ok=True)
    raise DatasetError(f"{url}: the download's {kind} is {came}, not {wanted}; it was deleted: try again")


def _git_blob_of(path: Path) -> str:
    """What `git hash-object` says: sha1 over a header with the size, then the bytes. For identity, not for security."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
