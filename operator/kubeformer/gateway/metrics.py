"""What the gateway counts, under its own registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Requests by model and outcome, the time to the first byte, and how many are under way."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "kubeformer_gateway_requests_total",
            "Requests answered, by model and status.",
            ["model", "status"],
            registry=self.registry,
        )
        self.retries = Counter(
            "kubeformer_gateway_retries_total", "Requests sent to another replica.", ["model"], registry=self.registry
        )
        self.outstanding = Gauge(
            "kubeformer_gateway_requests_in_flight", "Requests under way.", ["model"], registry=self.registry
        )
        self.first_byte = Histogram(
            "kubeformer_gateway_first_byte_seconds",
            "Time from the request to the first byte of the answer.",
            ["model"],
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
        )
