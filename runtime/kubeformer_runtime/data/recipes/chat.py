"""chat: conversations, rendered by the model's chat template; what the assistant says is to be learned.

A row is {"messages": [{"role": "system" | "user" | "assistant" | "tool", "content": "..."}, ...]}, where an assistant's
message may have `tool_calls` and the row `tools`, both as OpenAI writes them. The template is task.chat.template, else
the base's; a model without one gets ChatML, or plain-text roles where its vocabulary has no tokens for that.

A conversation longer than sequenceLength is cut at its end; one that has no answer left is left out, and counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from kubeformer.contract.job import Chat, JobSettings, Prepare
from kubeformer.contract.names import Reason
from kubeformer_runtime.chat_template import (
    CHATML,
    PLAIN,
    Template,
    TemplateRefused,
    call_as_text,
    result_as_text,
    to_json,
)
from kubeformer_runtime.data.clean import clean_text
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepared import Beat
from kubeformer_runtime.data.read import BadRow, RawRow, kind_of
from kubeformer_runtime.data.recipes import Encoded, Parts
from kubeformer_runtime.data.recipes.packed import Document, PackedSplit, pack_documents
from kubeformer_runtime.data.recipes.texts import chunks, divided, given_tokenizer, sampled
from kubeformer_runtime.data.tokenizer import TextTokenizer

ROLES = ("system", "user", "assistant", "tool")
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as templates take them. `text` is all of it as JSON: equal for equal conversations."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Any, ...]
    text: str


@dataclass(slots=True)
class Losses:
    """Conversations of which not everything is trained on."""

    cut: int = 0
    empty: int = 0  # nothing to learn is left
    refused: list[str] | None = None


class ChatRecipe:
    """See Recipe."""

    split_type = PackedSplit

    def __init__(self, settings: JobSettings, task: Chat) -> None:
        self.settings, self.task, self.prepare = settings, task, settings.data.prepare

    @property
    def fields(self) -> Mapping[str, str]:
        """See Recipe."""
        return {self.task.messages_field: "task.chat.messagesField"}

    def example(self, row: RawRow) -> Conversation | BadRow:
        """See Recipe."""
        name = self.task.messages_field
        made = conversation(row, name, self.prepare)
        if isinstance(made, BadRow) or self.task.loss_on == "All":
            return made
        if not any(message["role"] == "assistant" for message in made.messages):
            return BadRow(row.place, f"field {name!r} has no message of the role assistant to learn from")
        return made

    def texts(self, example: Conversation) -> Sequence[str]:
        """See Recipe."""
        return [message["content"] for message in example.messages]

    def key(self, example: Conversation) -> str:
        """See Recipe."""
        return example.text

    def digest_parts(self, example: Conversation) -> Iterable[str]:
        """See Recipe."""
        return (example.text,)

    def divide(
        self, kept: Sequence[Conversation], validation: Sequence[Conversation] | None, beat: Beat
    ) -> Parts[Conversation]:
        """See Recipe."""
        return divided(self.settings, kept, validation, beat, key=self.key)

    def tokenizer(self, train: Sequence[Conversation], beat: Beat) -> TextTokenizer:
        """See Recipe; it carries the template."""
        return chat_tokenizer(self.settings, self.task, sampled(train, self.texts, beat))

    def encode(self, parts: Parts[Conversation], tokenizer: TextTokenizer | None, beat: Beat) -> Encoded:
        """See Recipe."""
        assert tokenizer is not None
        _same_roles(parts)
        template, warnings = compiled(tokenizer), list[str]()
        splits, ends = list[PackedSplit | None](), set[int]()
        for name, rows in (("data", parts.train), ("data.validation", parts.validation), ("data.test", parts.test)):
            if rows is None:
                splits.append(None)
                continue
            losses = Losses()
            documents = self._documents(rows, template, tokenizer, losses, beat)
            self._judge(name, rows, documents, losses, warnings)
            ends |= {int(document.token_ids_N[document.said_N][-1]) for document in documents}
            splits.append(pack_documents(documents, self.task.sequence_length, tokenizer.pad_id))
        train, validation, test = splits
        assert train is not None
        assert validation is not None
        special = {tokenizer.token_id(token) for token in tokenizer.special_tokens}
        return Encoded(train, validation, test, {"ends": sorted(ends & special)}, tuple(warnings))

    def _documents(
        self,
        rows: Sequence[Conversation],
        template: Template,
        tokenizer: TextTokenizer,
        losses: Losses,
        beat: Beat,
    ) -> list[Document]:
        """What the assistant says is marked, cut to the sequence length."""
        room, documents = self.task.sequence_length + 1, list[Document]()
        for chunk in chunks(rows, beat):
            rendered = []
            for row in chunk:
                try:
                    rendered.append(rendered_with_answers(template, row, tokenizer))
                except TemplateRefused as error:
                    losses.refused = [*(losses.refused or []), str(error)]
            encoded = tokenizer.encode_with_places([text for text, _ in rendered])
            for (_, spans), (ids, places) in zip(rendered, encoded, strict=True):
                said = [True] * len(ids) if self.task.loss_on == "All" else said_tokens(places, spans)
                losses.cut += len(ids) > room
                document = Document(np.asarray(ids[:room], dtype=np.int32), np.asarray(said[:room], dtype=np.bool_))
                if document.said_N[1:].any():
                    documents.append(document)
                else:
                    losses.empty += 1
        return documents

    def _judge(
        self,
        name: str,
        rows: Sequence[Conversation],
        documents: Sequence[Document],
        losses: Losses,
        warnings: list[str],
    ) -> None:
        """Raises DataError where too little is left, else warns of what was lost."""
        length, refused = self.task.sequence_length, losses.refused or []
        if len(refused) * 100 > self.prepare.max_bad_rows_percent * len(rows):
            raise DataError(
                Reason.DATA_INVALID,
                f"{name}: the chat template refuses {len(refused)} of {len(rows)} conversations, more than "
                f"data.prepare.maxBadRowsPercent ({self.prepare.max_bad_rows_percent}) allows. The first: "
                f"{refused[0]}. Mend the rows, or give a template for them with task.chat.template",
            )
        if not documents:
            raise DataError(
                Reason.DATA_INVALID,
                f"{name}: within task.chat.sequenceLength ({length} tokens) none of {len(rows)} conversations has an "
                "answer to learn from; raise it, or shorten what stands before the answers",
            )
        if losses.cut:
            warnings.append(
                f"{name}: {losses.cut} of {len(rows)} conversations are longer than task.chat.sequenceLength "
                f"({length} tokens) and are cut; {losses.empty} have no answer left and are left out"
            )
        if refused:
            warnings.append(f"{name}: the chat template refuses {len(refused)} conversations: {refused[0]}")


def recipe(settings: JobSettings) -> ChatRecipe:
    """The recipe of a chat."""
    assert isinstance(settings.task, Chat)
    return ChatRecipe(settings, settings.task)


def conversation(row: RawRow, name: str, prepare: Prepare) -> Conversation | BadRow:
    """The messages of a row, checked and cleaned, or why they cannot be used."""
    value = row.fields.get(name)
    if not isinstance(value, list) or not value:
        what = "is empty" if value == [] else f"holds {kind_of(value)}, not a list of messages"
        return BadRow(row.place, f"field {name!r} {what}")
    messages = []
    for number, item in enumerate(value):
        message = _message(item, prepare)
        if isinstance(message, str):
            return BadRow(row.place, f"field {name!r}: message {number + 1} {message}")
        messages.append(message)
    tools = row.fields.get("tools") or []
    if not isinstance(tools, list):
        return BadRow(row.place, f"field 'tools' holds {kind_of(tools)}, not a list")
    return Conversation(tuple(messages), tuple(tools), to_json([messages, tools], sort_keys=True))


def _message(item: object, prepare: Prepare) -> dict[str, Any] | str:
    """One message as templates take it, or what is wrong with it."""
    if not isinstance(item, dict):
        return f"is {kind_of(item)}, not an object with role and content"
    role, content, calls = item.get("role"), item.get("content"), item.get("tool_calls")
    if role not in ROLES:
        return f"has the role {role!r}; known are {', '.join(ROLES)}"
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        return f"has {kind_of(content)} as content, not a text"
    content = clean_text(content, prepare.normalize)
    if not content and not calls:
        return "has no content"
    kept = {key: item[key] for key in ("name", "tool_calls", "tool_call_id") if item.get(key) is not None}
    return {"role": role, "content": content, **kept}


def chat_tokenizer(settings: JobSettings, task: Chat, texts: Iterable[str]) -> TextTokenizer:
    """The given tokenizer, or one trained on `texts` with ChatML's tokens; it carries the template to train with.

    Raises DataError where there is no template that fits it.
    """
    given = given_tokenizer(settings)
    tokenizer = given or TextTokenizer.train(
        texts, settings.data.vocabulary_size, more_tokens=(IM_START, IM_END), end=IM_END
    )
    if task.template is not None:
        try:
            return tokenizer.with_chat_template(Path(task.template.path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                Reason.DATA_NOT_FOUND, f"task.chat.template: {task.template.uri} cannot be read: {error}"
            ) from None
    if tokenizer.chat_template is not None:
        return tokenizer
    if tokenizer.token_id(IM_START) is not None and tokenizer.token_id(IM_END) is not None:
        return tokenizer.with_chat_template(CHATML)
    if tokenizer.eos_id is None:
        raise DataError(
            Reason.SETTINGS_INVALID,
            "task.chat: the model has neither a chat template nor a token that ends an answer (eos_token in "
            "tokenizer_config.json); give a template with task.chat.template",
        )
    return tokenizer.with_chat_template(PLAIN)


def compiled(tokenizer: TextTokenizer) -> Template:
    """The tokenizer's template. Raises DataError where it is none."""
    try:
        return Template(tokenizer.chat_template or PLAIN, tokenizer.named_tokens())
    except jinja2.TemplateError as error:
        raise DataError(
            Reason.MODEL_INVALID,
            f"the chat template cannot be compiled: {error}. Mend it, or give another with task.chat.template",
        ) from None


