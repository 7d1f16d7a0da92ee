"""The engine's step: the same answer whatever else runs, and an end that is the one asked for."""

from dataclasses import replace

import pytest
import torch

from kubeformer_runtime.engine.batch import Batch
from kubeformer_runtime.engine.core import Delta, EngineCore, Request, StepStats
from kubeformer_runtime.engine.sampling_params import ParameterError, StructuredOutput
from kubeformer_runtime.engine.scheduler import SchedulerConfig
from kubeformer_runtime.engine.sequence import FinishReason
from kubeformer_runtime.engine.structured import StructureCompiler
from tests.unit.engine.builders import (
    EOS,
    VOCABULARY,
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
        {"speculative_tokens": 4},
        {"speculative_tokens": 3, "max_num_batched_tokens": 12, "num_blocks": 29, "max_num_seqs": 3},
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


class NoProbe:
    """Stands for the process that checks forms; a choice between words needs no check."""

    def check(self, grammar: str, seconds: float) -> str:
        return ""

    def close(self) -> None:
        pass


class ChainRunner(ScriptRunner):
    """A model of four tokens whose next one depends on the last alone, and often is the same again."""

    def execute(self, batch: Batch) -> torch.Tensor:
        last_S = batch.tokens[batch.sample_rows]
        chain_VV = torch.full((4, VOCABULARY), -50.0)
        chain_VV[:, :4] = torch.tensor([[0.0, 5.0, 0, 1], [1, 0, 5, 0], [5, 0, 0, 1], [4, 2, 0, 0]])
        return chain_VV[last_S]


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "frequency_penalty": 0.1}], ids=str)
def test_drafts_save_steps_and_change_nothing_else(params: dict[str, object]) -> None:
    def run(speculative_tokens: int) -> tuple[dict[tuple[str, int], list[Delta]], list[StepStats]]:
        core = EngineCore(
            ChainRunner(lambda _: 0, num_blocks=200),
            SchedulerConfig(max_model_len=400),
            byte_tokenizer(),
            frozenset({EOS}),
            speculative_tokens=speculative_tokens,
        )
        for number in range(3):
            core.add(request(f"r{number}", [0, 1, 2, 0, number], number, max_tokens=60, logprobs=1, **params))
        deltas: dict[tuple[str, int], list[Delta]] = {}
        stats = []
        while core.has_work:
            output = core.step()
            stats.append(output.stats)
            for delta in output.deltas:
                deltas.setdefault((delta.request_id, delta.index), []).append(delta)
            core.check_books()
        return deltas, stats

    plain, plain_stats = run(0)
    drafted, stats = run(3)
    assert plain.keys() == drafted.keys()
    for key in plain:
        assert [item for delta in plain[key] for item in delta.tokens] == [
            item for delta in drafted[key] for item in delta.tokens
        ]
        assert "".join(delta.text for delta in plain[key]) == "".join(delta.text for delta in drafted[key])
        assert drafted[key][-1].finish_reason is FinishReason.LENGTH
    assert len(stats) < len(plain_stats)
    accepted, drafts = sum(s.accepted_tokens for s in stats), sum(s.draft_tokens for s in stats)
    assert 0 < accepted <= drafts
    assert sum(s.num_drafts for s in stats) <= drafts
    assert sum(s.generation_tokens for s in stats) == 180 == sum(s.generation_tokens for s in plain_stats)
    assert sum(s.draft_tokens for s in plain_stats) == 0


def test_an_answer_ends_at_its_stop_even_if_drafts_behind_it_were_right() -> None:
    def run(speculative_tokens: int, **params: object) -> list[tuple[str, object, int]]:
        answer = b"abcabcabcabcXabcabc"
        runner = ScriptRunner(lambda position: answer[(position + 1 - 6) % len(answer)])
        core = EngineCore(
            runner,
            SchedulerConfig(max_model_len=200),
            byte_tokenizer(),
            frozenset({EOS}),
            speculative_tokens=speculative_tokens,
        )
        core.add(request("r", b"abcabc", **{"max_tokens": 50, **params}))
        deltas = []
        while core.has_work:
            deltas += core.step().deltas
        assert core.stats().kv_cache_usage == 0.0
        return [("".join(d.text for d in deltas), deltas[-1].stop_reason, sum(len(d.tokens) for d in deltas))]

    for params in ({"stop": ("cab",)}, {"stop_token_ids": (ord("X"),)}, {"max_tokens": 5}, {"max_tokens": 1}):
        assert run(4, **params) == run(0, **params)


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}], ids=["greedy", "sampled"])
def test_drafts_keep_to_the_form_of_an_answer(params: dict[str, object]) -> None:
    form = StructuredOutput("choice", ("abc" * 7 + "a!", "abc" * 3 + "xyz" * 4, "cab" * 8))
    compiled = StructureCompiler(byte_tokenizer(), [EOS], VOCABULARY, probe=lambda *_: NoProbe()).compile_now(form)

    def run(speculative_tokens: int) -> tuple[list[bytes], int]:
        core = tiny_core(speculative_tokens=speculative_tokens)
        for seed in range(4):
            item = request(f"{seed}", b"abcabcabc", seed, max_tokens=40, structured=form, **params)
            core.add(replace(item, structure=compiled))
        answers, accepted = [b""] * 4, 0
        while core.has_work:
            output = core.step()
            accepted += output.stats.accepted_tokens
            for delta in output.deltas:
                answers[int(delta.request_id)] += bytes(item.token for item in delta.tokens if item.token != EOS)
        return answers, accepted

    answers, accepted = run(3)
    assert {answer.decode() for answer in answers} <= set(form.value)
    assert accepted > 0
    assert answers == run(0)[0]


