"""The scheduler: budgets hold, the important finish first, and every sequence gets its tokens in order."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.plan import SchedulerConfig, SchedulerOutput
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.scheduler import (
    LEAST_CHUNK,
    SCORED_CHUNK,
    SchedulerState,
    advance,
    enqueue,
    finish,
    schedule,
)
from kubeformer_runtime.engine.sequence import FinishReason, Sequence, Status


def state_of(num_blocks: int = 64, **prompts: int) -> tuple[SchedulerState, dict[str, Sequence]]:
    """Waiting sequences by name, with prompts of the given lengths and nothing in common."""
    state = SchedulerState(BlockManager(num_blocks, 4))
    sequences = {}
    for number, (name, length) in enumerate(prompts.items()):
        sequences[name] = Sequence(number, [1000 * number + i for i in range(length)], SamplingParams())
        state.waiting.append(sequences[name])
    return state, sequences


def step(state: SchedulerState, config: SchedulerConfig) -> dict[int, int]:
    """One step with made-up tokens: how many tokens each sequence computed."""
    output = schedule(state, config)
    advance(output, [[7] for item in output.scheduled if item.samples])
    return {item.seq.seq_id: item.num_new_tokens for item in output.scheduled}


def test_a_long_prompt_is_cut_into_chunks_and_decodes_go_first() -> None:
    state, seqs = state_of(a=3, b=20)
    config = SchedulerConfig(max_num_batched_tokens=8)
    assert step(state, config) == {0: 3, 1: 5}
    assert seqs["a"].num_output_tokens == 1
    assert step(state, config) == {0: 1, 1: 7}
    assert step(state, config) == {0: 1, 1: 7}
    assert seqs["b"].num_output_tokens == 0, "the prompt is not computed yet"
    assert step(state, config) == {0: 1, 1: 1}
    assert seqs["b"].num_output_tokens == 1


def test_no_more_sequences_run_at_once_than_allowed() -> None:
    state, seqs = state_of(a=3, b=3, c=3)
    config = SchedulerConfig(max_num_seqs=2)
    assert step(state, config) == {0: 3, 1: 3}
    finish(state, seqs["a"], FinishReason.STOP)
    assert step(state, config) == {1: 1, 2: 3}


def test_when_blocks_run_out_the_last_one_gives_way_and_is_computed_anew() -> None:
    state, seqs = state_of(num_blocks=5, a=7, b=7)
    config = SchedulerConfig()
    for _ in range(2):
        step(state, config)  # two blocks each, both full after the second step
    output = schedule(state, config)
    assert output.preempted == (seqs["b"],)
    assert [item.seq for item in output.scheduled] == [seqs["a"]]
    assert seqs["b"].status is Status.WAITING
    assert seqs["b"].num_computed_tokens == 0
    assert seqs["b"].num_output_tokens == 2, "what was generated stays"
    state.blocks.check(list(seqs.values()))


def test_nobody_overtakes_a_waiting_sequence_that_does_not_fit_yet() -> None:
    state, seqs = state_of(num_blocks=4, a=8, b=12, c=1)
    assert step(state, SchedulerConfig()) == {0: 8}
    assert list(state.waiting) == [seqs["b"], seqs["c"]]


def test_ending_a_sequence_gives_back_its_blocks_wherever_it_is() -> None:
    state, seqs = state_of(num_blocks=8, a=8, b=40)
    step(state, SchedulerConfig())
    for _ in range(2):  # ending twice is harmless
        finish(state, seqs["a"], FinishReason.ABORT)
        finish(state, seqs["b"], FinishReason.ABORT)
    assert state.blocks.usage == 0.0
    assert not state.running
    assert not state.waiting


def add(state: SchedulerState, seq_id: int, length: int, priority: int = 0, **params: int) -> Sequence:
    """One more waiting sequence with a prompt of its own."""
    seq = Sequence(seq_id, [1000 * seq_id + i for i in range(length)], SamplingParams(**params), priority)
    enqueue(state, seq)
    return seq


def test_the_better_priority_goes_first_then_who_came_first() -> None:
    state = SchedulerState(BlockManager(64, 4))
    for number, priority in enumerate([5, 0, 5, -1]):
        add(state, number, 4, priority)
    assert list(step(state, SchedulerConfig(max_num_seqs=1))) == [3]
    assert [seq.seq_id for seq in state.waiting] == [1, 0, 2]


def test_for_a_better_priority_the_least_important_one_gives_its_slot_or_its_blocks() -> None:
    for limits, blocks in (({"max_num_seqs": 2}, 64), ({}, 5)):
        state = SchedulerState(BlockManager(blocks, 4))
        config = SchedulerConfig(**limits)
        first, second = add(state, 0, 4), add(state, 1, 4)
        step(state, config)
        urgent = add(state, 2, 4, priority=-1)
        output = schedule(state, config)
        assert output.preempted == (second,)
        assert state.running == [urgent, first]
        add(state, 3, 4)
        assert schedule(state, config).preempted == (), "equals do not displace each other"


def test_a_long_prompt_leaves_room_for_every_decode_even_if_it_is_more_important() -> None:
    state = SchedulerState(BlockManager(64, 4))
    config = SchedulerConfig(max_num_batched_tokens=64, prefill_chunk=24, mixed_tokens=21)
    decodes = [add(state, number, 2, priority=1) for number in range(3)]
    step(state, config)
    long = add(state, 3, 100)
    for _ in range(3):
        assert step(state, config) == {3: 18, 0: 1, 1: 1, 2: 1}
    assert step(state, replace(config, mixed_tokens=3))[3] == LEAST_CHUNK
    for seq in decodes:
        finish(state, seq, FinishReason.STOP)
    assert step(state, config) == {3: 24}, "alone too, lest an abort or a newcomer waits for long"
    assert long.num_output_tokens == 0


def test_more_decodes_than_tokens_do_not_stop_the_most_important_prompt() -> None:
    state = SchedulerState(BlockManager(64, 4))
    for number in range(4):
        add(state, number, 1, priority=1)
    step(state, SchedulerConfig())
    add(state, 4, 3)
    assert step(state, SchedulerConfig(max_num_batched_tokens=2)) == {4: 1, 0: 1}


def test_drafts_are_computed_with_the_last_token_and_what_is_refused_is_computed_anew() -> None:
    state, seqs = state_of(a=5)
    seq = seqs["a"]
    step(state, SchedulerConfig())
    seq.drafts = [8, 9, 10]
    (item,) = schedule(state, SchedulerConfig()).scheduled
    assert (item.start, item.num_new_tokens, item.num_drafts, item.wanted) == (5, 4, 3, range(5, 9))
    assert seq.span(4, 9) == [4, 7, 8, 9, 10]
    advance(SchedulerOutput((item,), (), ()), [[8, 1]])  # the first draft was right, then something else came
    assert seq.output == [7, 8, 1]
    assert seq.num_computed_tokens == 7
    assert step(state, SchedulerConfig()) == {0: 1}


def test_drafts_cost_nobody_a_block_or_a_turn() -> None:
    state, seqs = state_of(num_blocks=4, a=4, b=3)
    step(state, SchedulerConfig())
    seqs["a"].drafts = [1] * 8
    output = schedule(state, SchedulerConfig())
    assert output.preempted == ()
    assert [item.num_new_tokens for item in output.scheduled] == [1, 1]
    advance(output, [[7], [7]])
    seqs["a"].drafts = seqs["b"].drafts = [1, 2]
    assert step(state, SchedulerConfig(max_num_batched_tokens=5)) == {0: 1, 1: 1}


def test_a_prompt_to_be_scored_comes_in_short_chunks_and_every_row_is_wanted_once() -> None:
    state = SchedulerState(BlockManager(200, 4))
    seq = add(state, 0, SCORED_CHUNK + 10, prompt_logprobs=1)
    rows = []
    for _ in range(4):
        output = schedule(state, SchedulerConfig())
        rows.append([*output.scheduled[0].wanted])
        advance(output, [[7] for item in output.scheduled if item.samples])
    assert rows[0] == list(range(SCORED_CHUNK))
    assert rows[1] == list(range(SCORED_CHUNK, SCORED_CHUNK + 10))
    assert rows[2:] == [[SCORED_CHUNK + 10], [SCORED_CHUNK + 11]]
    assert not seq.scoring


@pytest.mark.parametrize(
    "field", ["max_num_seqs", "max_num_batched_tokens", "max_model_len", "prefill_chunk", "mixed_tokens"]
)
def test_limits_below_one_are_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        SchedulerConfig(**{field: 0})


class Model:
    """Stands in for the model: remembers which token each slot of the cache holds, and checks drafts by a coin."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.slots: dict[tuple[int, int], int] = {}

    def compute(self, output: SchedulerOutput) -> None:
        """Write all, then see that whoever reads finds its own tokens; then choose."""
        for item in output.scheduled:
            for offset, token in enumerate(item.seq.span(item.start, item.start + item.num_new_tokens)):
                block, place = divmod(item.start + offset, 4)
                self.slots[item.seq.block_table[block], place] = token
        for item in output.scheduled:
            found = [self.slots[item.seq.block_table[p // 4], p % 4] for p in range(item.start)]
            assert found == item.seq.tokens[: item.start], "the cache holds something else"
        chosen = []
        for item in output.scheduled:
            if item.samples:
                accepted = self.random.randint(0, item.num_drafts)
                chosen.append([*item.seq.drafts[:accepted], self.random.randint(0, 1)])
        advance(output, chosen)


@settings(max_examples=50, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 12), st.integers(1, 30), st.integers(1, 10), st.integers(0, 2), st.booleans(), st.booleans()
        ),
        min_size=1,
        max_size=12,
    ),
    num_blocks=st.integers(10, 24),
    budget=st.integers(1, 24),
    chunk=st.integers(1, 24),
    mixed=st.integers(1, 24),
    most=st.integers(1, 6),
    drafts=st.integers(0, 4),
    random=st.randoms(use_true_random=False),
)
def test_whatever_arrives_every_sequence_ends_in_time_and_no_block_is_left(
    arrivals: list[tuple[int, int, int, int, bool, bool]],
    num_blocks: int,
    budget: int,
    chunk: int,
    mixed: int,
    most: int,
    drafts: int,
    random: Random,
) -> None:
    """Arrival step, prompt length, answer length, priority, whether the client leaves after half, whether scored.

    In time: after its arrival, and after each arrival of a better priority, a sequence takes at most as many steps
    as it and all more important ones have tokens.
    """
    state, model = SchedulerState(BlockManager(num_blocks, 4)), Model(random)
    config = SchedulerConfig(most, budget, prefill_chunk=chunk, mixed_tokens=mixed)
    coming = sorted(enumerate(arrivals), key=lambda item: (item[1][0], item[0]))
    sequences: list[Sequence] = []
    patience: dict[Sequence, int] = {}
    total: dict[Sequence, int] = {}
    number_of: dict[Sequence, int] = {}
    clock = 0
    while coming or state.waiting or state.running:
        while coming and coming[0][1][0] <= clock:
            number, (_, length, _, priority, _, scored) = coming.pop(0)
            prompt = [random.randint(0, 1) for _ in range(length)]  # so few tokens that prefixes are shared often
            params = SamplingParams(prompt_logprobs=0 if scored else None)
            seq = Sequence(number, prompt, params, priority)
            seq.seq_id = len(sequences)
            sequences.append(seq)
            total[seq] = length + arrivals[number][2]
            number_of[seq] = number
            unfinished = [*state.waiting, *state.running, seq]
            for other in unfinished:
                if seq.rank <= other.rank:
                    patience[other] = sum(total[ahead] for ahead in unfinished if ahead.rank <= other.rank)
            enqueue(state, seq)
        for seq in state.running:
            seq.drafts = [random.randint(0, 1) for _ in range(drafts)] if seq.decoding else []
        output = schedule(state, config)
        assert output.num_tokens <= budget
        assert len(state.running) <= most
        for item in output.scheduled:
            assert item.start == item.seq.num_computed_tokens
            assert item.start + item.num_new_tokens <= item.seq.num_tokens + len(item.seq.drafts)
        unfinished = [*state.waiting, *state.running]
        if unfinished:
            first = min(unfinished, key=lambda seq: seq.rank)
            assert any(item.seq is first for item in output.scheduled), "the most important one always advances"
        model.compute(output)
        for seq in unfinished:
            patience[seq] -= 1
            assert patience[seq] >= 0, "it waits for longer than it has to"
        for seq in list(state.running):
            _, _, answer, _, leaves, _ = arrivals[number_of[seq]]
            if seq.num_output_tokens >= (answer // 2 if leaves else answer):
                finish(state, seq, FinishReason.ABORT if leaves else FinishReason.LENGTH)
        state.blocks.check(sequences)
        clock += 1
    assert all(seq.status is Status.FINISHED for seq in sequences)
    assert state.blocks.usage == 0.0
