"""Metrics by themselves: what steps and requests add up to, under vLLM's names."""

from prometheus_client.parser import text_string_to_metric_families

from kubeformer_runtime.engine.core import Delta, StepStats
from kubeformer_runtime.engine.sampler import Sampled
from kubeformer_runtime.engine.sequence import FinishReason
from kubeformer_runtime.server.metrics import Metrics, RequestObserver


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and the values of its labels beyond the usual two."""
    found = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            more = [value for name, value in sample.labels.items() if name not in ("model_name", "engine")]
            found[":".join([sample.name, *more])] = sample.value
    return found


def test_a_step_counts_tokens_drafts_and_where_its_time_went() -> None:
    metrics = Metrics("m", 100)
    stats = StepStats(
        *(3, 2, 0.5),
        prompt_tokens=20,
        cached_tokens=16,
        generation_tokens=4,
        preemptions=1,
        step_tokens=8,
        num_drafts=2,
        draft_tokens=6,
        accepted_tokens=3,
        schedule_seconds=0.25,
        forward_seconds=2.0,
    )
    metrics.step(stats)
    metrics.step(StepStats(1, 0, 0.25))  # nothing computed: only the state changes
    found = samples(metrics)
    expected = {
        "vllm:num_requests_running": 1,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:prompt_tokens_total": 20,
        "vllm:prompt_tokens_cached_total": 16,
        "vllm:prompt_tokens_by_source_total:local_compute": 4,
        "vllm:prompt_tokens_by_source_total:local_cache_hit": 16,
        "vllm:prefix_cache_queries_total": 20,
        "vllm:prefix_cache_hits_total": 16,
        "vllm:generation_tokens_total": 4,
        "vllm:num_preemptions_total": 1,
        "vllm:iteration_tokens_total_sum": 24,
        "vllm:iteration_tokens_total_count": 1,
        "vllm:spec_decode_num_drafts_total": 2,
        "vllm:spec_decode_num_draft_tokens_total": 6,
        "vllm:spec_decode_num_accepted_tokens_total": 3,
        "kubeformer:step_seconds_total:schedule": 0.25,
        "kubeformer:step_seconds_total:forward": 2.0,
    }
    assert {name: found[name] for name in expected} == expected


def test_a_request_of_two_choices_counts_its_longest_once() -> None:
    metrics = Metrics("m", 100)
    observer = RequestObserver(metrics, 10.0, max_tokens=8, n=2, adapter="law")
    token = Sampled(5)
    observer.delta(Delta("r", 0, "a", (token,)), 7, 11.0)
    assert samples(metrics)["vllm:lora_requests_info:0:law:"] > 0
    observer.delta(Delta("r", 0, "a", (token, token), FinishReason.STOP, num_cached_tokens=4), 7, 12.0)
    observer.delta(Delta("r", 1, "a", (token,), FinishReason.LENGTH, num_preemptions=1), 7, 13.5)
    observer.close()
    found = samples(metrics)
    expected = {
        "vllm:request_max_num_generation_tokens_sum": 3,
        "vllm:request_max_num_generation_tokens_count": 1,
        "vllm:request_generation_tokens_sum": 4,
        "vllm:request_prefill_kv_computed_tokens_sum": 3 + 7,
        "vllm:request_num_preemptions_sum": 1,
        "vllm:time_to_first_token_seconds_sum": 1.0 + 3.5,
        "vllm:inter_token_latency_seconds_sum": 1.0,
        "vllm:e2e_request_latency_seconds_sum": 2.0 + 3.5,
        "vllm:request_success_total:stop": 1,
        "vllm:request_success_total:length": 1,
    }
    assert {name: found[name] for name in expected} == expected
    assert "vllm:lora_requests_info:0::" in found  # no adapter has requests any more


def test_the_state_of_sleep_is_one_of_three() -> None:
    metrics = Metrics("m", 100)
    for level, state in ((None, "awake"), (1, "weights_offloaded"), (2, "discard_all"), (None, "awake")):
        metrics.sleeping(level)
        found = {name: value for name, value in samples(metrics).items() if "engine_sleep_state" in name}
        assert [name for name, value in found.items() if value] == [f"vllm:engine_sleep_state:{state}"]
        assert len(found) == 3
