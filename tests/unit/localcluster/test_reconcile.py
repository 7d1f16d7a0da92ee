"""The loop of the add-ons: it looks at the start, after each change and after failures, and does not lose a ring."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from localcluster.addons.buildah import call
from localcluster.addons.reconcile import run
from localcluster.errors import ClusterError
from localcluster.kube import ApiError, Object


class Enough(Exception):
    """Ends a loop that never returns."""


class Source:
    """An API server whose watches hand on what the test puts in."""

    def __init__(self, *events: Object) -> None:
        self.events = events
        self.began = 0
        self.over = threading.Event()

    def get(self, path: str) -> Object:
        if self.over.is_set():
            raise OSError
        return {"metadata": {"resourceVersion": "1"}, "items": []}

    def watch(self, path: str, version: str) -> Iterator[Object]:
        self.began += 1
        if self.began == 1:
            yield from self.events
        self.over.wait(60)
        raise OSError  # from now on its thread only sleeps


def looks(source: Source, wanted: int, fails: int = 0) -> int:
    """Runs the loop until it has looked so often; the first looks fail."""
    seen = 0

    def look(api: object) -> None:
        nonlocal seen
        seen += 1
        if seen <= fails:
            raise ApiError(503, "ServiceUnavailable", "not now")
        if seen == wanted:
            raise Enough

    with pytest.raises(Enough):
        run(source, ("/things",), look, longest=30.0)  # type: ignore[arg-type]
    source.over.set()
    return seen


def test_it_looks_once_at_the_start_without_any_event() -> None:
    assert looks(Source(), wanted=1) == 1


def test_it_looks_again_after_a_failure_although_nothing_happens() -> None:
    assert looks(Source(), wanted=3, fails=2) == 3


def test_a_change_rings() -> None:
    source = Source()
    change = threading.Event()

    def watch(path: str, version: str) -> Iterator[Object]:
        assert change.wait(60)
        yield {"type": "MODIFIED"}
        source.over.wait(60)
        raise OSError  # from now on its thread only sleeps

    source.watch = watch  # type: ignore[method-assign]
    seen = 0

    def look(api: object) -> None:
        nonlocal seen
        seen += 1
        # The first looks are the start's and the watch's own ring; the change comes after them.
        if change.is_set():
            raise Enough
        threading.Timer(0.3, change.set).start()

    with pytest.raises(Enough):
        run(source, ("/things",), look, longest=30.0)  # type: ignore[arg-type]
    source.over.set()
    assert seen >= 2


def test_a_program_that_fails_is_quoted_with_its_last_words() -> None:
    with pytest.raises(ClusterError, match="no such thing"):
        call(["sh", "-c", "echo no such thing >&2; exit 3"])
    heard: list[str] = []
    with pytest.raises(ClusterError, match="the end"):
        call(["sh", "-c", "echo the beginning; echo the end; exit 3"], said=heard.append)
    assert heard == ["the beginning", "the end"]
    with pytest.raises(ClusterError, match="cannot be run"):
        call(["/not/there"])
