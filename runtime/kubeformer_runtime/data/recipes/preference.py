"""preference: a prompt and two answers, of which one was preferred; for DPO, https://arxiv.org/abs/2305.18290

Prompt and answers are texts, or lists of messages as in chat. Where the base has a chat template, a text prompt is the
user's message and an answer the assistant's; else the answer follows the prompt as it is, up to the end token. What the
base itself thinks of both answers (the reference) never changes: it is computed here, once, and stored with the rows.
Legend: R rows, X all tokens of a split, B rows of a batch, T tokens of the longest sequence of a batch, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kubeformer.contract.job import JobSettings, Preference
from kubeformer.contract.names import Reason
from kubeformer_runtime.chat_template import Template, TemplateRefused, to_json
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepared import IGNORE, Beat, Bool, Float32, Int32, Int64
from kubeformer_runtime.data.read import BadRow, RawRow
from kubeformer_runtime.data.recipes import Encoded, Parts
from kubeformer_runtime.data.recipes.chat import (
    Conversation,
    compiled,
    conversation,
    rendered_with_answers,
    said_tokens,
)
from kubeformer_runtime.data.recipes.packed import Document
from kubeformer_runtime.data.recipes.texts import chunks, clean_field, divided, flattened, given_tokenizer
from kubeformer_runtime.data.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

_REFERENCE_ROWS = 4  # pairs at once; the reference needs no gradients
_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and two continuations, as messages. `text` is all of it as JSON."""

    prompt: tuple[Mapping[str, Any], ...]
    chosen: tuple[Mapping[str, Any], ...]
    rejected: tuple[Mapping[str, Any], ...]
    text: str


@dataclass(frozen=True, slots=True)
class PreferenceSplit:
    """R pairs: sequence 2r is row r's prompt with the chosen answer, 2r + 1 with the rejected one."""

    token_ids_X: Int32
    said_X: Bool  # tokens of the answers
    offsets_R21: Int64  # sequence n is token_ids_X[offsets_R21[n] : offsets_R21[n + 1]]
    reference_R2: Float32  # log-probability of both answers under the base, in nats

    def __len__(self) -> int:
        return len(self.reference_R2)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return len(self.token_ids_X)

    @property
    def lengths_R(self) -> Int64:
        """Tokens of both sequences of each row."""
        return np.diff(self.offsets_R21[::2])


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """2 B sequences, padded behind: the chosen ones of B rows, then the rejected ones."""

    inputs_NT: Int32
    targets_NT: Int64  # IGNORE where nothing of an answer follows
    reference_B2: Float32
    weights_B: Float32  # 0 for fillers


