"""Request bodies of the API. Every field here has an effect; every other is refused by name.

Types are strict: "5" is no number. A null is the same as leaving a field out, and so is a value that says what
happens anyway (`NEUTRAL`), since clients send those by habit. /v1/responses has its bodies in responses_protocol.py.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kubeformer_runtime.server.errors import FieldError

MAX_PROMPTS = 256
MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_TOOLS = 128
_LEGACY = "is vLLM's former name; use structured_outputs instead."

# Fields that clients know from OpenAI or vLLM, and why they are refused here.
UNSUPPORTED = {
    "functions": "functions are OpenAI's former name for tools; use tools instead.",
    "function_call": "function_call is OpenAI's former name for tool_choice; use tool_choice instead.",
    "best_of": "best_of is not supported; use n and choose among the answers.",
    "suffix": "suffix is not supported; this model only continues a text.",
    "spaces_between_special_tokens": "spaces_between_special_tokens has no effect on this tokenizer; leave it out.",
    "logprob_token_ids": "logprob_token_ids are not supported; use logprobs.",
    "chat_template": "chat_template is not taken from requests; the model's own is used. Leave it out.",
    "mm_processor_kwargs": "mm_processor_kwargs has no effect on a model of text; leave it out.",
    "user": "user has no effect here; leave it out.",
    "safety_identifier": "safety_identifier has no effect here; leave it out.",
    "prompt_cache_key": "prompt_cache_key has no effect here; prompts are cached by their content. Leave it out.",
    "prompt_cache_retention": "prompt_cache_retention has no effect here; leave it out.",
    "store": "store is not supported on this path; use POST /v1/responses.",
    "modalities": "modalities other than text are not supported; this model writes text.",
    "audio": "audio is not supported; this model writes text.",
    "prediction": "prediction is not supported; leave it out.",
    "moderation": "moderation is not supported; leave it out.",
    "verbosity": "verbosity has no effect on this model; leave it out.",
    "web_search_options": "web_search_options are not supported; this server searches nothing.",
    "vllm_xargs": "vllm_xargs have no effect here; leave them out.",
    "kv_transfer_params": "kv_transfer_params have no effect here; leave them out.",
    "guided_json": f"guided_json {_LEGACY}",
    "guided_regex": f"guided_regex {_LEGACY}",
    "guided_choice": f"guided_choice {_LEGACY}",
    "guided_grammar": f"guided_grammar {_LEGACY}",
    "guided_json_object": f"guided_json_object {_LEGACY}",
    "guided_decoding_backend": "guided_decoding_backend cannot be chosen here; leave it out.",
    "guided_whitespace_pattern": "guided_whitespace_pattern is not supported; leave it out.",
}

# Of those, values that ask for what happens anyway: as good as leaving the field out.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "store": (False,),
    "modalities": (["text"],),
    "prediction": ({},),
}


class Body(BaseModel):
    """A JSON object whose unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: item for name, item in value.items() if item is not None}
        return value


class StreamOptions(Body):
    """What a stream says of tokens."""

    include_usage: bool = False  # a last chunk with the usage of the whole request
    continuous_usage_stats: bool = False  # usage so far in every chunk


class JsonSchema(Body):
    """`response_format.json_schema`. The schema is enforced whether `strict` is true or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool = False


class ResponseFormat(Body):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _matches(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise FieldError("json_schema", 'belongs to the type "json_schema"; give both or neither')
        if self.json_schema is not None and self.json_schema.schema_ is None:
            raise FieldError("json_schema.schema", "is missing; give the JSON schema of the answer")
        return self


class StructuredOutputs(Body):
    """vLLM's way to bind an answer to a form: exactly one of these."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=1024)] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        given = (self.json_, self.regex, self.choice, self.grammar, self.json_object or None)
        if sum(value is not None for value in given) != 1:
            raise FieldError("", "has to hold exactly one of json, regex, choice, grammar and json_object")
        return self


def _bias_keys(value: Any) -> Any:
    """JSON's object keys are strings; here they are token ids."""
    if isinstance(value, dict):
        return {int(key) if isinstance(key, str) and key.isdigit() else key: item for key, item in value.items()}
    return value


class SamplingFields(Body):
    """What all kinds of generation share; names and meaning are OpenAI's and vLLM's."""

    model: str | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOPS * 16)] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = None
    skip_special_tokens: bool = True
    logit_bias: Annotated[dict[int, float], BeforeValidator(_bias_keys), Field(max_length=1024)] = Field(
        default_factory=dict
    )
    bad_words: Annotated[list[str], Field(max_length=1024)] = Field(default_factory=list)
    allowed_token_ids: Annotated[list[int], Field(min_length=1)] | None = None
    prompt_logprobs: int | None = None
    use_beam_search: bool = False
    length_penalty: float | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None  # -1: what the model takes
    truncation_side: Literal["left", "right"] | None = None  # the side that is cut off; left unless told
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0  # lower goes first
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None  # prefixes are shared under one salt
    request_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")] | None = None  # the answer's id ends in it
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False  # log-probabilities call tokens token_id:N
    stream: bool = False
    stream_options: StreamOptions | None = None
    stream_interval: Annotated[int, Field(ge=1, le=1024)] | None = None  # tokens a chunk
    add_special_tokens: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, however they were written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


Prompts = (
    str
    | Annotated[list[int], Field(min_length=1)]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[list[int]], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionRequest(SamplingFields):
    """POST /v1/completions. `logprobs` is the number of alternatives a token."""

    prompt: Prompts
    echo: bool = False
    logprobs: int | None = None


class TextPart(Body):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """What a model called; `arguments` is JSON in a string."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """One message of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_call_id: str | None = None  # of a tool's message: which call it answers

    @model_validator(mode="after")
    def _whole(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise FieldError("content", "is missing; it is required")
        if self.tool_calls and self.role != "assistant":
            raise FieldError("tool_calls", f"belongs to messages of the assistant, not to the role {self.role}")
        if self.tool_call_id is not None and self.role != "tool":
            raise FieldError("tool_call_id", f"belongs to messages of a tool, not to the role {self.role}")
        return self

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by line breaks, as vLLM does."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class Function(Body):
    """A function that the model may call. Where it has to, arguments follow the schema; else where it is `strict`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Tool(Body):
    """One of `tools`."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """The name alone."""

    name: str


class NamedTool(Body):
    """`tool_choice` that names the function to be called."""

    type: Literal["function"]
    function: FunctionName


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    echo: bool = False  # the last message, where it is the assistant's, comes before what is new
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    documents: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    reasoning_effort: str | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None  # given back with the answer
    service_tier: Literal["auto", "default"] | None = None  # there is one, and the answer names it
