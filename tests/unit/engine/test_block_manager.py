"""The block manager: no block is lost, shared wrongly, or handed out while somebody holds it."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.sequence import Sequence

SIZE = 4


def sequence(tokens: list[int]) -> Sequence:
    return Sequence(0, tokens, SamplingParams())


def compute_all(blocks: BlockManager, seq: Sequence) -> None:
    """Admit a sequence and compute all of it in one step."""
    blocks.admit(seq, blocks.match(seq))
    assert blocks.allocate(seq, seq.num_tokens - seq.num_computed_tokens)
    seq.num_computed_tokens = seq.num_tokens


def test_a_second_prompt_with_the_same_beginning_uses_the_first_ones_full_blocks() -> None:
    blocks = BlockManager(16, SIZE)
    first, second = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9]), sequence([1, 2, 3, 4, 5, 6, 7, 8, 7, 7])
    compute_all(blocks, first)
    compute_all(blocks, second)
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]
    blocks.check([first, second])


def test_the_last_token_is_always_left_to_compute_because_its_logits_are_needed() -> None:
    blocks = BlockManager(16, SIZE)
    compute_all(blocks, sequence([1, 2, 3, 4]))
    assert blocks.match(sequence([1, 2, 3, 4])) == []
    assert len(blocks.match(sequence([1, 2, 3, 4, 5]))) == 1


def test_equal_blocks_after_different_beginnings_are_not_the_same_block() -> None:
    blocks = BlockManager(16, SIZE)
    compute_all(blocks, sequence([9, 9, 9, 9, 5, 6, 7, 8]))
    assert blocks.match(sequence([5, 6, 7, 8, 1])) == []


def test_freed_blocks_are_found_again_until_they_are_needed_and_the_oldest_go_first() -> None:
    blocks = BlockManager(4, SIZE)
    old, young = sequence([1, 1, 1, 1]), sequence([2, 2, 2, 2])
    for seq in (old, young):
        compute_all(blocks, seq)
        blocks.free(seq)
    assert blocks.usage == 0.0
    compute_all(blocks, sequence([3] * 10))  # three of four blocks: two never used, then the oldest
    assert blocks.match(sequence([1, 1, 1, 1, 0])) == []
    assert len(blocks.match(sequence([2, 2, 2, 2, 0]))) == 1


def test_without_room_nothing_changes() -> None:
    blocks = BlockManager(2, SIZE)
    seq = sequence([1] * 12)
    blocks.admit(seq, [])
    assert not blocks.allocate(seq, 12)
    assert seq.block_table == []
    assert blocks.num_free_blocks == 2


def test_idle_cached_blocks_count_once_when_a_sequence_asks_for_room() -> None:
    blocks = BlockManager(3, SIZE)
    first = sequence([1] * 8)
    compute_all(blocks, first)
    blocks.free(first)
    again = sequence([1] * 12)  # two cached blocks, both idle, and one more: exactly three
    assert blocks.num_needed_blocks(again, blocks.match(again)) == blocks.num_free_blocks
    longer = sequence([1] * 13)
    assert blocks.num_needed_blocks(longer, blocks.match(longer)) > blocks.num_free_blocks


def test_prefixes_are_shared_only_under_the_same_adapter_and_salt() -> None:
    ways = [{}, {"adapter": "a"}, {"cache_salt": "a"}, {"adapter": "a", "cache_salt": "a"}, {"adapter": "b"}]
    blocks = BlockManager(16, SIZE)
    for number, way in enumerate(ways):
        seq = Sequence(0, [1] * 9, SamplingParams(), **way)
        assert blocks.match(seq) == [], f"{way} found blocks of {ways[:number]}"
        compute_all(blocks, seq)
    for way in ways:
        assert len(blocks.match(Sequence(0, [1] * 9, SamplingParams(), **way))) == 2


def test_a_block_with_drafts_in_it_is_found_only_once_they_were_accepted() -> None:
    blocks = BlockManager(16, SIZE)
    seq = sequence([1, 2, 3])
    blocks.admit(seq, [])
    seq.drafts = [4, 5, 6, 7, 8]
    assert blocks.allocate(seq, 8)
    assert blocks.match(sequence([1, 2, 3, 4, 0])) == []
    seq.tokens += [4, 5, 9]  # two were right, then came a 9: the second block holds three refused drafts
    seq.num_computed_tokens, seq.drafts = 5, []
    assert blocks.allocate(seq, 1)
    assert len(blocks.match(sequence([1, 2, 3, 4, 0]))) == 1
    seq.tokens += [9, 9]
    seq.num_computed_tokens = 6
    assert blocks.allocate(seq, 2)
    assert len(blocks.match(sequence([1, 2, 3, 4, 5, 9, 9, 9, 0]))) == 2
    assert len(blocks.match(sequence([1, 2, 3, 4, 5, 6, 7, 8, 0]))) == 1
    blocks.check([seq])


def test_a_prompt_to_be_scored_uses_no_cached_block_because_what_is_not_computed_has_no_logits() -> None:
    blocks = BlockManager(16, SIZE)
    compute_all(blocks, sequence([1] * 9))
    scored = Sequence(0, [1] * 9, SamplingParams(prompt_logprobs=0))
    assert blocks.match(scored) == []
    scored.num_scored_tokens = 8
    assert len(blocks.match(scored)) == 2


@pytest.mark.parametrize(("number", "size"), [(0, 4), (4, 0)])
def test_a_cache_without_blocks_is_refused(number: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockManager(number, size)


class Machine(RuleBasedStateMachine):
    """Random admissions, growth and ends over a small cache, with prompts that often share their beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(12, SIZE)
        self.live: list[Sequence] = []
        self.content: dict[int, list[int]] = {}  # what a model would have written into each block

    def write(self, seq: Sequence, count: int) -> None:
        for position in range(seq.num_computed_tokens, seq.num_computed_tokens + count):
            block = seq.block_table[position // SIZE]
            kept = self.content.get(block, [])[: position % SIZE]
            self.content[block] = [*kept, seq.tokens[position]]
        seq.num_computed_tokens += count

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def admit(self, tokens: list[int]) -> None:
        seq = sequence(tokens)
        cached = self.blocks.match(seq)
        if self.blocks.num_needed_blocks(seq, cached) <= self.blocks.num_free_blocks:
            self.blocks.admit(seq, cached)
            count = seq.num_tokens - seq.num_computed_tokens
            assert self.blocks.allocate(seq, count), "num_needed_blocks promised room"
            self.write(seq, count)
            self.live.append(seq)

    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data: st.DataObject, token: int) -> None:
        if self.live:
            seq = data.draw(st.sampled_from(self.live))
            seq.tokens.append(token)
            if self.blocks.allocate(seq, 1):
                self.write(seq, 1)
            else:
                seq.tokens.pop()

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.live:
            seq = data.draw(st.sampled_from(self.live))
            self.live.remove(seq)
            self.blocks.free(seq)

    @invariant()
    def books_balance(self) -> None:
        self.blocks.check(self.live)

    @invariant()
    def every_sequence_still_finds_its_own_tokens(self) -> None:
        for seq in self.live:
            for index, block in enumerate(seq.block_table):
                mine = seq.tokens[index * SIZE : min((index + 1) * SIZE, seq.num_computed_tokens)]
                assert self.content[block][: len(mine)] == mine


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_random_use_keeps_books_and_content = Machine.TestCase
