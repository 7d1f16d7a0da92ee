"""Workers agree on a common attempt, whoever dies, is replaced or is asked to stop."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeformer_runtime.launcher.group import Coordinator, Order, Report, State, backoff_seconds


@dataclass
class Launcher:
    """A launcher as the group sees it: it does what it is ordered."""

    node: int
    boot: int = 0
    attempt: int = 0
    state: State = "Idle"

    def report(self) -> Report:
        return Report(self.node, f"{self.node}-{self.boot}", self.attempt, self.state)

    def obey(self, order: Order) -> None:
        active = self.state in ("Running", "Stopping")
        if order.action == "Run" and not active:
            self.attempt, self.state = order.attempt, "Running"
        elif order.action in ("Stop", "Drain") and active:
            self.state = "Idle"


class Group:
    """Launchers and the coordinator of worker 0, with a clock of its own."""

    def __init__(self, nodes: int, max_restarts: int = 100) -> None:
        self.max_restarts = max_restarts
        self.launchers = [Launcher(node) for node in range(nodes)]
        self.coordinator = Coordinator(nodes, max_restarts)
        self.now = 0.0

    def round(self, times: int = 1) -> list[Order]:
        orders: list[Order] = []
        for _ in range(times):
            self.now += 1.0
            orders = []
            for launcher in self.launchers:
                orders.append(self.coordinator.hear(launcher.report(), self.now))
                launcher.obey(orders[-1])
        return orders

    def replace(self, node: int) -> None:
        self.launchers[node] = Launcher(node, boot=self.launchers[node].boot + 1)
        if node == 0:
            self.coordinator = Coordinator(len(self.launchers), self.max_restarts)

    def running(self) -> set[tuple[str, int]]:
        return {(launcher.state, launcher.attempt) for launcher in self.launchers}


def test_nothing_starts_before_every_worker_has_reported() -> None:
    group = Coordinator(2, 3)
    order = group.hear(Report(0, "a", 0, "Idle"), 0.0)
    assert (order.action, order.waiting_for) == ("Wait", (1,))
    assert group.hear(Report(1, "b", 0, "Idle"), 1.0) == Order("Run", 1)
    assert group.hear(Report(0, "a", 0, "Idle"), 2.0) == Order("Run", 1)


def test_a_fault_in_one_worker_stops_and_restarts_all() -> None:
    group = Group(3)
    group.round(2)
    assert group.running() == {("Running", 1)}
    group.launchers[2].state = "Failed"
    group.round(4)
    assert group.running() == {("Running", 2)}
    assert group.coordinator.faults == 1


def test_ranks_of_two_attempts_never_run_at_once() -> None:
    group = Group(2)
    group.round(2)
    group.launchers[0].state = "Failed"
    order = group.coordinator.hear(group.launchers[0].report(), group.now)
    assert (order.action, order.waiting_for) == ("Wait", (1,))  # worker 1 has not stopped yet


def test_a_replaced_worker_is_no_fault() -> None:
    group = Group(2)
    group.round(2)
    group.replace(1)
    group.round(4)
    assert group.running() == {("Running", 2)}
    assert group.coordinator.faults == 0


def test_a_replaced_worker_zero_goes_on_above_the_attempts_of_the_others() -> None:
    group = Group(3)
    group.round(2)
    group.launchers[1].state = "Failed"
    group.round(4)
    assert group.running() == {("Running", 2)}
    group.replace(0)
    group.round(4)
    assert group.running() == {("Running", 3)}


def test_a_voluntary_stop_is_no_fault_and_lets_the_others_finish_their_checkpoint() -> None:
    group = Group(2)
    group.round(2)
    group.launchers[1].state = "Stopping"
    group.round(1)
    assert group.launchers[0].state == "Running"  # nobody disturbs the common checkpoint
    group.launchers[1].state = "Stopped"
    group.coordinator.hear(group.launchers[1].report(), group.now)
    assert group.coordinator.hear(group.launchers[0].report(), group.now).action == "Drain"
    assert group.coordinator.faults == 0


def test_a_rank_that_fails_because_another_worker_is_stopping_is_no_fault() -> None:
    group = Group(2)
    group.round(2)
    group.launchers[1].state = "Stopping"
    group.round(1)
    group.launchers[0].state = "Failed"
    group.round(1)
    assert group.coordinator.faults == 0


def test_the_job_is_over_only_when_all_workers_have_succeeded() -> None:
    group = Group(2)
    group.round(2)
    group.launchers[0].state = "Succeeded"
    assert {order.action for order in group.round()} == {"Wait"}
    group.launchers[1].state = "Succeeded"
    group.round()
    assert {order.action for order in group.round()} == {"Finish"}
    assert group.coordinator.all_told


def test_a_worker_that_dies_after_the_others_succeeded_restarts_all() -> None:
    group = Group(2)
    group.round(2)
    group.launchers[0].state = "Succeeded"
    group.round()
    group.launchers[1].state = "Failed"
    group.round(3)
    assert group.running() == {("Running", 2)}


def test_one_fault_more_than_max_restarts_gives_up() -> None:
    group = Group(2, max_restarts=2)
    for _ in range(3):
        while group.running() != {("Running", group.launchers[0].attempt)}:
            group.round()
        group.launchers[1].state = "Failed"
        group.round()
    assert {order.action for order in group.round()} == {"GiveUp"}


def test_back_off_doubles_up_to_a_minute_and_the_first_restart_does_not_wait() -> None:
    assert [backoff_seconds(streak) for streak in (1, 2, 3, 4, 8, 100)] == [0, 1, 2, 4, 60, 60]


def test_a_group_refuses_a_worker_that_cannot_exist() -> None:
    with pytest.raises(ValueError, match="worker 2 reports to a group of 2"):
        Coordinator(2, 3).hear(Report(2, "x", 0, "Idle"), 0.0)


def test_reports_and_orders_survive_the_wire() -> None:
    report, order = Report(1, "b", 7, "Stopping"), Order("Drain", 7, (1, 2))
    assert Report.from_json(report.to_json()) == report
    assert Order.from_json(order.to_json()) == order


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["Failed", "Stopped", "Stopping", "Succeeded", "replace", "hear", "late"]), st.integers(0, 3)
    ),
    max_size=60,
)


@given(nodes=st.integers(1, 4), events=EVENTS)
def test_after_any_history_all_workers_run_the_same_attempt(nodes: int, events: list[tuple[str, int]]) -> None:
    group = Group(nodes)
    old: list[Report] = []
    for event, node in events:
        launcher = group.launchers[node % nodes]
        old.append(launcher.report())
        if event == "replace":
            group.replace(launcher.node)
        elif event == "late":  # a report that was on its way for long
            group.coordinator.hear(old[len(old) // 2], group.now)
        elif event == "hear":
            group.now += 1.0
            launcher.obey(group.coordinator.hear(launcher.report(), group.now))
        elif launcher.state in ("Running", "Stopping"):
            launcher.state = event  # type: ignore[assignment]
        assert len({x.attempt for x in group.launchers if x.state in ("Running", "Stopping")}) <= 1 or any(
            e == "late" or e == "replace" for e, _ in events
        )
    # From here on nothing happens any more. A worker that was asked to stop has stopped.
    for launcher in group.launchers:
        if launcher.state == "Stopping":
            launcher.state = "Stopped"
    group.round(80)
    attempts = {launcher.attempt for launcher in group.launchers}
    states = {launcher.state for launcher in group.launchers}
    assert len(attempts) == 1
    assert states <= {"Running", "Succeeded"}