def rendered_with_answers(
    template: Template, row: Conversation, tokenizer: TextTokenizer
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation's text and where the assistant speaks, up to the token that ends each answer.

    White space that a template puts behind that token is nothing that a model has to say.
    """
    messages = list(row.messages)
    if not template.takes_tools:
        if row.tools:
            raise TemplateRefused("the row has tools, but the template presents none")
        messages = [_without_tools(message) for message in messages]
    text, spans = template.with_answers(messages, {"tools": list(row.tools)} if row.tools else None)
    if template.marks_answers:
        return text, spans
    ends, tight = tuple(tokenizer.special_tokens), list[tuple[int, int]]()
    for begin, end in spans:
        stripped = text[begin:end].rstrip()
        tight.append((begin, begin + len(stripped) if stripped.endswith(ends) else end))
    return text, tight


def _without_tools(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Calls and results as text, just as the server writes them for templates that know none."""
    if message["role"] == "tool":
        return {"role": "user", "content": result_as_text(message["content"])}
    calls = [call_as_text(call.get("function", call)) for call in message.get("tool_calls", ())]
    return {"role": message["role"], "content": "\n".join([*filter(None, [message["content"]]), *calls])}


def said_tokens(places: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token has a character in one of the spans. Both are in the order of the text."""
    said, number = list[bool](), 0
    for begin, end in places:
        while number < len(spans) and spans[number][1] <= begin:
            number += 1
        said.append(number < len(spans) and max(end, begin + 1) > spans[number][0])
    return said


def _same_roles(parts: Parts[Conversation]) -> None:
    """Raises DataError where a role is only in rows that are not trained on."""
    known = {message["role"] for row in parts.train for message in row.messages}
    for name, rows in (("data.validation", parts.validation), ("data.test", parts.test or [])):
        unknown = {message["role"] for row in rows for message in row.messages} - known
        if unknown:
            raise DataError(
                Reason.DATA_INVALID,
                f"{name}: the role {', '.join(sorted(map(repr, unknown)))} is in no conversation that is trained on "
                f"({', '.join(sorted(known))}). Correct it, or add training rows that have it",
            )
