"""Metrics of the operator, in Prometheus' format. Names begin with kubeformer_operator_."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counts for control.ports.Meter and the writer; gauges are read when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._reconciles = Histogram(
            "kubeformer_operator_reconcile_seconds",
            "Time from taking a key to having carried out its plan.",
            ("kind", "result"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._writes = Counter(
            "kubeformer_operator_writes",
            "Writes to the API server, by verb, kind and outcome.",
            ("verb", "kind", "outcome"),
            registry=self.registry,
        )
        self._repairs = Counter(
            "kubeformer_operator_audit_repairs",
            "Objects whose last change no watch had told of; more than a few point to a lossy connection.",
            ("kind",),
            registry=self.registry,
        )

    def reconciled(self, kind: str, seconds: float, result: str) -> None:
        """See control.ports.Meter."""
        self._reconciles.labels(kind, result).observe(seconds)

    def repaired(self, kind: str) -> None:
        """See control.ports.Meter."""
        self._repairs.labels(kind).inc()

    def wrote(self, verb: str, kind: str, outcome: str) -> None:
        """One write; see cluster.writer.Count."""
        self._writes.labels(verb, kind, outcome).inc()

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A value that is read when metrics are asked for."""
        Gauge(f"kubeformer_operator_{name}", description, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
