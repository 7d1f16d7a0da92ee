"""Health says in words what is missing; metrics are those of the documentation."""

from collections.abc import Sequence

import aiohttp

from kubeformer.app.health import HealthServer
from kubeformer.app.metrics import Metrics


async def ask(unready: Sequence[str], path: str, metrics: Metrics) -> tuple[int, str]:
    server = HealthServer(0, lambda: unready, metrics)
    port = await server.start()
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
            return response.status, await response.text()
    finally:
        await server.stop()


async def test_healthz_is_about_the_process_and_readyz_about_what_it_sees() -> None:
    missing = ["pods have not been listed"]
    assert (await ask(missing, "/healthz", Metrics()))[0] == 200
    assert await ask(missing, "/readyz", Metrics()) == (503, "pods have not been listed\n")
    assert await ask([], "/readyz", Metrics()) == (200, "ok\n")


async def test_metrics_count_what_the_loop_and_the_writer_tell() -> None:
    metrics = Metrics()
    metrics.gauge("queue_depth", "Keys that wait for a worker.", lambda: 3)
    metrics.reconciled("TrainingJob", 0.02, "done")
    metrics.wrote("apply", "Job", "Done")
    metrics.repaired("Pod")
    _, text = await ask([], "/metrics", metrics)
    assert "kubeformer_operator_queue_depth 3.0" in text
    assert 'kubeformer_operator_writes_total{kind="Job",outcome="Done",verb="apply"} 1.0' in text
    assert 'kubeformer_operator_audit_repairs_total{kind="Pod"} 1.0' in text
    assert 'kubeformer_operator_reconcile_seconds_count{kind="TrainingJob",result="done"} 1.0' in text
