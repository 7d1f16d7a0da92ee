"""Request bodies of /v1/responses, and their translation: a response is a chat whose history may lie with us. Pure.

Rules as in protocol.py. Items come back as answers gave them, so what only describes them (`id`, `status`,
`annotations`, `logprobs`) is accepted with them.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from kubeformer_runtime.server.errors import ApiError, FieldError
from kubeformer_runtime.server.protocol import (
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    UNSUPPORTED,
    Body,
    ChatRequest,
    Function,
    FunctionCall,
    FunctionName,
    JsonSchema,
    Message,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolCall,
)

UNSUPPORTED_RESPONSES = UNSUPPORTED | {
    "background": "background is not supported; send the request and wait, or stream.",
    "conversation": "conversation is not supported; use previous_response_id, or send the items.",
    "prompt": "prompt templates are not kept here; send input and instructions.",
    "max_completion_tokens": "max_completion_tokens is called max_output_tokens on this path.",
    "reasoning": "reasoning has no effect on this model; leave it out.",
    "max_tool_calls": "max_tool_calls belongs to tools that a server calls itself; leave it out.",
    "max_tokens": "max_tokens is called max_output_tokens on this path.",
    "messages": "messages are called input on this path.",
    "response_format": "response_format is called text.format on this path.",
    "n": "n is not supported on this path; use POST /v1/chat/completions.",
}
NEUTRAL_RESPONSES: dict[str, tuple[object, ...]] = {"background": (False,), "reasoning": ({},), "n": (1,)}

# What the translation's fields are called on this path, for errors.
NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "messages": "input",
}


class Part(Body):
    """Text of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Body):
    """A message, the client's or the model's."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    id: str | None = None
    status: str | None = None


class InputCall(Body):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class InputResult(Body):
    """What the call brought."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Part]
    id: str | None = None
    status: str | None = None


def _kind(value: Any) -> str:
    """Which item this is. The tags have brackets, so that errors do not show them; see errors.py."""
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", "message")
    return f"[{kind}]"


Item = Annotated[
    Annotated[InputMessage, Tag("[message]")]
    | Annotated[InputCall, Tag("[function_call]")]
    | Annotated[InputResult, Tag("[function_call_output]")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="an item of type message, function_call or function_call_output",
    ),
]


class TextFormat(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _matches(self) -> "TextFormat":
        for field, value in (("name", self.name), ("schema", self.schema_)):
            if self.type == "json_schema" and value is None:
                raise FieldError(field, "is missing; json_schema needs it")
            if self.type != "json_schema" and value is not None:
                raise FieldError(field, 'belongs to the type "json_schema"; leave it out')
        return self


class TextConfig(Body):
    """`text`."""

    format: TextFormat | None = None


class ResponseTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolChoice(Body):
    """The function that has to be called."""

    type: Literal["function"]
    name: str


class ResponseStreamOptions(Body):
    """OpenAI pads streams to hide lengths; this server does not."""

    include_obfuscation: Literal[False] = False


class ResponsesRequest(Body):
    """POST /v1/responses; below the line, vLLM's fields beside OpenAI's."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextConfig | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include: list[Literal["message.output_text.logprobs"]] = Field(default_factory=list)
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] = "disabled"  # auto: the oldest messages go where all are too long
    metadata: Annotated[dict[str, str], Field(max_length=16)] = Field(default_factory=dict)
    service_tier: Literal["auto", "default"] | None = None
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    # ---
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool = False
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


# Fields that a chat has under the same name.
_SAME = tuple(
    ResponsesRequest.model_fields.keys() & ChatRequest.model_fields.keys() - {"tools", "tool_choice", "stream_options"}
)


def messages_of(body: ResponsesRequest) -> list[Message]:
    """The input as messages; calls that follow each other are one message of the assistant."""
    if isinstance(body.input, str):
        return [Message(role="user", content=body.input)]
    out: list[Message] = []
    for item in body.input:
        match item:
            case InputMessage():
                out.append(Message(role=item.role, content=_text(item.content)))
            case InputResult():
                out.append(Message(role="tool", content=_text(item.output), tool_call_id=item.call_id))
            case InputCall():
                call = ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments))
                if out and out[-1].role == "assistant":
                    out[-1] = out[-1].model_copy(update={"tool_calls": [*out[-1].tool_calls, call]})
                else:
                    out.append(Message(role="assistant", tool_calls=[call]))
    return out


def to_chat(body: ResponsesRequest, messages: Sequence[Message]) -> ChatRequest:
    """The same as a chat: `messages` are the history and the input, without the instructions."""
    messages = list(messages)
    if body.instructions is not None:
        first = messages[0]
        if first.role in ("system", "developer"):  # many templates take one system message only
            messages[0] = Message(role=first.role, content=f"{body.instructions}\n\n{first.text}")
        else:
            messages.insert(0, Message(role="system", content=body.instructions))
    logprobs = bool(body.include)
    choice: Literal["none", "auto", "required"] | NamedTool | None
    if isinstance(body.tool_choice, ResponseToolChoice):
        choice = NamedTool(type="function", function=FunctionName(name=body.tool_choice.name))
    else:
        choice = body.tool_choice
    fields: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    return ChatRequest(
        **fields,
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        logprobs=logprobs,
        response_format=_format(body.text.format if body.text else None),
        tools=[
            Tool(
                type="function",
                function=Function(
                    name=tool.name,
                    description=tool.description,
                    parameters=tool.parameters,
                    strict=bool(tool.strict),
                ),
            )
            for tool in body.tools
        ],
        tool_choice=choice,
    )


def renamed(error: ApiError) -> ApiError:
    """An error of the translation in the words of this path."""
    for theirs, ours in NAMES.items():
        if error.param is not None and (error.param == theirs or error.param.startswith(theirs + ".")):
            param = ours + error.param[len(theirs) :]
            message = error.message.replace(error.param, param).replace(theirs, ours)
            return ApiError(error.status, message, param, headers=error.headers)
    return error


def _text(content: str | Sequence[Part]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _format(wanted: TextFormat | None) -> ResponseFormat | None:
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        return ResponseFormat(type=wanted.type)
    schema = JsonSchema(name=wanted.name or "", description=wanted.description, schema=wanted.schema_)
    return ResponseFormat(type="json_schema", json_schema=schema)
