"""/metrics: vLLM's names, labels and buckets, so that whatever scrapes vLLM scrapes this server too.

What vLLM does not have goes by `kubeformer:`.
"""

import time
from collections import Counter as Counts
from collections.abc import Callable, Mapping
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
PREEMPTION_BUCKETS = (0, 1, 2, 5, 10, 20)
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
PHASES = ("schedule", "forward", "sample", "detokenize")
FINISHED_REASONS = ("stop", "length", "abort", "error")


def one_two_five(largest: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, ... up to `largest`."""
    steps = [base * 10**power for power in range(len(str(largest))) for base in (1, 2, 5)]
    return tuple(step for step in steps if step <= largest)


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, model_name: str, max_model_len: int, clock: Callable[[], float] = time.time) -> None:
        """`clock` dates what vLLM dates: the adapters' gauge."""
        self.registry = CollectorRegistry()
        self._clock = clock
        self._loaded, self._busy = 0, Counts[str]()
        self._labels = {"model_name": model_name, "engine": ENGINE}
        lengths = one_two_five(max_model_len)
        self._make_gauges()
        self._make_counters()
        histogram = self._histogram
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
        self.request_prompt = histogram("request_prompt_tokens", "Number of prefill tokens processed.", lengths)
        self.request_computed = histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens that were not in the prefix cache.", lengths
        )
        self.request_generation = histogram("request_generation_tokens", "Number of generation tokens.", lengths)
        self.request_longest = histogram(
            "request_max_num_generation_tokens", "Largest number of generation tokens among a request's n.", lengths
        )
        self.request_max_tokens = histogram("request_params_max_tokens", "The max_tokens parameter.", lengths)
        self.request_n = histogram("request_params_n", "The n parameter.", N_BUCKETS)
        self.request_preemptions = histogram(
            "request_num_preemptions", "Number of preemptions of a request.", PREEMPTION_BUCKETS
        )
        self.iteration = histogram("iteration_tokens_total", "Number of tokens per engine step.", ITERATION_BUCKETS)

    def _make_gauges(self) -> None:
        gauge = self._gauge
        self.running = gauge("num_requests_running", "Number of requests in model execution batches.")
        self.waiting = gauge("num_requests_waiting", "Number of requests waiting to be processed.")
        reasons = self._gauge_of("num_requests_waiting_by_reason", "Waiting requests by reason.", "reason")
        self.waiting_for_room = reasons.labels(**self._labels, reason="capacity")
        reasons.labels(**self._labels, reason="deferred")  # stays 0: nothing here is put off for another reason
        self.kv_cache_usage = gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        sleep = self._gauge_of("engine_sleep_state", "1 for the state that the engine is in.", "sleep_state")
        self._sleep_states = {state: sleep.labels(**self._labels, sleep_state=state) for state in SLEEP_STATES}
        self.sleeping(None)
        self._adapters = Gauge(
            "vllm:lora_requests_info",
            "LoRA adapters with requests; the value is the time of the last change.",
            ("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
            registry=self.registry,
        )

    def _make_counters(self) -> None:
        counter = self._counter
        self.prompt_tokens = counter("prompt_tokens", "Number of prefill tokens processed.")
        sources = self._counter_of("prompt_tokens_by_source", "Prompt tokens by where they came from.", "source")
        self.computed_tokens = sources.labels(**self._labels, source="local_compute")
        self.hit_tokens = sources.labels(**self._labels, source="local_cache_hit")
        self.cached_tokens = counter("prompt_tokens_cached", "Prompt tokens that were in the prefix cache.")
        self.generation_tokens = counter("generation_tokens", "Number of generation tokens processed.")
        self.preemptions = counter("num_preemptions", "Cumulative number of preemptions.")
        self.prefix_queries = counter("prefix_cache_queries", "Prefix cache queries, in tokens.")
        self.prefix_hits = counter("prefix_cache_hits", "Prefix cache hits, in tokens.")
        self.drafts = counter("spec_decode_num_drafts", "Number of drafts.")
        self.draft_tokens = counter("spec_decode_num_draft_tokens", "Number of draft tokens.")
        self.accepted_tokens = counter("spec_decode_num_accepted_tokens", "Number of accepted draft tokens.")
        success = self._counter_of("request_success", "Count of successfully processed requests.", "finished_reason")
        self.success = {reason: success.labels(**self._labels, finished_reason=reason) for reason in FINISHED_REASONS}
        self._rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused because too many were there.",
            ("model_name", "reason"),
            registry=self.registry,
        ).labels(self._labels["model_name"], "max_num_queued_reqs")
        phases = Counter(
            "kubeformer:step_seconds",
            "Seconds of the engine's steps by what they were spent on.",
            (*self._labels, "phase"),
            registry=self.registry,
        )
        self._phases = {phase: phases.labels(**self._labels, phase=phase) for phase in PHASES}

    def _gauge_of(self, name: str, text: str, *more: str) -> Gauge:
        return Gauge(f"vllm:{name}", text, (*self._labels, *more), registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._gauge_of(name, text).labels(**self._labels)

    def _counter_of(self, name: str, text: str, *more: str) -> Counter:
        return Counter(f"vllm:{name}", text, (*self._labels, *more), registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return self._counter_of(name, text).labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", text, (*self._labels,), registry=self.registry, buckets=buckets).labels(
            **self._labels
        )

    def configured(self, cache: Mapping[str, object]) -> None:
        """Say how the KV cache is set up; the values are labels of a gauge that is always 1. Call it once."""
        gauge = self._gauge_of("cache_config_info", "Information of the KV cache's configuration.", *cache)
        gauge.labels(**self._labels, **{name: str(value) for name, value in cache.items()}).set(1)

    def sleeping(self, level: int | None) -> None:
        """Awake (None), or asleep at level 1 or 2."""
        state = SLEEP_STATES[level or 0]
        for name, gauge in self._sleep_states.items():
            gauge.set(name == state)

    def adapters_loaded(self, number: int) -> None:
        """How many LoRA adapters are loaded."""
        self._loaded = number
        self._show_adapters()

    def adapter_requests(self, name: str | None, change: int) -> None:
        """A request for an adapter begins (1) or ends (-1); None: one for the model itself."""
        if name is not None:
            self._busy[name] += change
            self._show_adapters()

    def _show_adapters(self) -> None:
        running = ",".join(sorted(name for name, requests in self._busy.items() if requests))
        self._adapters.clear()
        self._adapters.labels(str(self._loaded), "", running).set(self._clock())

    def rejected(self) -> None:
        """A request was refused because too many are here."""
        self._rejections.inc()

    def step(self, stats: StepStats) -> None:
        """Take in what a step of the engine says."""
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.waiting_for_room.set(stats.waiting)
        self.kv_cache_usage.set(stats.kv_cache_usage)
        if not stats.step_tokens:
            return
        self.iteration.observe(stats.prompt_tokens + stats.generation_tokens)
        self.prompt_tokens.inc(stats.prompt_tokens)
        self.cached_tokens.inc(stats.cached_tokens)
        self.hit_tokens.inc(stats.cached_tokens)
        self.computed_tokens.inc(stats.prompt_tokens - stats.cached_tokens)
        self.generation_tokens.inc(stats.generation_tokens)
        self.preemptions.inc(stats.preemptions)
        self.prefix_queries.inc(stats.prompt_tokens)
        self.prefix_hits.inc(stats.cached_tokens)
        self.drafts.inc(stats.num_drafts)
        self.draft_tokens.inc(stats.draft_tokens)
        self.accepted_tokens.inc(stats.accepted_tokens)
        for phase, counter in self._phases.items():
            counter.inc(getattr(stats, f"{phase}_seconds"))

    def pooled(self, texts: int, tokens: int, seconds: float) -> None:
        """A request for vectors, classes or scores was answered."""
        self.prompt_tokens.inc(tokens)
        self.computed_tokens.inc(tokens)
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

    def __init__(self, metrics: Metrics, now: float, *, max_tokens: int, n: int, adapter: str | None = None) -> None:
        self._metrics, self._arrival = metrics, now
        self._scheduled: float | None = None
        self._choices: dict[tuple[str, int], _Clock] = {}
        self._open: dict[str, tuple[int, int]] = {}  # by request: unfinished choices, tokens of the longest one
        self._n = n
        self._adapter = adapter
        metrics.adapter_requests(adapter, 1)
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
        metrics.request_computed.observe(prompt_tokens - delta.num_cached_tokens)
        metrics.request_generation.observe(clock.tokens)
        metrics.request_preemptions.observe(delta.num_preemptions)
        self._finished(delta.request_id, clock.tokens)
        if clock.first is not None:
            queued = delta.queue_seconds
            metrics.queue_time.observe(queued)
            metrics.prefill_time.observe(max(0.0, clock.first - self._arrival - queued))
            metrics.decode_time.observe(clock.last - clock.first)
            metrics.inference_time.observe(max(0.0, clock.last - self._arrival - queued))
            if clock.tokens > 1:
                metrics.per_output_token.observe((clock.last - clock.first) / (clock.tokens - 1))

    def _finished(self, request_id: str, tokens: int) -> None:
        """After the last of a request's n choices: the longest of them."""
        left, longest = self._open.get(request_id, (self._n, 0))
        self._open[request_id] = left - 1, max(longest, tokens)
        if left == 1:
            self._metrics.request_longest.observe(max(longest, tokens))

    def failed(self) -> None:
        """The engine broke."""
        self._metrics.success["error"].inc()

    def aborted(self, choices: int) -> None:
        """The client left with so many choices unfinished."""
        self._metrics.success["abort"].inc(choices)

    def close(self) -> None:
        """The request is over, however it ended."""
        self._metrics.adapter_requests(self._adapter, -1)
