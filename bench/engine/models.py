"""What is served: SmolLM2-135M, and small Llamas with random weights whose speed is the only thing of interest.

Real models of 1M to 30M parameters have small vocabularies, or nearly all of them would be embedding. Theirs is
SmolLM2's, cut to its first 4,096 tokens: byte-level BPE numbers its tokens in the order in which they were merged.
"""

import json
import pydoc_data.topics
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from examples import smollm2

VOCABULARY = 4096
MAX_LENGTH = 2048
SEED = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a small Llama."""

    name: str
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    mlp_width: int


# Heads of 32 or 64 and widths that are multiples of 32: what vLLM's attention and Q8_0 can do.
TINY = (
    Shape("llama-1M", 128, 3, 4, 2, 32, 352),
    Shape("llama-10M", 320, 7, 5, 5, 64, 864),
    Shape("llama-30M", 512, 9, 8, 4, 64, 1536),
)


def folder() -> Path:
    """Where the bench keeps models in other formats than the Hugging Face directory, and its small models."""
    return smollm2.cache() / "models" / "bench"


def tiny(shape: Shape) -> Path:
    """The Hugging Face directory of a small model in bf16, made once."""
    directory = folder() / shape.name
    if (directory / "tokenizer_config.json").is_file():
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_width,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    source = smollm2.ensure()
    document = json.loads((source / "tokenizer.json").read_text())
    vocabulary = {token: number for token, number in document["model"]["vocab"].items() if number < VOCABULARY}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in document["model"]["merges"]]
    document["model"]["vocab"] = vocabulary
    document["model"]["merges"] = [pair for pair in merges if "".join(pair) in vocabulary]
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] < VOCABULARY]
    (directory / "tokenizer.json").write_text(json.dumps(document))
    shutil.copy(source / "chat_template.jinja", directory)
    shutil.copy(source / "tokenizer_config.json", directory)  # last: with it the directory is whole
    return directory


def parameters(directory: Path) -> int:
    """How many numbers the weights are, tied embeddings once."""
    config = json.loads((directory / "config.json").read_text())
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    layer = width * head * (2 * heads + 2 * config["num_key_value_heads"]) + 3 * width * config["intermediate_size"]
    return int(config["num_hidden_layers"] * (layer + 2 * width) + width * config["vocab_size"] + width)


class Prompts:
    """English prompts of exact lengths, no two alike, and the same for every engine: Python's own manual, in slices."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
        self._tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids

    def take(self, number: int, length: int) -> str:
        """The prompt of a number. Raises IndexError where the manual ends."""
        span = length + 8
        begin = number * span
        # A slice may tokenise differently once it is text again: move on until it does not.
        for shift in range(span * 4):
            piece = self._tokens[begin + shift : begin + shift + length]
            if len(piece) < length:
                break
            text: str = self._tokenizer.decode(piece, skip_special_tokens=False)
            if self._tokenizer.encode(text, add_special_tokens=False).ids == piece:
                return text
        raise IndexError(f"there is no prompt {number} of {length} tokens")

    def several(self, first: int, count: int, length: int) -> list[str]:
        """`count` of them."""
        return [self.take(first + number, length) for number in range(count)]
