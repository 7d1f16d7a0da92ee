"""Chat completions' messages to the prompt that a model was trained on. Pure.

The template is rendered by `chat_template`. Functions reach the model through the template's `tools`; a template that
knows none gets them in the system message, and calls and results as text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kubeformer_runtime.chat_template import Template, TemplateRefused, call_as_text, result_as_text, to_json
from kubeformer_runtime.server.errors import ApiError, bad_request
from kubeformer_runtime.server.protocol import Function, Message

PREAMBLE = """You may call functions. These are defined, one JSON object a line, between <tools> and </tools>:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments as one JSON object between <tool_call> and </tool_call>:
<tool_call>
{{"name": "the function's name", "arguments": {{"the argument's name": "its value"}}}}
</tool_call>
The results come back between <tool_response> and </tool_response>."""


class ChatTemplate(Template):
    """A compiled template whose refusals are answers of the API. Raises jinja2.TemplateError where it is broken."""

    @property
    def knows_developers(self) -> bool:
        """Whether the role "developer" is one of its own; elsewhere it means the system."""
        return "developer" in self.texts

    def check_variables(self, variables: Mapping[str, Any], taken: Sequence[str]) -> None:
        """Raise ApiError for chat_template_kwargs that are set already (`taken`), or that the template never reads."""
        for name in variables:
            field = f"chat_template_kwargs.{name}"
            if name in taken or name in self._special_tokens:
                raise bad_request(f"{field} is set already; leave it out.", field)
            if name not in self.names:
                raise bad_request(f"{field} has no effect on this model's chat template; leave it out.", field)

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
        try:
            text = super().render(messages, add_generation_prompt=add_generation_prompt, variables=variables)
        except TemplateRefused as error:
            raise bad_request(f"The chat template refuses these messages: {error}", "messages") from None
        if continue_final_message:
            return _cut_after_last(text, messages[-1]["content"])
        return text


def conversation(
    messages: Sequence[Message], tools: Sequence[Function], template: ChatTemplate
) -> list[dict[str, Any]]:
    """The messages as the template wants them. Functions that it cannot present are put into the system message."""
    native = template.takes_tools
    out: list[dict[str, Any]] = []
    calls: set[str] = set()
    for place, message in enumerate(messages):
        role = "system" if message.role == "developer" and not template.knows_developers else message.role
        item: dict[str, Any] = {"role": role, "content": message.text}
        if message.name is not None:
            item["name"] = message.name
        calls.update(call.id for call in message.tool_calls)
        if message.tool_call_id is not None:
            if message.tool_call_id not in calls:
                field = f"messages.{place}.tool_call_id"
                raise bad_request(
                    f"{field} is {message.tool_call_id}, but no message before it has a call of this id.", field
                )
            item["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            functions = [_call(message, place, number) for number in range(len(message.tool_calls))]
            if native:
                item["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": function}
                    for call, function in zip(message.tool_calls, functions, strict=True)
                ]
            else:
                texts = [call_as_text(function) for function in functions]
                item["content"] = "\n".join([*filter(None, [message.text]), *texts])
        elif role == "tool" and not native:
            item = {"role": "user", "content": result_as_text(message.text)}
        out.append(item)
    if tools and not native:
        preamble = PREAMBLE.format(tools="\n".join(to_json(tool["function"]) for tool in as_tools(tools)))
        if out[0]["role"] == "system":
            out[0] = out[0] | {"content": f"{out[0]['content']}\n\n{preamble}"}
        else:
            out.insert(0, {"role": "system", "content": preamble})
    return out


def as_tools(functions: Sequence[Function]) -> list[dict[str, Any]]:
    """Functions as OpenAI writes `tools`, which is what templates expect."""
    tools = []
    for function in functions:
        described = {"name": function.name, "description": function.description, "parameters": function.parameters}
        tools.append(
            {"type": "function", "function": {name: item for name, item in described.items() if item is not None}}
        )
    return tools


def _call(message: Message, place: int, number: int) -> dict[str, Any]:
    """One call with its arguments as an object, which is what templates expect."""
    function = message.tool_calls[number].function
    try:
        arguments = json.loads(function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        field = f"messages.{place}.tool_calls.{number}.function.arguments"
        raise bad_request(f"{field} is no JSON object; give back what the model wrote.", field)
    return {"name": function.name, "arguments": arguments}


def _cut_after_last(text: str, content: str) -> str:
    """The prompt up to the end of the last message's content."""
    for wanted in (content, content.strip()):
        if wanted and (place := text.rfind(wanted)) >= 0:
            return text[: place + len(wanted)]
    raise bad_request(
        "continue_final_message is set, but the chat template does not show the last message; give it content.",
        "continue_final_message",
    )


def no_template(model: str) -> ApiError:
    """The answer of a model without a chat template."""
    return bad_request(f"{model} has no chat template; use POST /v1/completions with the prompt as text.", "messages")
