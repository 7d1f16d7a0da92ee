"""Data by https and from Hugging Face repositories, against servers on loopback.

The Hub is a small fake of three of its addresses, declared in `Hub`: revision, tree and resolve. The web server cuts
connections in the middle, as told.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from kubeformer.contract.base import Location
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.fetch import fetch
from kubeformer_runtime.data.fetch_file import fetch_file
from kubeformer_runtime.data.fetch_http import web_file
from kubeformer_runtime.data.read import find_files

CONTENT = bytes(range(256)) * 8_000  # 2 MB


class Web(BaseHTTPRequestHandler):
    """One file at /a.jsonl with an ETag; `cuts` are the bytes after which each answer breaks off."""

    content, tag, cuts, status = CONTENT, '"one"', list[int](), 200
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Range"]))
        if self.status != 200:
            self.send_error(self.status)
            return
        if self.headers["If-None-Match"] == self.tag:
            self.send_response(304)
            self.end_headers()
            return
        begin = 0
        if self.headers["Range"] and self.headers["If-Range"] == self.tag:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(self.content) - 1}/{len(self.content)}")
        self.answer(self.content[begin:], self.tag)

    def answer(self, content: bytes, tag: str | None) -> None:
        self.send_header("Content-Length", str(len(content)))
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(content)
        self.wfile.write(content[:cut])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Hub(Web):
    """Dataset org/mail, private to the token "secret": a small file that git keeps, a large one elsewhere."""

    files: ClassVar = {
        "data/a.jsonl": b'{"text": "one"}\n',
        "data/big.jsonl": b'{"text": "two"}\n' * 1000,
        "README.md": b"#",
    }
    commit = "c" * 40
    elsewhere: list[str | None]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Range"]))
        if self.path.startswith("/elsewhere/"):
            self.elsewhere.append(self.headers["Authorization"])
            self.send_response(200)
            self.answer(self.files["data/big.jsonl"], None)
        elif self.headers["Authorization"] != "Bearer secret":
            self.send_error(401)
        elif self.path == "/api/datasets/org/mail/revision/main":
            self.json({"sha": self.commit})
        elif self.path == f"/api/datasets/org/mail/tree/{self.commit}?recursive=true":
            self.json([self.entry(name) for name in self.files])
        elif self.path == f"/datasets/org/mail/resolve/{self.commit}/data/big.jsonl":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere/1")
            self.end_headers()
        elif self.path.startswith(f"/datasets/org/mail/resolve/{self.commit}/"):
            self.send_response(200)
            self.answer(self.files[self.path.partition(self.commit + "/")[2]], '"x"')
        else:
            self.send_error(404)

    def json(self, document: object) -> None:
        self.send_response(200)
        self.answer(json.dumps(document).encode(), None)

    def entry(self, name: str) -> dict[str, object]:
        content = self.files[name]
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git}
        if "big" in name:
            entry |= {"size": 130, "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}}
        return entry


@contextmanager
def serving(kind: type[Web], **behaviour: object) -> Iterator[tuple[type[Web], str]]:
    handler = type("Handler", (kind,), {"asked": [], "elsewhere": [], **behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield handler, f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def web(root: Path, host: str, digest: str | None = None) -> Location:
    return Location(uri=f"http://{host}/a.jsonl", path=f"{root}/http/{host}/a.jsonl", digest=digest)


def no_beat() -> None:
    """Nobody listens."""


def test_broken_connections_go_on_where_they_broke(tmp_path: Path) -> None:
    with serving(Web, cuts=[700_000, 1, 600_000]) as (handler, host):
        fetch(web(tmp_path, host), "data", no_beat)
    assert Path(web(tmp_path, host).path).read_bytes() == CONTENT
    ranges = [int(asked[1].removeprefix("bytes=").removesuffix("-")) for asked in handler.asked[1:] if asked[1]]
    assert ranges == [700_000, 700_001, 1_300_001]


def test_a_server_that_never_gets_further_is_given_up_and_nothing_is_used(tmp_path: Path) -> None:
    with serving(Web, cuts=[0] * 100) as (_, host):
        place = web(tmp_path, host)
        remote = web_file(place.uri, Path(place.path), "data", None)
        with pytest.raises(DataError, match="cannot be read to its end: the connection broke after 0"):
            fetch_file(remote, "data", no_beat, wait=lambda _: None)
    assert not Path(place.path).exists()


def test_a_file_that_changes_between_two_parts_is_read_from_its_beginning(tmp_path: Path) -> None:
    with serving(Web, cuts=[500_000]) as (handler, host):

        def change(_: object) -> None:
            handler.content, handler.tag = b"new content, and shorter", '"two"'

        fetch(web(tmp_path, host), "data", no_beat, change)
    assert Path(web(tmp_path, host).path).read_bytes() == b"new content, and shorter"


def test_what_is_here_is_asked_about_and_not_read_again(tmp_path: Path) -> None:
    with serving(Web) as (handler, host):
        transfers: list[object] = []
        for _ in range(2):
            fetch(web(tmp_path, host), "data", no_beat, transfers.append)
        count = len(transfers)
        handler.content, handler.tag = b"newer", '"two"'
        fetch(web(tmp_path, host), "data", no_beat, transfers.append)
    assert len(transfers) == count + 1
    assert Path(web(tmp_path, host).path).read_bytes() == b"newer"


def test_a_digest_that_was_promised_is_kept(tmp_path: Path) -> None:
    with serving(Web) as (_, host):
        good = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        fetch(web(tmp_path / "good", host, good), "data", no_beat)
        with pytest.raises(DataError, match="has the checksum") as error:
            fetch(web(tmp_path / "bad", host, f"sha256:{'0' * 64}"), "data", no_beat)
    assert error.value.reason == Reason.DATA_INVALID
    assert not Path(web(tmp_path / "bad", host).path).exists()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(404, r"there is nothing at .* correct data\.test\.uri"), (403, r"is refused \(403\)"), (400, "answers 400")],
)
def test_refusals_name_the_field_and_what_to_do(tmp_path: Path, status: int, expected: str) -> None:
    with serving(Web, status=status) as (_, host), pytest.raises(DataError, match=expected) as error:
        fetch(web(tmp_path, host), "data.test", no_beat)
    assert error.value.message.startswith("data.test: ")


def hub(root: Path, rest: str) -> Location:
    return Location(uri=f"hf://{rest}", path=f"{root}/hf/{rest}")


def test_files_of_a_repository_come_at_one_commit_with_their_checksums(tmp_path: Path) -> None:
    with serving(Hub) as (handler, host):
        environment = {"HF_ENDPOINT": f"http://{host}", "HF_TOKEN": "secret"}
        place = hub(tmp_path, "datasets/org/mail/data/*.jsonl")
        fetch(place, "data", no_beat, environment=environment)
        found = find_files(place, "data")
        assert [path.name for path in found] == ["a.jsonl", "big.jsonl"]
        assert [path.read_bytes() for path in found] == [handler.files["data/a.jsonl"], handler.files["data/big.jsonl"]]
        assert handler.elsewhere == [None]  # the token stays with the Hub
        before = len(handler.asked)
        fetch(place, "data", no_beat, environment=environment)
        assert len(handler.asked) == before + 2  # revision and tree, no file again


def test_a_file_that_is_not_what_the_repository_lists_is_refused(tmp_path: Path) -> None:
    class Lying(Hub):
        def entry(self, name: str) -> dict[str, object]:
            return super().entry(name) | {"oid": "0" * 40}

    with serving(Lying) as (_, host):
        environment = {"HF_ENDPOINT": f"http://{host}", "HF_TOKEN": "secret"}
        place = hub(tmp_path, "datasets/org/mail/data/a.jsonl")
        with pytest.raises(DataError, match="has the checksum git:"):
            fetch(place, "data", no_beat, environment=environment)


@pytest.mark.parametrize(
    ("rest", "token", "expected"),
    [
        ("datasets/org/mail", "", "set HF_TOKEN in pod.env"),
        ("datasets/org/spam", "secret", "there is nothing at hf://datasets/org/spam"),
        ("datasets/org/mail/b.csv", "secret", "it has data/a.jsonl, data/big.jsonl, README.md"),
    ],
)
def test_a_repository_that_cannot_be_read_says_why(tmp_path: Path, rest: str, token: str, expected: str) -> None:
    with serving(Hub) as (_, host), pytest.raises(DataError) as error:
        fetch(hub(tmp_path, rest), "data", no_beat, environment={"HF_ENDPOINT": f"http://{host}", "HF_TOKEN": token})
    assert expected in error.value.message
