"""The engine's step: the same answer whatever else runs, and an end that is the one asked for."""

from dataclasses import replace

import pytest
import torch

from kubeformer_runtime.engine.core import Delta, EngineCore, Request
from kubeformer_runtime.engine.sampling_params import ParameterError
from kubeformer_runtime.engine.scheduler import SchedulerConfig
from kubeformer_runtime.engine.sequence import FinishReason
from tests.unit.engine.builders import (
    EOS,
    ScriptRunner,
    byte_tokenizer,
    outputs,
    request,
    script_core,
    tiny_config,
    tiny_core,
)
from tests.unit.model.builders import random_llama

PROMPTS = [list(b"The quick brown fox"), list(b"The quick brown dog jumps"), [7], list(range(40)), list(b"The quick")]


def requests(**params: object) -> list[Request]:
    """One request a prompt, each with a seed of its own."""
    fields = {"max_tokens": 12, "ignore_eos": True, **params}
    return [request(f"r{number}", prompt, seed=number, **fields) for number, prompt in enumerate(PROMPTS)]


def alone(**params: object) -> dict[tuple[str, int], list[int]]:
    """The tokens of each request in an engine of its own."""
    tokens: dict[tuple[str, int], list[int]] = {}
    for item in requests(**params):
        tokens |= outputs(tiny_core(), item)
    return tokens


def test_greedy_tokens_are_the_plain_models() -> None:
    model = random_llama(tiny_config())
    for item in requests():
        tokens = list(item.prompt)
        with torch.inference_mode():
            for _ in range(12):
                tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        assert outputs(tiny_core(), item) == {(item.request_id, 0): tokens[len(item.prompt) :]}


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_num_batched_tokens": 5},
        {"max_num_seqs": 2},
        {"num_blocks": 27},  # too few for all: preemption
        {"prefix_caching": False},
        {"block_size": 16},
    ],
    ids=str,
)
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}], ids=["greedy", "sampled"])
def test_tokens_do_not_depend_on_what_else_runs(limits: dict[str, int], params: dict[str, object]) -> None:
    assert outputs(tiny_core(**limits), *requests(**params)) == alone(**params)  # type: ignore[arg-type]


def test_too_few_blocks_really_do_preempt() -> None:
    core = tiny_core(num_blocks=27)
    for item in requests():
        core.add(item)
    preempted = 0
    while core.has_work:
        preempted += core.step().stats.preemptions
    assert preempted > 0


def test_a_seed_reproduces_and_another_one_does_not() -> None:
    def run(seed: int) -> list[int]:
        return outputs(tiny_core(), request("r", b"abc", seed, temperature=1.0, max_tokens=20))["r", 0]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_n_choices_differ_and_the_first_is_that_of_one_choice() -> None:
    several = outputs(tiny_core(), request("r", b"abc", 5, n=3, temperature=1.0, max_tokens=20, ignore_eos=True))
    assert len({tuple(tokens) for tokens in several.values()}) == 3
    single = outputs(tiny_core(), request("r", b"abc", 5, n=1, temperature=1.0, max_tokens=20, ignore_eos=True))
    assert single["r", 0] == several["r", 0]


def texts(core: EngineCore, item: Request) -> tuple[str, Delta]:
    """The whole text of a request's only choice, and its last delta."""
    core.add(item)
    deltas: list[Delta] = []
    while core.has_work:
        deltas.extend(core.step().deltas)
    return "".join(delta.text for delta in deltas), deltas[-1]


