"""Request bodies of the API. Every field here has an effect; every other is refused by name.

Types are strict: "5" is no number. A null is the same as leaving a field out.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_PROMPTS = 256
MAX_MESSAGES = 4096
MAX_STOPS = 16

# Fields that clients know from OpenAI or vLLM, and why they are refused here.
UNSUPPORTED = {
    "tools": "tools are not supported by this server yet; send the messages without tools.",
    "tool_choice": "tool_choice is not supported by this server yet; leave it out.",
    "parallel_tool_calls": "parallel_tool_calls is not supported by this server yet; leave it out.",
    "functions": "functions are not supported; leave them out.",
    "function_call": "function_call is not supported; leave it out.",
    "response_format": "response_format is not supported by this server yet; ask for the format in the prompt.",
    "structured_outputs": "structured_outputs are not supported by this server yet; leave them out.",
    "best_of": "best_of is not supported; use n and choose among the answers.",
    "use_beam_search": "use_beam_search is not supported by this server yet; leave it out.",
    "length_penalty": "length_penalty belongs to beam search, which is not supported by this server yet.",
    "suffix": "suffix is not supported; this model only continues a text.",
    "prompt_logprobs": "prompt_logprobs are not supported by this server yet; use logprobs.",
    "user": "user has no effect here; leave it out.",
    "store": "store is not supported; leave it out.",
    "metadata": "metadata has no effect here; leave it out.",
    "service_tier": "service_tier has no effect here; leave it out.",
    "reasoning_effort": "reasoning_effort has no effect on this model; leave it out.",
    "modalities": "modalities are not supported; this model writes text.",
    "audio": "audio is not supported; this model writes text.",
    "prediction": "prediction is not supported; leave it out.",
    "priority": "priority is not supported by this server yet; requests are served first come, first served.",
    "truncate_prompt_tokens": "truncate_prompt_tokens is not supported; shorten the prompt.",
    "bad_words": "bad_words are not supported by this server yet; use logit_bias.",
    "allowed_token_ids": "allowed_token_ids are not supported by this server yet; use logit_bias.",
    "guided_json": "guided_json is not supported by this server; leave it out.",
    "guided_regex": "guided_regex is not supported by this server; leave it out.",
    "guided_choice": "guided_choice is not supported by this server; leave it out.",
    "guided_grammar": "guided_grammar is not supported by this server; leave it out.",
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


def _bias_keys(value: Any) -> Any:
    """JSON's object keys are strings; here they are token ids."""
    if isinstance(value, dict):
        return {int(key) if isinstance(key, str) and key.isdigit() else key: item for key, item in value.items()}
    return value


class SamplingFields(Body):
    """What both kinds of generation share; names and meaning are OpenAI's and vLLM's."""

    model: str | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
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
    stream: bool = False
    stream_options: StreamOptions | None = None
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


class Message(Body):
    """One message of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by line breaks, as vLLM does."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class ClassifyRequest(Body):
    """POST /classify."""

    model: str | None = None
    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]

    @property
    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.input] if isinstance(self.input, str) else self.input
