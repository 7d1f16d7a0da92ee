"""A rank's heartbeat arrives where a launcher listens, and never gets in the way where none does."""

import json
import socket
import threading
from pathlib import Path

from kubeformer.contract.progress import Progress
from kubeformer_runtime.heartbeat import Heartbeat
from kubeformer_runtime.launcher.supervisor import Ears


def heard(ears: Ears, count: int) -> list[int]:
    """Steps of the next `count` heartbeats."""
    lines: list[bytes] = []
    while len(lines) < count:
        lines += ears.listen(30.0)
    return [json.loads(line)["step"] for line in lines]


def test_heartbeats_arrive_in_order(tmp_path: Path) -> None:
    ears = Ears(tmp_path / "s")
    heartbeat = Heartbeat(str(tmp_path / "s"))
    assert all(heartbeat.send(Progress(step=step)) for step in range(3))
    assert heard(ears, 3) == [0, 1, 2]


def test_without_a_launcher_nothing_is_sent_and_nothing_fails(tmp_path: Path) -> None:
    assert not Heartbeat.from_environment({}).send(Progress())
    assert not Heartbeat(str(tmp_path / "nobody")).send(Progress())


def test_a_launcher_that_started_again_is_found_again(tmp_path: Path) -> None:
    heartbeat = Heartbeat(str(tmp_path / "s"))
    before = Ears(tmp_path / "s")
    assert heartbeat.send(Progress(step=1))
    assert heard(before, 1) == [1]
    before.close()
    assert not heartbeat.send(Progress(step=2))
    after = Ears(tmp_path / "s")
    assert heartbeat.send(Progress(step=3))
    assert heard(after, 1) == [3]


def test_a_launcher_that_does_not_read_loses_beats_but_does_not_hold_up_training(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "s"))
        deaf.listen(1)
        heartbeat = Heartbeat(str(tmp_path / "s"))
        sender = threading.Thread(
            target=lambda: [heartbeat.send(Progress(resolved={"x": "y" * 100_000})) for _ in range(4)], daemon=True
        )
        sender.start()
        sender.join(60)
        assert not sender.is_alive()


def test_what_a_dying_rank_sent_last_is_not_lost(tmp_path: Path) -> None:
    ears = Ears(tmp_path / "s")
    heartbeat = Heartbeat(str(tmp_path / "s"))
    for step in range(20):
        heartbeat.send(Progress(step=step, resolved={"x": "y" * 3000}))
    heartbeat.close()
    assert [json.loads(line)["step"] for line in ears.rest()] == list(range(20))


def test_half_a_line_of_a_rank_that_died_is_dropped(tmp_path: Path) -> None:
    ears = Ears(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as rank:
        rank.connect(str(tmp_path / "s"))
        rank.sendall(b'{"step": 1}\n{"st')
    assert ears.rest() == [b'{"step": 1}']