class PreferenceRecipe:
    """See Recipe."""

    split_type = PreferenceSplit

    def __init__(self, settings: JobSettings, task: Preference) -> None:
        self.settings, self.task, self.prepare = settings, task, settings.data.prepare
        if settings.model.base is None:
            raise DataError(
                Reason.SETTINGS_INVALID,
                "spec.task.preference goes on from a model that answers already: set spec.model.uri or trainingJobRef",
            )

    @property
    def fields(self) -> Mapping[str, str]:
        """See Recipe."""
        task, where = self.task, "task.preference"
        return {
            task.prompt_field: f"{where}.promptField",
            task.chosen_field: f"{where}.chosenField",
            task.rejected_field: f"{where}.rejectedField",
        }

    def example(self, row: RawRow) -> Pair | BadRow:
        """See Recipe."""
        parts = []
        for name, role in (
            (self.task.prompt_field, "user"),
            (self.task.chosen_field, "assistant"),
            (self.task.rejected_field, "assistant"),
        ):
            if isinstance(row.fields.get(name), list):
                made = conversation(row, name, self.prepare)
                if isinstance(made, BadRow):
                    return made
                parts.append(made.messages)
            else:
                text = clean_field(row, name, self.prepare)
                if isinstance(text, BadRow):
                    return text
                parts.append(({"role": role, "content": text},))
        prompt, chosen, rejected = parts
        if chosen == rejected:
            both = f"{self.task.chosen_field!r} and {self.task.rejected_field!r}"
            return BadRow(row.place, f"fields {both} are the same answer, so none can be preferred")
        for name, answer in ((self.task.chosen_field, chosen), (self.task.rejected_field, rejected)):
            if answer[-1]["role"] != "assistant":
                return BadRow(row.place, f"field {name!r} does not end with a message of the role assistant")
        return Pair(prompt, chosen, rejected, to_json(parts, sort_keys=True))

    def texts(self, example: Pair) -> Sequence[str]:
        """See Recipe."""
        return [message["content"] for part in (example.prompt, example.chosen, example.rejected) for message in part]

    def key(self, example: Pair) -> str:
        """See Recipe."""
        return example.text

    def digest_parts(self, example: Pair) -> Iterable[str]:
        """See Recipe."""
        return (example.text,)

    def divide(self, kept: Sequence[Pair], validation: Sequence[Pair] | None, beat: Beat) -> Parts[Pair]:
        """See Recipe; pairs with the same prompt stay on one side."""
        return divided(self.settings, kept, validation, beat, key=lambda pair: to_json(pair.prompt, sort_keys=True))

    def tokenizer(self, train: Sequence[Pair], beat: Beat) -> TextTokenizer:
        """The base's."""
        tokenizer = given_tokenizer(self.settings)
        assert tokenizer is not None
        return tokenizer

    def encode(self, parts: Parts[Pair], tokenizer: TextTokenizer | None, beat: Beat) -> Encoded:
        """See Recipe."""
        assert tokenizer is not None
        network, warnings = self._base(), list[str]()
        template = compiled(tokenizer) if tokenizer.chat_template is not None else None
        splits = list[PreferenceSplit | None]()
        for name, rows in (("data", parts.train), ("data.validation", parts.validation), ("data.test", parts.test)):
            if rows is None:
                splits.append(None)
                continue
            documents = self._documents(name, rows, template, tokenizer, warnings, beat)
            token_ids_X, offsets_R21 = flattened([document.token_ids_N.tolist() for document in documents])
            said_X = np.concatenate([document.said_N for document in documents])
            unknown = np.zeros((len(documents) // 2, 2), dtype=np.float32)
            split = PreferenceSplit(token_ids_X, said_X, offsets_R21, unknown)
            splits.append(with_reference(split, network, tokenizer.pad_id, beat))
        train, validation, test = splits
        assert train is not None
        assert validation is not None
        return Encoded(train, validation, test, {}, tuple(warnings))

    def _base(self) -> "nn.Module":
        import torch

        from kubeformer_runtime.model.errors import ModelError
        from kubeformer_runtime.model.llama import Llama
        from kubeformer_runtime.model.weights import load

        base = self.settings.model.base
        assert base is not None
        network = load(Path(base.path), torch.float32).module()
        if not isinstance(network, Llama):
            raise ModelError(f"{base.uri} is no language model; a preference goes on from one")
        return network

    def _documents(
        self,
        name: str,
        rows: Sequence[Pair],
        template: Template | None,
        tokenizer: TextTokenizer,
        warnings: list[str],
        beat: Beat,
    ) -> list[Document]:
        """Two a row, cut to the sequence length; rows of which an answer lies beyond it are left out."""
        room, documents, left_out = self.task.sequence_length + 1, list[Document](), 0
        for chunk in chunks(rows, beat):
            for row in chunk:
                try:
                    both = [
                        self._document(row.prompt, part, template, tokenizer) for part in (row.chosen, row.rejected)
                    ]
                except TemplateRefused as error:
                    raise DataError(
                        Reason.DATA_INVALID, f"{name}: the model's chat template refuses a row: {error}. Mend the row"
                    ) from None
                cut = [Document(one.token_ids_N[:room], one.said_N[:room]) for one in both]
                different = not np.array_equal(cut[0].token_ids_N, cut[1].token_ids_N)
                if different and all(one.said_N[1:].any() for one in cut):
                    documents += cut
                else:
                    left_out += 1
        length = self.task.sequence_length
        if not documents:
            raise DataError(
                Reason.DATA_INVALID,
                f"{name}: within task.preference.sequenceLength ({length} tokens) none of {len(rows)} rows has two "
                "different answers; raise it, or shorten the prompts",
            )
        if left_out:
            warnings.append(
                f"{name}: {left_out} of {len(rows)} rows have no two different answers within "
                f"task.preference.sequenceLength ({length} tokens) and are left out"
            )
        return documents

    def _document(
        self,
        prompt: Sequence[Mapping[str, Any]],
        answer: Sequence[Mapping[str, Any]],
        template: Template | None,
        tokenizer: TextTokenizer,
    ) -> Document:
        """Prompt and answer as one sequence, of which the answer's last message is judged."""
        if template is not None:
            text, spans = rendered_with_answers(template, Conversation((*prompt, *answer), (), ""), tokenizer)
            ((ids, places),) = tokenizer.encode_with_places([text])
            said = said_tokens(places, spans[-1:])
        else:
            before, after = tokenizer.encode(["\n".join(m["content"] for m in part) for part in (prompt, answer)])
            before = before if tokenizer.bos_id in (None, tokenizer.eos_id) else [tokenizer.bos_id, *before]
            after = after if tokenizer.eos_id is None else [*after, tokenizer.eos_id]
            ids, said = [*before, *after], [False] * len(before) + [True] * len(after)
        return Document(np.asarray(ids, dtype=np.int32), np.asarray(said, dtype=np.bool_))


def recipe(settings: JobSettings) -> PreferenceRecipe:
    """The recipe of a preference."""
    assert isinstance(settings.task, Preference)
    return PreferenceRecipe(settings, settings.task)


def preference_batch(split: PreferenceSplit, rows_B: Int64, weights_B: Float32, pad_id: int) -> PreferenceBatch:
    """Gather and pad."""
    sequences_N = np.concatenate([2 * rows_B, 2 * rows_B + 1])
    begins_N, ends_N = split.offsets_R21[sequences_N], split.offsets_R21[sequences_N + 1]
    width = -(-int((ends_N - begins_N).max() - 1) // _MULTIPLE) * _MULTIPLE
    inputs_NT = np.full((len(sequences_N), width), pad_id, dtype=np.int32)
    targets_NT = np.full((len(sequences_N), width), IGNORE, dtype=np.int64)
    for row, (begin, end) in enumerate(zip(begins_N, ends_N, strict=True)):
        ids, said = split.token_ids_X[begin:end], split.said_X[begin:end]
        inputs_NT[row, : len(ids) - 1] = ids[:-1]
        targets_NT[row, : len(ids) - 1] = np.where(said[1:], ids[1:], IGNORE)
    return PreferenceBatch(inputs_NT, targets_NT, split.reference_R2[rows_B], weights_B)


def answer_logprobs(network: "nn.Module", batch: PreferenceBatch) -> "Tensor":
    """(2 B,), the log-probability of each sequence's answer: the sum over its tokens, in nats."""
    import torch
    from torch.nn import functional as F

    device = next(network.parameters()).device
    target_NT = torch.from_numpy(batch.targets_NT).to(device)
    logit_NTV = network(torch.from_numpy(batch.inputs_NT).to(device)).float()
    loss_NT = F.cross_entropy(logit_NTV.transpose(1, 2), target_NT, ignore_index=IGNORE, reduction="none")
    return -loss_NT.sum(1)


def with_reference(split: PreferenceSplit, network: "nn.Module", pad_id: int, beat: Beat) -> PreferenceSplit:
    """The split with what `network` thinks of its answers."""
    import torch

    reference_R2 = np.zeros((len(split), 2), dtype=np.float32)
    with torch.no_grad():
        for begin in range(0, len(split), _REFERENCE_ROWS):
            beat()
            rows_B = np.arange(begin, min(begin + _REFERENCE_ROWS, len(split)), dtype=np.int64)
            batch = preference_batch(split, rows_B, np.ones(len(rows_B), dtype=np.float32), pad_id)
            reference_R2[rows_B] = answer_logprobs(network, batch).numpy().reshape(2, -1).T
    return PreferenceSplit(split.token_ids_X, split.said_X, split.offsets_R21, reference_R2)
