"""The scheduler: budgets hold, the first come finish first, and every sequence gets its tokens in order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.scheduler import SchedulerConfig, SchedulerState, advance, finish, schedule
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


@pytest.mark.parametrize("field", ["max_num_seqs", "max_num_batched_tokens", "max_model_len"])
def test_limits_below_one_are_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        SchedulerConfig(**{field: 0})


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 30), st.integers(1, 10), st.booleans()), min_size=1, max_size=12
    ),
    num_blocks=st.integers(10, 24),
    budget=st.integers(1, 24),
    most=st.integers(1, 6),
)
def test_whatever_arrives_every_sequence_ends_and_no_block_is_left(
    arrivals: list[tuple[int, int, int, bool]], num_blocks: int, budget: int, most: int
) -> None:
    """Arrival step, prompt length, answer length, and whether the client leaves after half of it."""
    state = SchedulerState(BlockManager(num_blocks, 4))
    config = SchedulerConfig(max_num_seqs=most, max_num_batched_tokens=budget)
    coming = sorted(enumerate(arrivals), key=lambda item: item[1][0])
    sequences: list[Sequence] = []
    wanted: dict[int, tuple[int, bool]] = {}
    clock = 0
    while coming or state.waiting or state.running:
        assert clock < 5000, "no progress"
        while coming and coming[0][1][0] <= clock:
            number, (_, length, answer, leaves) = coming.pop(0)
            seq = Sequence(number, [1] * length, SamplingParams())  # equal tokens: prefixes are shared all the time
            sequences.append(seq)
            wanted[number] = (answer, leaves)
            state.waiting.append(seq)
        output = schedule(state, config)
        assert output.num_tokens <= budget
        assert len(state.running) <= most
        for item in output.scheduled:
            assert item.start == item.seq.num_computed_tokens
            assert item.start + item.num_new_tokens <= item.seq.num_tokens
            assert len(item.seq.block_table) == state.blocks.blocks_for(item.start + item.num_new_tokens)
        if state.running or state.waiting:
            assert output.scheduled, "somebody advances in every step"
        advance(output, [[1] for item in output.scheduled if item.samples])
        for seq in list(state.running):
            answer, leaves = wanted[seq.seq_id]
            if seq.num_output_tokens >= (answer // 2 if leaves else answer):
                finish(state, seq, FinishReason.ABORT if leaves else FinishReason.LENGTH)
        state.blocks.check(sequences)
        clock += 1
    assert all(seq.status is Status.FINISHED for seq in sequences)
    assert state.blocks.usage == 0.0
