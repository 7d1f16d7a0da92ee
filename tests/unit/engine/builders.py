"""A tiny engine for tests: a random Llama of two layers, a tokenizer of bytes, and a model that runs a script."""

import asyncio
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from kubeformer_runtime.engine.batch import Batch, build_batch
from kubeformer_runtime.engine.block_manager import BlockManager
from kubeformer_runtime.engine.core import EngineCore, ModelRunner, Request
from kubeformer_runtime.engine.llama_runner import LlamaRunner
from kubeformer_runtime.engine.plan import Scheduled
from kubeformer_runtime.engine.sampling_params import SamplingParams
from kubeformer_runtime.engine.scheduler import SchedulerConfig
from kubeformer_runtime.engine.sequence import Sequence as EngineSequence
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.llama import Llama
from kubeformer_runtime.model.weights import save, tensors_of
from tests.unit.model.builders import llama_config, random_llama

VOCABULARY = 300
BOS, EOS = 257, 258
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> EngineTokenizer:
    """One token a byte (ids 0 to 255), then <pad>, <bos>, <eos>."""
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(_letters())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "<bos>", "<eos>")])
    return EngineTokenizer(tokenizer, {"bos_token": "<bos>", "eos_token": "<eos>"}, chat_template)


@cache
def _letters() -> list[str]:
    """The letter that stands for each byte (GPT-2's table: a printable one for itself, the others from 256 on)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(byte if byte in printable else next(rest)) for byte in range(256)]


def tiny_config(**changes: object) -> LlamaConfig:
    """The model room's tiny Llama with a vocabulary that holds every byte."""
    return llama_config(**{"vocabulary_size": VOCABULARY, "max_length": 128, "eos_token_ids": (EOS,), **changes})


@torch.inference_mode()
def expected_logits(model: Llama, tokens: list[int]) -> torch.Tensor:
    """Logits after the last token, from the plain model."""
    logits: torch.Tensor = model(torch.tensor([tokens]))[0, -1].float()
    return logits


def next_logits(
    runner: ModelRunner, prompts: Sequence[list[int]], adapters: Sequence[str | None] = ()
) -> list[torch.Tensor]:
    """Logits after each prompt, all computed in one step."""
    blocks = BlockManager(runner.num_blocks, runner.block_size)
    items = []
    for number, prompt in enumerate(prompts):
        seq = EngineSequence(number, prompt, SamplingParams(), adapter=adapters[number] if adapters else None)
        assert blocks.allocate(seq, len(prompt))
        items.append(Scheduled(seq, 0, len(prompt)))
    return list(runner.execute(build_batch(items, runner.block_size, runner.dtype)))


def runner_of(model: Llama, *, num_blocks: int = 64, block_size: int = 4, pack: bool = True) -> LlamaRunner:
    """The engine's version of a model."""

    def weights() -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in tensors_of(model).items()}

    return LlamaRunner(model.config, weights(), num_blocks=num_blocks, block_size=block_size, pack=pack, reload=weights)


def tiny_core(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    max_model_len: int = 100,
    prefix_caching: bool = True,
    speculative_tokens: int = 0,
    seed: int = 0,
) -> EngineCore:
    """An engine around the random model."""
    runner = runner_of(random_llama(tiny_config(), seed), num_blocks=num_blocks, block_size=block_size)
    limits = SchedulerConfig(max_num_seqs, max_num_batched_tokens, max_model_len)
    return EngineCore(
        runner,
        limits,
        byte_tokenizer(),
        frozenset({EOS}),
        prefix_caching=prefix_caching,
        speculative_tokens=speculative_tokens,
    )


class ScriptRunner:
    """A model that says what it is told: the token after position p of a prompt is `script(tokens so far)`."""

    dtype = torch.float32
    device = torch.device("cpu")
    kernels = "script"

    def __init__(self, script: Callable[[int], int], num_blocks: int = 64, block_size: int = 4) -> None:
        """`script` gives the next token from the position of the last one."""
        self.num_blocks, self.block_size = num_blocks, block_size
        self._script = script

    def execute(self, batch: Batch) -> Tensor:
        """Logits that leave one token."""
        logit_SV = torch.full((len(batch.sample_rows), VOCABULARY), -30.0)
        for row, position in enumerate(batch.positions[batch.sample_rows].tolist()):
            logit_SV[row, self._script(position)] = 30.0
        return logit_SV

    def release(self) -> None:
        """There is nothing to let go of."""

    def restore(self) -> None:
        """There is nothing to load."""


def script_core(text: bytes, prompt_length: int, *, end: bool = True, **limits: int) -> EngineCore:
    """An engine that answers any prompt of `prompt_length` tokens with `text`, then <eos>, over and over."""
    answer = [*text, EOS] if end else [*text]
    runner = ScriptRunner(lambda position: answer[(position + 1 - prompt_length) % len(answer)])
    config = SchedulerConfig(**{"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 200, **limits})
    return EngineCore(runner, config, byte_tokenizer(), frozenset({EOS}))


def request(request_id: str, prompt: Sequence[int] | bytes, seed: int = 0, **params: object) -> Request:
    """A request; greedy unless `params` say otherwise."""
    fields = {"temperature": 0.0, "max_tokens": 8, **params}
    return Request(request_id, list(prompt), SamplingParams(**fields), seed)  # type: ignore[arg-type]


def outputs(core: EngineCore, *requests: Request) -> dict[tuple[str, int], list[int]]:
    """Run requests to their end: the tokens of each choice. Blocks are checked after every step."""
    for item in requests:
        core.check(item)
        core.add(item)
    tokens: dict[tuple[str, int], list[int]] = {}
    while core.has_work:
        for delta in core.step().deltas:
            tokens.setdefault((delta.request_id, delta.index), []).extend(item.token for item in delta.tokens)
        core.check_books()
    return tokens


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds that changes in another thread or task."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what changes sets no event
            await asyncio.sleep(0.002)


def write_model(directory: Path, *, chat_template: str | None = CHAT_TEMPLATE, seed: int = 0) -> Path:
    """The tiny Llama as a model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    save(directory, random_llama(tiny_config(), seed))
    tokenizer = byte_tokenizer()
    tokenizer.tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<bos>", "eos_token": "<eos>"}')
    if chat_template is not None:
        (directory / "chat_template.jinja").write_text(chat_template)
    return directory
