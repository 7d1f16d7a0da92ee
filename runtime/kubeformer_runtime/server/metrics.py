"""/metrics: vLLM's names, labels and buckets, so that whatever scrapes vLLM scrapes this server too."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kubeformer_runtime.engine.core import Delta, StepStats

ENGINE = "0"
FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
N_BUCKETS = (1, 2, 5, 10, 20)
FINISHED_REASONS = ("stop", "length", "abort", "error")


def one_two_five(largest: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, ... up to `largest`."""
    steps = [base * 10**power for power in range(len(str(largest))) for base in (1, 2, 5)]
    return tuple(step for step in steps if step <= largest)


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, model_name: str, max_model_len: int) -> None:
        self.registry = CollectorRegistry()
        names, values = ("model_name", "engine"), (model_name, ENGINE)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, names, registry=self.registry).labels(*values)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, names, registry=self.registry).labels(*values)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, names, registry=self.registry, buckets=buckets).labels(*values)

        self.running = gauge("num_requests_running", "Number of requests in model execution batches.")
        self.waiting = gauge("num_requests_waiting", "Number of requests waiting to be processed.")
        self.kv_cache_usage = gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self.prompt_tokens = counter("prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = counter("generation_tokens", "Number of generation tokens processed.")
        self.preemptions = counter("num_preemptions", "Cumulative number of preemptions.")
        self.prefix_queries = counter("prefix_cache_queries", "Prefix cache queries, in tokens.")
        self.prefix_hits = counter("prefix_cache_hits", "Prefix cache hits, in tokens.")
        success = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            (*names, "finished_reason"),
            registry=self.registry,
        )
        self.success = {reason: success.labels(*values, reason) for reason in FINISHED_REASONS}
        self.first_token = histogram("time_to_first_token_seconds", "Time to first token.", FIRST_TOKEN_BUCKETS)
        self.inter_token = histogram("inter_token_latency_seconds", "Time between output tokens.", TOKEN_BUCKETS)
        self.per_output_token = histogram(
            "request_time_per_output_token_seconds", "Time per output token of a request.", TOKEN_BUCKETS
        )
        self.end_to_end = histogram("e2e_request_latency_seconds", "End to end request latency.", REQUEST_BUCKETS)
        self.queue_time = histogram("request_queue_time_seconds", "Time spent in WAITING phase.", REQUEST_BUCKETS)
        self.inference_time = histogram(
            "request_inference_time_seconds", "Time spent in RUNNING phase.", REQUEST_BUCKETS
        )
        self.prefill_time = histogram("request_prefill_time_seconds", "Time spent in PREFILL phase.", REQUEST_BUCKETS)
        self.decode_time = histogram("request_decode_time_seconds", "Time spent in DECODE phase.", REQUEST_BUCKETS)
        lengths = one_two_five(max_model_len)
        self.request_prompt = histogram("request_prompt_tokens", "Number of prefill tokens processed.", lengths)
        self.request_generation = histogram("request_generation_tokens", "Number of generation tokens.", lengths)
        self.request_max_tokens = histogram("request_params_max_tokens", "The max_tokens parameter.", lengths)
        self.request_n = histogram("request_params_n", "The n parameter.", N_BUCKETS)
        self.iteration = histogram("iteration_tokens_total", "Number of tokens per engine step.", ITERATION_BUCKETS)

    def step(self, stats: StepStats) -> None:
        """Take in what a step of the engine says."""
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.kv_cache_usage.set(stats.kv_cache_usage)
        if stats.step_tokens:
            self.iteration.observe(stats.step_tokens)
            self.prompt_tokens.inc(stats.prompt_tokens)
            self.generation_tokens.inc(stats.generation_tokens)
            self.preemptions.inc(stats.preemptions)
            self.prefix_queries.inc(stats.prompt_tokens)
            self.prefix_hits.inc(stats.cached_tokens)

    def classified(self, texts: int, tokens: int, seconds: float) -> None:
        """A classification request was answered."""
        self.prompt_tokens.inc(tokens)
        self.success["stop"].inc(texts)
        for _ in range(texts):
            self.end_to_end.observe(seconds)

    def expose(self) -> bytes:
        """The page, in Prometheus' text format."""
        return generate_latest(self.registry)


@dataclass(slots=True)
class _Clock:
    """Points in time of one choice."""

    first: float | None = None
    last: float = 0.0
    tokens: int = 0


class RequestObserver:
    """Times one request's choices and tells the metrics. Every choice counts as a request, as in vLLM."""

    def __init__(self, metrics: Metrics, now: float, *, max_tokens: int, n: int) -> None:
        self._metrics, self._arrival = metrics, now
        self._scheduled: float | None = None
        self._choices: dict[tuple[str, int], _Clock] = {}
        metrics.request_max_tokens.observe(max_tokens)
        metrics.request_n.observe(n)

    def delta(self, delta: Delta, prompt_tokens: int, now: float) -> None:
        """A choice has news."""
        metrics = self._metrics
        clock = self._choices.setdefault((delta.request_id, delta.index), _Clock())
        if delta.tokens:
            if clock.first is None:
                clock.first = now
                metrics.first_token.observe(now - self._arrival)
            else:
                metrics.inter_token.observe(now - clock.last)
            clock.last = now
            clock.tokens += len(delta.tokens)
        if delta.finish_reason is None:
            return
        metrics.success[delta.finish_reason.value].inc()
        metrics.end_to_end.observe(now - self._arrival)
        metrics.request_prompt.observe(prompt_tokens)
        metrics.request_generation.observe(clock.tokens)
        if clock.first is not None:
            queued = delta.queue_seconds
            metrics.queue_time.observe(queued)
            metrics.prefill_time.observe(max(0.0, clock.first - self._arrival - queued))
            metrics.decode_time.observe(clock.last - clock.first)
            metrics.inference_time.observe(max(0.0, clock.last - self._arrival - queued))
            if clock.tokens > 1:
                metrics.per_output_token.observe((clock.last - clock.first) / (clock.tokens - 1))

    def failed(self) -> None:
        """The engine broke."""
        self._metrics.success["error"].inc()

    def aborted(self, choices: int) -> None:
        """The client left with so many choices unfinished."""
        self._metrics.success["abort"].inc(choices)
