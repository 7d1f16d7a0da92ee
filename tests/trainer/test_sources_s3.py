"""Data in a bucket, against a real S3 server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeformer.contract.base import Location
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.fetch import fetch
from kubeformer_runtime.data.read import find_files
from tests.trainer.s3_server import S3Server, s3_server

OBJECTS = {
    "mail/a-1.jsonl": b'{"text": "one"}\n' * 100_000,
    "mail/a-2.jsonl": b'{"text": "two"}\n',
    "mail/old/a-0.jsonl": b'{"text": "zero"}\n',
    "mail/notes.pdf": b"no data",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        client = server.client()
        client.create_bucket(Bucket="data")
        for key, content in OBJECTS.items():
            client.put_object(Bucket="data", Key=key, Body=content)
        yield server


@pytest.fixture(autouse=True)
def environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def at(root: Path, uri: str) -> Location:
    return Location(uri=uri, path=f"{root}/s3/{uri.removeprefix('s3://')}")


def names(root: Path, uri: str) -> list[str]:
    place = at(root, uri)
    fetch(place, "data", lambda: None)
    return [str(path.relative_to(root / "s3/data")) for path in find_files(place, "data")]


def test_an_object_comes_whole_with_progress_and_beats(tmp_path: Path) -> None:
    seen, beats = [], []
    place = at(tmp_path, "s3://data/mail/a-1.jsonl")
    fetch(place, "data", lambda: beats.append(1), seen.append)
    assert Path(place.path).read_bytes() == OBJECTS["mail/a-1.jsonl"]
    assert [item.done for item in seen] == sorted({item.done for item in seen})
    assert (seen[-1].done, seen[-1].total) == (1_600_000, 1_600_000)
    assert len(beats) > len(seen)


def test_globs_and_prefixes_find_what_they_would_find_on_a_disk(tmp_path: Path) -> None:
    assert names(tmp_path / "a", "s3://data/mail/a-*.jsonl") == ["mail/a-1.jsonl", "mail/a-2.jsonl"]
    assert names(tmp_path / "b", "s3://data/mail/**/a-[02].jsonl") == ["mail/a-2.jsonl", "mail/old/a-0.jsonl"]
    assert names(tmp_path / "c", "s3://data/mail") == ["mail/a-1.jsonl", "mail/a-2.jsonl", "mail/old/a-0.jsonl"]


def test_what_is_here_is_not_fetched_again_until_it_changes_there(tmp_path: Path, server: S3Server) -> None:
    place = at(tmp_path, "s3://data/news.jsonl")
    transfers: list[object] = []
    for content, expected in ((b"{}\n", 1), (b"{}\n", 1), (b"[]\n", 2)):
        server.client().put_object(Bucket="data", Key="news.jsonl", Body=content)
        fetch(place, "data", lambda: None, transfers.append)
        assert Path(place.path).read_bytes() == content
        assert len(transfers) == expected


def test_a_download_goes_on_where_another_process_left_it(tmp_path: Path) -> None:
    place = at(tmp_path, "s3://data/mail/a-1.jsonl")

    class Killed(BaseException):
        pass

    def kill(progress: object) -> None:
        if progress.done > 500_000:  # type: ignore[attr-defined]
            raise Killed

    with pytest.raises(Killed):
        fetch(place, "data", lambda: None, kill)
    assert not Path(place.path).exists()
    assert len(list(Path(place.path).parent.glob(".*.partial"))) == 1
    seen = []
    fetch(place, "data", lambda: None, seen.append)
    assert seen[0].done > 500_000
    assert Path(place.path).read_bytes() == OBJECTS["mail/a-1.jsonl"]


def test_a_file_that_was_damaged_on_its_way_is_never_used(tmp_path: Path) -> None:
    place = at(tmp_path, "s3://data/mail/a-1.jsonl")

    def damage(progress: object) -> None:
        if progress.done == progress.total:  # type: ignore[attr-defined]
            partial = next(Path(place.path).parent.glob(".*.partial"))
            with partial.open("r+b") as file:
                file.write(b"X")

    with pytest.raises(DataError, match=r"has the checksum md5:.*nothing of it is used") as error:
        fetch(place, "data", lambda: None, damage)
    assert error.value.reason == Reason.DATA_INVALID
    assert not Path(place.path).exists()


@pytest.mark.parametrize(
    ("uri", "variables", "expected"),
    [
        ("s3://nothing-here/a.jsonl", {}, "data: there is no bucket nothing-here; correct data.uri"),
        ("s3://data/spam.jsonl", {}, "data: no object matches s3://data/spam.jsonl"),
        ("s3://data/mail/b-*.jsonl", {}, "below s3://data/mail/b- there is nothing"),
        ("s3://data/mail/a-1.jsonl", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "access to s3://data/mail/a-1.jsonl is ref"),
        ("s3://data/mail/a-1.jsonl", {"AWS_ACCESS_KEY_ID": "nobody"}, "check AWS_ACCESS_KEY_ID"),
        ("s3://data/mail/a-1.jsonl", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_what_goes_wrong_is_said_with_the_field_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError) as error:
        fetch(at(tmp_path, uri), "data", lambda: None)
    assert error.value.reason == Reason.DATA_NOT_FOUND
    assert expected in error.value.message


def test_missing_credentials_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DataError, match=r"no credentials .* set AWS_ACCESS_KEY_ID"):
        fetch(at(tmp_path, "s3://data/mail/a-1.jsonl"), "data", lambda: None)