@pytest.mark.parametrize(
    ("params", "text", "reason", "stop_reason", "tokens"),
    [
        ({}, "Hello, world", FinishReason.STOP, None, 13),
        ({"max_tokens": 5}, "Hello", FinishReason.LENGTH, None, 5),
        ({"stop": (", ",)}, "Hello", FinishReason.STOP, ", ", 7),
        ({"stop": (", ",), "include_stop_str_in_output": True}, "Hello, ", FinishReason.STOP, ", ", 7),
        ({"stop_token_ids": (ord("w"),)}, "Hello, ", FinishReason.STOP, ord("w"), 8),
        ({"stop": ("l",), "min_tokens": 4}, "Hel", FinishReason.STOP, "l", 4),
        ({"stop": ("world!",)}, "Hello, world", FinishReason.STOP, None, 13),
        ({"ignore_eos": True, "max_tokens": 16}, "Hello, worldHel", FinishReason.LENGTH, None, 16),
        (
            {"ignore_eos": True, "max_tokens": 14, "skip_special_tokens": False},
            "Hello, world<eos>H",
            FinishReason.LENGTH,
            None,
            14,
        ),
    ],
    ids=str,
)
def test_an_answer_ends_where_it_was_asked_to(
    params: dict[str, object], text: str, reason: FinishReason, stop_reason: object, tokens: int
) -> None:
    core = script_core(b"Hello, world", prompt_length=2)
    item = request("r", b"ab", **{"max_tokens": 50, **params})
    core.add(item)
    deltas: list[Delta] = []
    while core.has_work:
        deltas.extend(core.step().deltas)
    assert "".join(delta.text for delta in deltas) == text
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == (reason, stop_reason)
    assert sum(len(delta.tokens) for delta in deltas) == tokens
    assert core.stats().kv_cache_usage == 0.0


def test_an_answer_that_fills_the_model_ends_by_length() -> None:
    core = script_core(b"x", prompt_length=5, end=False, max_model_len=9)
    text, last = texts(core, request("r", b"abcde", max_tokens=100))
    assert (text, last.finish_reason) == ("xxxx", FinishReason.LENGTH)


def test_characters_of_several_bytes_come_whole() -> None:
    core = script_core("naïve 🙂".encode(), prompt_length=2)
    core.add(request("r", b"ab", max_tokens=50))
    pieces = []
    while core.has_work:
        pieces.extend(delta.text for delta in core.step().deltas)
    assert "".join(pieces) == "naïve 🙂"
    assert "🙂" in pieces


def test_a_repeated_prompt_is_found_in_the_prefix_cache() -> None:
    core = tiny_core()
    first = outputs(core, request("a", PROMPTS[1]))
    _, last = texts(core, request("b", PROMPTS[1]))
    assert last.num_cached_tokens == 24
    assert first["a", 0] == outputs(core, request("c", PROMPTS[1]))["c", 0]
    core.forget_prefixes()
    _, last = texts(core, request("d", PROMPTS[1]))
    assert last.num_cached_tokens == 0


def test_choices_of_one_request_share_its_prompt() -> None:
    core = tiny_core()
    core.add(request("r", PROMPTS[1], n=3, max_tokens=4))
    stats = core.step().stats
    assert stats.prompt_tokens == 3 * len(PROMPTS[1])
    assert stats.cached_tokens == 2 * 24
    assert stats.step_tokens == len(PROMPTS[1]) + 2


def test_an_aborted_request_gives_back_its_blocks_and_leaves_the_others_alone() -> None:
    core = tiny_core()
    for item in requests():
        core.add(item)
    core.step()
    deltas = core.abort("r1")
    assert [(delta.request_id, delta.finish_reason) for delta in deltas] == [("r1", FinishReason.ABORT)]
    assert core.abort("r1") == []
    assert core.abort("never there") == []
    core.check_books()
    left: dict[tuple[str, int], list[int]] = {}
    while core.has_work:
        for delta in core.step().deltas:
            left.setdefault((delta.request_id, delta.index), []).extend(item.token for item in delta.tokens)
    assert {key for key in left if len(left[key]) >= 11} == {("r0", 0), ("r2", 0), ("r3", 0), ("r4", 0)}
    assert core.stats() == replace(core.stats(), running=0, waiting=0, kv_cache_usage=0.0)


def test_a_prompt_that_can_never_run_is_refused_with_its_length() -> None:
    core = tiny_core(max_model_len=20)
    with pytest.raises(ParameterError, match="25 tokens, but this model takes at most 20"):
        core.check(request("r", PROMPTS[1]))
    with pytest.raises(ParameterError, match="no tokens"):
        core.check(request("r", []))


def test_a_cache_that_is_smaller_than_one_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="max_model_len is 100"):
        EngineCore(
            ScriptRunner(lambda _: 1, num_blocks=10),
            SchedulerConfig(max_model_len=100),
            byte_tokenizer(),
            frozenset({EOS}),
        )
