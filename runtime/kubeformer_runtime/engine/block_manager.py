"""BlockManager: who holds which block of the paged KV cache, and which blocks can be shared. Pure.

A block holds keys and values of `block_size` neighbouring tokens. Full blocks carry a hash of their content
and of everything before them, down to the adapter and the salt, so that a later sequence with the same beginning
uses them again (prefix caching). A block is in exactly one of two states: held (reference count above 0) or free.
Free blocks keep their content and hash until they are handed out again, the longest unused first (LRU); among the
blocks of one sequence the last goes first, because the first is shared more often.
"""

import hashlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass

from kubeformer_runtime.engine.sequence import Sequence


@dataclass(slots=True)
class Block:
    """One block: how many sequences hold it, and the hash it is registered under, if any."""

    references: int = 0
    hash: bytes | None = None


class BlockManager:
    """Hands out blocks; knows nothing of what is in them."""

    def __init__(self, num_blocks: int, block_size: int = 16, *, prefix_caching: bool = True) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks is {num_blocks} and block_size {block_size}; both have to be at least 1")
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._prefix_caching = prefix_caching
        self._blocks = [Block() for _ in range(num_blocks)]
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next to be handed out first
        self._by_hash: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks that sequences hold, 0 to 1."""
        return 1.0 - len(self._free) / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def match(self, seq: Sequence) -> list[int]:
        """Blocks that already hold the beginning of `seq`, never all of it: one token must be left to compute.

        None for a sequence whose prompt has to be scored, because what is not computed has no logits.
        """
        if not self._prefix_caching or seq.scoring:
            return []
        found: list[int] = []
        for index in range((seq.num_tokens - 1) // self.block_size):
            block = self._by_hash.get(self._hash(seq, index))
            if block is None:
                break
            found.append(block)
        return found

    def num_missing_blocks(self, seq: Sequence) -> int:
        """Blocks that `seq` does not have yet for its tokens and drafts."""
        return max(0, self.blocks_for(seq.num_computed_tokens + seq.num_uncomputed_tokens) - len(seq.block_table))

    def num_needed_blocks(self, seq: Sequence, cached: list[int]) -> int:
        """Free blocks that all of `seq` would take, given those that `match` found."""
        idle = sum(1 for block in cached if not self._blocks[block].references)
        return self.blocks_for(seq.num_tokens) - len(cached) + idle

    def admit(self, seq: Sequence, cached: list[int]) -> None:
        """Begin `seq` with the blocks that `match` found; their tokens count as computed."""
        for block in cached:
            if not self._blocks[block].references:
                del self._free[block]
            self._blocks[block].references += 1
        seq.block_table = list(cached)
        seq.num_computed_tokens = len(cached) * self.block_size
        seq.num_registered_blocks = len(cached)

    def allocate(self, seq: Sequence, num_new_tokens: int) -> bool:
        """Give `seq` the blocks for its next `num_new_tokens` tokens; False, and nothing changed, if there are too few.

        Blocks that become full in this step are registered at once: within a step every layer writes all keys
        and values before it reads any, so another sequence of the same step may already use them. A block that has
        a draft in it is not registered before the draft was accepted.
        """
        end = seq.num_computed_tokens + num_new_tokens
        missing = self.blocks_for(end) - len(seq.block_table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            seq.block_table.append(self._take())
        full = min(end, seq.num_tokens) // self.block_size
        if self._prefix_caching and full > seq.num_registered_blocks:
            for index in range(seq.num_registered_blocks, full):
                self._register(seq.block_table[index], self._hash(seq, index))
            seq.num_registered_blocks = full
        return True

    def free(self, seq: Sequence) -> None:
        """Take all blocks from `seq`; nothing of it counts as computed any more."""
        for block in reversed(seq.block_table):
            self._blocks[block].references -= 1
            if not self._blocks[block].references:
                self._free[block] = None
        seq.block_table = []
        seq.num_computed_tokens = seq.num_registered_blocks = 0

    def forget(self) -> None:
        """Drop every registered hash: nothing computed so far is found again."""
        for index in self._by_hash.values():
            self._blocks[index].hash = None
        self._by_hash.clear()

    def _take(self) -> int:
        index, _ = self._free.popitem(last=False)
        block = self._blocks[index]
        if block.hash is not None:
            del self._by_hash[block.hash]
            block.hash = None
        block.references = 1
        return index

    def _register(self, index: int, digest: bytes) -> None:
        block = self._blocks[index]
        if block.hash is None and digest not in self._by_hash:  # of two equal blocks the first is the one found
            block.hash = digest
            self._by_hash[digest] = index

    def _hash(self, seq: Sequence, index: int) -> bytes:
        """Hash of block `index` of `seq` and of all before it; remembered in the sequence."""
        size = self.block_size
        while len(seq.block_hashes) <= index:
            start = len(seq.block_hashes) * size
            before = seq.block_hashes[-1] if seq.block_hashes else _root(seq.adapter, seq.cache_salt)
            content = array("q", seq.tokens[start : start + size]).tobytes()
            seq.block_hashes.append(hashlib.blake2b(before + content, digest_size=16).digest())
        return seq.block_hashes[index]

    def check(self, sequences: list[Sequence]) -> None:
        """Raise AssertionError unless the books balance, given every sequence that may hold blocks. For tests."""
        held: dict[int, int] = {}
        for seq in sequences:
            assert len(set(seq.block_table)) == len(seq.block_table), "a sequence holds a block twice"
            assert len(seq.block_table) >= self.blocks_for(seq.num_computed_tokens), "computed tokens without a block"
            for block in seq.block_table:
                held[block] = held.get(block, 0) + 1
        for index, entry in enumerate(self._blocks):
            assert entry.references == held.get(index, 0), f"block {index} is counted {entry.references} times"
            assert (entry.references == 0) == (index in self._free), f"block {index} is lost or free while held"
            assert entry.hash is None or self._by_hash[entry.hash] == index, f"block {index} has a stray hash"
        assert all(self._blocks[index].hash == digest for digest, index in self._by_hash.items())


def _root(adapter: str | None, salt: str | None) -> bytes:
    """What stands for "all before" in the hash of a first block; empty for the plain model without salt."""
    if adapter is None and salt is None:
        return b""
    return hashlib.blake2b(repr((adapter, salt)).encode(), digest_size=16).digest()
