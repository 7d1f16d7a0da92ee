"""Chat templates: messages to the text that a model reads, as `transformers` renders them, and where answers lie in it.

Trainer and server both render through this, so that a model is asked in the very form it was trained on. Templates
come with models, so they run in jinja2's immutable sandbox. Pure but for the date, where a template asks for it.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
from jinja2.sandbox import ImmutableSandboxedEnvironment

# OpenAI's successor of GPT-4's format, which most open models follow; for models that have <|im_start|>, <|im_end|>.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# For models with no token but that of the end: roles in plain text, as Zephyr has them.
PLAIN = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_OPEN, _CLOSE = "generation_opens", "generation_closes"  # variables that say what to write around marked text


class TemplateRefused(ValueError):
    """A template that cannot be compiled, or refuses the messages."""


class Template:
    """A compiled chat template. Raises jinja2.TemplateError where the source is broken."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], now: Callable[[], datetime.datetime] | None = None
    ) -> None:
        """`now` answers templates that ask for the date; None: the machine's clock."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        clock = now or datetime.datetime.now
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: clock().strftime(form)
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)
        tree = environment.parse(source)
        self.names = frozenset(node.name for node in tree.find_all(jinja2.nodes.Name))  # variables that it reads
        self.texts = frozenset(node.value for node in tree.find_all(jinja2.nodes.Const))
        self.marks_answers = tree.find(jinja2.nodes.ExtensionAttribute) is not None

    @property
    def takes_tools(self) -> bool:
        """Whether the template itself presents tools."""
        return "tools" in self.names

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text; `variables` are handed to the template beside messages and special tokens.

        Raises TemplateRefused where the template cannot render the messages.
        """
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
                **(variables or {}),
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
            raise TemplateRefused(str(error)) from None

    def with_answers(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a whole conversation, and from where to where the assistant speaks in it.

        Where the template marks that with {% generation %}, the marks are taken; else an answer is what is added to
        the prompt for it: render(all before, with the prompt for an answer) up to render(all up to the answer).

        Raises TemplateRefused as render, and where a template without marks writes earlier turns otherwise once
        later ones follow, so that what is added cannot be told.
        """
        if self.marks_answers:
            return self._marked(messages, variables or {})
        text = self.render(messages, add_generation_prompt=False, variables=variables)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], add_generation_prompt=True, variables=variables)
            after = self.render(messages[: number + 1], add_generation_prompt=False, variables=variables)
            if not (after.startswith(before) and text.startswith(after)):
                raise TemplateRefused(
                    f"it writes turns before message {number + 1} otherwise once it is answered or more turns follow; "
                    "put {% generation %} and {% endgeneration %} around what the assistant says"
                )
            spans.append((len(before), len(after)))
        return text, spans

    def _marked(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        text = self.render(messages, add_generation_prompt=False, variables=variables)
        # Two characters for private use that the text has not: their places are those of the marks.
        opens, closes = [char for char in map(chr, range(0xE000, 0xF8FF)) if char not in text][:2]
        marked = self.render(
            messages, add_generation_prompt=False, variables={**variables, _OPEN: opens, _CLOSE: closes}
        )
        spans, begin, removed = list[tuple[int, int]](), 0, 0
        for place, char in enumerate(marked):
            if char == opens:
                begin = place - removed
            elif char == closes:
                spans.append((begin, place - removed))
            removed += char in (opens, closes)
        if marked.replace(opens, "").replace(closes, "") != text:
            raise TemplateRefused("it changes what stands between {% generation %} and {% endgeneration %} afterwards")
        return text, spans


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}: what the assistant says, in the notation of `transformers`."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own type

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A block that passes its text through, between what _OPEN and _CLOSE hold."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_around", [jinja2.nodes.ContextReference()])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _around(self, context: jinja2.runtime.Context, caller: Callable[[], str]) -> str:
        return f"{context.get(_OPEN, '')}{caller()}{context.get(_CLOSE, '')}"


def to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """JSON as templates expect it: jinja2's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def call_as_text(function: Mapping[str, Any]) -> str:
    """A call of a function, for templates that know none."""
    return f"<tool_call>\n{to_json(function)}\n</tool_call>"


def result_as_text(content: str) -> str:
    """What a function gave back, for templates that know none."""
    return f"<tool_response>\n{content}\n</tool_response>"


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