def test_prompt_log_probabilities_are_the_plain_models_however_the_prompt_is_cut() -> None:
    model, prompt = random_llama(tiny_config()), PROMPTS[1]
    with torch.inference_mode():
        expected = model(torch.tensor([prompt]))[0].log_softmax(-1)
    for limits in ({"max_num_batched_tokens": 7}, {"num_blocks": 27, "speculative_tokens": 2}):
        core = tiny_core(**limits)  # type: ignore[arg-type]
        outputs(core, request("before", prompt))  # its blocks are cached
        for item in requests():
            core.add(item)
        core.add(request("scored", prompt, prompt_logprobs=2, n=2, temperature=1.0))
        deltas = []
        while core.has_work:
            deltas += [delta for delta in core.step().deltas if delta.request_id == "scored"]
            core.check_books()
        first = next(delta for delta in deltas if delta.index == 0)
        assert [item.token for item in first.prompt_logprobs] == prompt[1:]
        found = torch.tensor([item.logprob for item in first.prompt_logprobs])
        torch.testing.assert_close(found, expected[range(len(prompt) - 1), prompt[1:]], atol=1e-4, rtol=1e-4)
        assert [item.top[0].token for item in first.prompt_logprobs] == expected[:-1].argmax(-1).tolist()
        assert sum(bool(delta.prompt_logprobs) for delta in deltas) == 1, "once, with the first choice's first token"


def test_requests_of_better_priority_are_answered_first() -> None:
    core = tiny_core(max_num_seqs=1)
    for name, priority in (("late", 3), ("soon", 1), ("now", -1)):
        core.add(replace(request(name, b"abc", max_tokens=2, ignore_eos=True), priority=priority))
    ended = []
    while core.has_work:
        ended += [delta.request_id for delta in core.step().deltas if delta.finish_reason is not None]
    assert ended == ["now", "soon", "late"]


def test_a_salt_keeps_prefixes_apart() -> None:
    core = tiny_core()
    for salt, cached in (("a", 0), ("a", 24), ("b", 0), (None, 0), (None, 24)):
        core.add(replace(request("r", PROMPTS[1], max_tokens=1), cache_salt=salt))
        assert core.step().deltas[0].num_cached_tokens == cached


def test_what_runs_when_the_engine_falls_asleep_goes_on_when_it_wakes() -> None:
    core = tiny_core()
    for item in requests():
        core.add(item)
    tokens: dict[tuple[str, int], list[int]] = {}
    for number in range(100):
        if number in (1, 4):
            core.sleep()
            core.sleep()
            assert (core.asleep, core.has_work, core.stats().kv_cache_usage) == (True, False, 0.0)
            assert core.step().deltas == ()
            core.wake()
            core.check_books()
        for delta in core.step().deltas:
            tokens.setdefault((delta.request_id, delta.index), []).extend(item.token for item in delta.tokens)
    assert not core.has_work
    assert tokens == alone()


def test_after_sleep_no_prefix_is_found_because_the_cache_is_empty() -> None:
    core = tiny_core()
    first = outputs(core, request("a", PROMPTS[1]))["a", 0]
    core.sleep()
    core.wake()
    core.add(request("b", PROMPTS[1]))
    assert core.step().deltas[0].num_cached_tokens == 0
    core.abort_all()
    assert outputs(core, request("c", PROMPTS[1]))["c", 0] == first


def test_a_step_says_where_its_time_went() -> None:
    ticks = iter(range(1000))
    core = EngineCore(
        ScriptRunner(lambda _: 65),
        SchedulerConfig(max_model_len=200),
        byte_tokenizer(),
        frozenset({EOS}),
        clock=lambda: float(next(ticks)),
    )
    core.add(request("r", b"ab"))
    stats = core.step().stats
    parts = (stats.schedule_seconds, stats.forward_seconds, stats.sample_seconds, stats.detokenize_seconds)
    assert parts == (1.0, 1.0, 1.0, 1.0)


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
