"""Chat templates: messages to the prompt that a model was trained on, as `transformers` renders them. Pure.

Templates come with models, so they run in jinja2's immutable sandbox.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kubeformer_runtime.server.errors import ApiError, bad_request

MAX_PROMPT_CHARACTERS = 10_000_000


class ChatTemplate:
    """A compiled template. Raises jinja2.TemplateError where the source is broken."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], now: Callable[[], datetime.datetime] | None = None
    ) -> None:
        """`now` answers templates that ask for the date; None: the machine's clock."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        clock = now or datetime.datetime.now
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: clock().strftime(form)
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt.

        `continue_final_message` leaves the last message open, so that the answer goes on with its text;
        `variables` are handed to the template beside messages and special tokens.

        Raises:
            ApiError: 400, where the template refuses the messages.
        """
        if continue_final_message and add_generation_prompt:
            raise bad_request(
                "continue_final_message and add_generation_prompt exclude each other; leave one of them out.",
                "continue_final_message",
            )
        taken = {"messages", "add_generation_prompt", *self._special_tokens}
        if clash := sorted(taken & set(variables or {})):
            raise bad_request(
                f"chat_template_kwargs may not hold {clash[0]}; it is set already.", "chat_template_kwargs"
            )
        try:
            text = self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
                **(variables or {}),
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
            raise bad_request(f"The chat template refuses these messages: {error}", "messages") from None
        if continue_final_message:
            return _cut_after_last(text, messages[-1]["content"])
        return text


def _cut_after_last(text: str, content: str) -> str:
    """The prompt up to the end of the last message's content."""
    for wanted in (content, content.strip()):
        if wanted and (place := text.rfind(wanted)) >= 0:
            return text[: place + len(wanted)]
    raise bad_request(
        "continue_final_message is set, but the chat template does not show the last message; give it content.",
        "continue_final_message",
    )


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """jinja2's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def no_template(model: str) -> ApiError:
    """The answer of a model without a chat template."""
    return bad_request(f"{model} has no chat template; use POST /v1/completions with the prompt as text.", "messages")
