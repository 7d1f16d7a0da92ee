"""The order of starting, waiting, and the lock between `up` and `down`."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from localcluster import up
from localcluster.components import EXTENSIONS, Cluster, Component, Stage, load_extensions
from localcluster.errors import ClusterError
from localcluster.node import kubelet_config
from localcluster.processes import processes_of
from tests.unit.localcluster.builders import cluster_in


class Noted(Component):
    """Writes down when it is prepared; becomes ready at the third question."""

    def __init__(self, name: str, stage: Stage, events: list[str]) -> None:
        self.name, self.stage, self.events, self.asked = name, stage, events, 0

    def prepare(self, cluster: Cluster) -> None:
        self.events.append(f"prepare {self.name}")

    def ready(self, cluster: Cluster) -> str:
        self.asked += 1
        if self.asked == 1:
            raise ConnectionRefusedError("not yet")
        if self.asked == 2:
            return "half way"
        self.events.append(f"ready {self.name}")
        return ""


def test_a_stage_starts_when_the_one_before_it_is_ready(tmp_path: Path) -> None:
    events: list[str] = []
    up.start_all(cluster_in(tmp_path), [Noted("nodes", Stage.CONTROL, events), Noted("api", Stage.API, events)])
    assert events == ["prepare api", "ready api", "prepare nodes", "ready nodes"]


def test_a_component_that_never_becomes_ready_is_named_with_what_is_missing_and_its_log(tmp_path: Path) -> None:
    class Never(Component):
        name = "never"
        ready_seconds = 0.0

        def ready(self, cluster: Cluster) -> str:
            return "no heartbeat"

    cluster = cluster_in(tmp_path)
    with pytest.raises(ClusterError, match=r"never is not ready after 0 s: no heartbeat\. See .*/logs/never\.log"):
        up.wait_ready(cluster, processes_of(cluster.layout), Never())


def test_the_error_of_one_component_waits_for_the_others_to_end() -> None:
    done: list[str] = []

    def fails() -> None:
        raise ClusterError("broken")

    with pytest.raises(ClusterError, match="broken"):
        up.in_parallel([fails, lambda: done.append("other")])
    assert done == ["other"]


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    cluster = cluster_in(tmp_path)
    for _ in range(2):
        with pytest.raises(ClusterError), up.only_one(cluster):
            raise ClusterError("broken")


def test_two_ups_at_once_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_in(tmp_path)
    ticks = iter(range(0, 1000, 40))
    monkeypatch.setattr(up.time, "monotonic", lambda: next(ticks))
    with open(cluster.layout.lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ClusterError, match="Another `up` or `down` is running"), up.only_one(cluster):
            pass


def test_all_components_have_names_of_their_own() -> None:
    names = [component.name for component in up.all_components("local")]
    assert len(names) == len(set(names))
    assert all(names)


def test_a_module_that_is_not_there_adds_nothing() -> None:
    assert load_extensions(["localcluster.not_there"]).components == ()


def test_every_named_extension_adds_something() -> None:
    for name in EXTENSIONS:
        found = load_extensions([name])
        assert found.components or found.verbs or found.settled, name


def test_each_kubelet_offers_half_of_the_machine_and_keeps_to_its_own_group(tmp_path: Path) -> None:
    layout = cluster_in(tmp_path).layout
    configs = [kubelet_config(node, layout.keys) for node in layout.nodes]
    for node, config in zip(layout.nodes, configs, strict=True):
        assert config["cgroupRoot"] == node.cgroup
        assert config["address"] == node.address
        assert config["systemReserved"]["cpu"].endswith("m")
    assert configs[0]["containerRuntimeEndpoint"] != configs[1]["containerRuntimeEndpoint"]
