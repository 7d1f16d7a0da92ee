"""Files by HTTPS, and files of Hugging Face repositories through the Hub's tree and resolve addresses.

A file at an address is resumed with Range and If-Range (RFC 9110) where the server gives a strong ETag. A file of a
repository is read at the commit that the revision means now; its size and checksum come with the list of files:
SHA-256 of large files, git's own checksum of the others. HF_TOKEN and HF_ENDPOINT mean what they mean to
huggingface_hub.
"""

import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.fetch_file import (
    CHUNK_BYTES,
    Body,
    BrokenTransferError,
    ChangedError,
    Remote,
    is_disk_full,
)
from kubeformer_runtime.data.glob_keys import matches

TIMEOUT_SECONDS = 30.0
HUB = "https://huggingface.co"
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


def web_file(uri: str, path: Path, field: str, digest: str | None) -> Remote:
    """The file at an https address."""
    return Remote(uri, path, partial(_open, _quoted(uri), uri, field, {}, pinned=False), digest=digest)


def hub_files(uri: str, rest: str, root: Path, field: str, environment: Mapping[str, str]) -> list[Remote]:
    """The files of hf://[datasets/]ORG/NAME[@REVISION][/PATH], below `root`; PATH may be a directory or a glob.

    Raises DataError where there are none, or the Hub refuses.
    """
    whole = rest
    kind, rest = ("datasets", rest.removeprefix("datasets/")) if rest.startswith("datasets/") else ("models", rest)
    match = re.fullmatch(r"([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?", rest)
    if match is None:
        raise DataError(Reason.DATA_NOT_FOUND, f"{field}: {uri} is not hf://[datasets/]ORG/NAME[@REVISION][/PATH]")
    name, revision, wanted = match[1], match[2] or "main", match[3] or ""
    endpoint = environment.get("HF_ENDPOINT", HUB).rstrip("/")
    token = environment.get("HF_TOKEN", "").strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    api = f"{endpoint}/api/{kind}/{name}"
    about, _ = _json(f"{api}/revision/{urllib.parse.quote(revision, safe='')}", uri, field, headers)
    commit = str(about["sha"])
    entries: list[Any] = []
    page: str | None = f"{api}/tree/{commit}?recursive=true"
    while page is not None:
        more, page = _json(page, uri, field, headers)
        entries += more
    files = [entry for entry in entries if entry["type"] == "file" and _wanted(entry["path"], wanted)]
    if not files:
        known = ", ".join(entry["path"] for entry in entries[:8])
        raise DataError(
            Reason.DATA_NOT_FOUND, f"{field}: nothing in {kind[:-1]} {name} at {revision} matches {uri}; it has {known}"
        )
    place = root / whole.removesuffix(wanted).rstrip("/")
    prefix = f"{endpoint}/datasets/{name}" if kind == "datasets" else f"{endpoint}/{name}"
    remotes = []
    for entry in files:
        key, large = entry["path"], entry.get("lfs")
        remotes.append(
            Remote(
                f"hf://{'datasets/' if kind == 'datasets' else ''}{name}@{commit[:12]}/{key}",
                place / key,
                partial(_open, _quoted(f"{prefix}/resolve/{commit}/{key}"), uri, field, headers, pinned=True),
                size=large["size"] if large else entry["size"],
                version=large["oid"] if large else entry["oid"],
                digest=f"sha256:{large['oid']}" if large else f"git:{entry['oid']}",
            )
        )
    return remotes


def _wanted(path: str, wanted: str) -> bool:
    if any(step in ("", ".", "..") for step in path.split("/")):
        return False  # no place below the directory
    return not wanted or path == wanted or path.startswith(wanted + "/") or matches(wanted, path)


def _quoted(url: str) -> str:
    return urllib.parse.quote(url, safe=":/?&=%@+,;~")


@contextmanager
def _answer(
    url: str, uri: str, field: str, headers: Mapping[str, str], extra: Mapping[str, str]
) -> Iterator[http.client.HTTPResponse]:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **extra})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a token is not for the store that the Hub redirects to
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            yield response
    except urllib.error.HTTPError as error:
        raise _refusal(error.code, uri, field) from error
    except (OSError, http.client.HTTPException) as error:
        if is_disk_full(error):
            raise
        raise BrokenTransferError(str(error) or type(error).__name__) from error


def _refusal(code: int, uri: str, field: str) -> Exception:
    if code in _BUSY:
        return BrokenTransferError(f"the server answers {code}")
    if code in (412, 416):
        return ChangedError()
    if code in (401, 403):
        what = (
            "set HF_TOKEN in pod.env, and accept the terms where it is gated"
            if uri.startswith("hf:")
            else ("make it public, or take it through a claim or a bucket")
        )
        return DataError(Reason.DATA_NOT_FOUND, f"{field}: access to {uri} is refused ({code}); {what}")
    if code in (404, 410):
        return DataError(Reason.DATA_NOT_FOUND, f"{field}: there is nothing at {uri} ({code}); correct {field}.uri")
    return DataError(Reason.DATA_NOT_FOUND, f"{field}: the server of {uri} answers {code}")


@contextmanager
def _open(
    url: str,
    uri: str,
    field: str,
    headers: Mapping[str, str],
    offset: int,
    version: str | None,
    fetched: bool,
    *,
    pinned: bool,
) -> Iterator[Body | None]:
    """`pinned`: what lies at the address never changes, so that the version need not be asked about."""
    extra = {}
    if fetched and version:
        extra["If-None-Match"] = version
    elif offset and version:
        extra = {"Range": f"bytes={offset}-"} | ({} if pinned else {"If-Range": version})
    try:
        with _answer(url, uri, field, headers, extra) as response:
            tag = response.headers.get("ETag", "")
            found = version if pinned else tag if tag.startswith('"') else None  # a weak tag does not name bytes
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if response.status == 206 and span:
                begin, size = int(span[1]), None if span[2] == "*" else int(span[2])
            else:
                length = response.headers.get("Content-Length")
                begin, size = 0, int(length) if length is not None else None
            yield Body(begin, size, found, _chunks(response))
    except (DataError, BrokenTransferError) as error:
        if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 304:
            yield None
            return
        raise


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    read: Callable[[int], bytes] = response.read
    while chunk := read(CHUNK_BYTES):
        yield chunk


def _json(url: str, uri: str, field: str, headers: Mapping[str, str]) -> tuple[Any, str | None]:
    """(the document, the address of the next page)."""
    for attempt in range(4):
        try:
            with _answer(url, uri, field, headers, {}) as response:
                document = json.loads(response.read())
                following = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link", ""))
                return document, following[1] if following else None
        except (BrokenTransferError, ValueError) as error:
            if attempt == 3:
                raise DataError(Reason.DATA_NOT_FOUND, f"{field}: {uri} cannot be looked up: {error}") from error
    raise AssertionError("unreachable")
