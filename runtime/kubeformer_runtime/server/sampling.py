"""From a request to SamplingParams: its own value, then the deployment's, then generation_config.json's. Pure."""

from collections.abc import Mapping
from typing import Any

from kubeformer.contract.server import SamplingDefaults
from kubeformer_runtime.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from kubeformer_runtime.server.errors import bad_request
from kubeformer_runtime.server.protocol import ChatRequest, CompletionRequest, SamplingFields

COMPLETION_MAX_TOKENS = 16  # OpenAI's and vLLM's default of /v1/completions


def resolve(
    request: ChatRequest | CompletionRequest,
    defaults: SamplingDefaults,
    generation: Mapping[str, Any],
    *,
    prompt_tokens: int,
    max_model_len: int,
    vocab_size: int,
    tokenizer: EngineTokenizer,
) -> SamplingParams:
    """The parameters of one prompt. `tokenizer` reads bad_words.

    Raises:
        ApiError, ParameterError: something is out of range, or prompt and answer are longer than the model.
    """
    max_tokens = _max_tokens(request, defaults, generation, prompt_tokens, max_model_len)
    if request.use_beam_search:
        params = _beam_params(request, max_tokens)
        params.validate(vocab_size)
        return params
    if request.length_penalty is not None:
        raise bad_request(
            "length_penalty needs use_beam_search to be true; set it or leave this out.", "length_penalty"
        )
    params = SamplingParams(
        n=request.n,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        temperature=_first(request.temperature, defaults.temperature, generation.get("temperature"), 1.0),
        top_p=_first(request.top_p, defaults.top_p, generation.get("top_p"), 1.0),
        top_k=_first(request.top_k, defaults.top_k, generation.get("top_k"), 0),
        min_p=_first(request.min_p, defaults.min_p, generation.get("min_p"), 0.0),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=_first(
            request.repetition_penalty, defaults.repetition_penalty, generation.get("repetition_penalty"), 1.0
        ),
        seed=_first(request.seed, defaults.seed, None, None),
        stop=request.stops,
        stop_token_ids=tuple(request.stop_token_ids),
        include_stop_str_in_output=request.include_stop_str_in_output,
        ignore_eos=request.ignore_eos,
        skip_special_tokens=request.skip_special_tokens,
        logprobs=_logprobs(request),
        prompt_logprobs=request.prompt_logprobs,
        logit_bias=request.logit_bias,
        bad_words=tuple(sequence for word in request.bad_words for sequence in tokenizer.word_tokens(word)),
        allowed_token_ids=None if request.allowed_token_ids is None else tuple(request.allowed_token_ids),
    )
    params.validate(vocab_size)
    return params


# What chooses or stops among samples, and the value that asks for nothing: beam search has no use for the rest.
_SAMPLING_ONLY: dict[str, tuple[object, ...]] = {
    "temperature": (None, 0),
    "top_p": (None, 1),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (None, 1),
    "seed": (None,),
    "stop": (None, []),
    "stop_token_ids": ([],),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": (None,),
    "prompt_logprobs": (None,),
    "response_format": (None,),
    "structured_outputs": (None,),
    "tools": ([],),
}


def _beam_params(request: ChatRequest | CompletionRequest, max_tokens: int) -> SamplingParams:
    """Beam search does not sample, so what the deployment says of sampling plays no part; nor may the request."""
    for name, nothing in _SAMPLING_ONLY.items():
        if getattr(request, name, nothing[0]) not in nothing:
            raise bad_request(f"{name} has no effect on beam search; leave it or use_beam_search out.", name)
    logprobs = _logprobs(request)
    if request.echo and logprobs is not None:
        raise bad_request("echo with logprobs is not possible with beam search; leave one of the three out.", "echo")
    return SamplingParams(
        n=request.n,
        max_tokens=max_tokens,
        temperature=0.0,
        include_stop_str_in_output=request.include_stop_str_in_output,
        ignore_eos=request.ignore_eos,
        skip_special_tokens=request.skip_special_tokens,
        logprobs=logprobs,
        use_beam_search=True,
        length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
    )


def check_stream_options(request: SamplingFields) -> None:
    """Raise ApiError where stream_options comes without a stream."""
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options needs stream to be true; set stream or leave this out.", "stream_options")


def _max_tokens(
    request: ChatRequest | CompletionRequest,
    defaults: SamplingDefaults,
    generation: Mapping[str, Any],
    prompt_tokens: int,
    max_model_len: int,
) -> int:
    field, wanted = "max_tokens", request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        if wanted is not None:
            raise bad_request("max_tokens and max_completion_tokens exclude each other; give one.", "max_tokens")
        field, wanted = "max_completion_tokens", request.max_completion_tokens
    room = max_model_len - prompt_tokens
    if room < 1:
        raise bad_request(
            f"The prompt has {prompt_tokens} tokens, but this model takes at most {max_model_len}, prompt and answer "
            "together; shorten the prompt.",
            "messages" if isinstance(request, ChatRequest) else "prompt",
        )
    if wanted is not None:
        if wanted > room:
            raise bad_request(
                f"{field} is {wanted}, but the prompt has {prompt_tokens} tokens and this model takes at most "
                f"{max_model_len}, prompt and answer together; give at most {room}.",
                field,
            )
        if wanted < 1:
            raise bad_request(f"{field} is {wanted}; give a number of at least 1.", field)
        return wanted
    usual = defaults.max_tokens or generation.get("max_new_tokens")
    if usual is None:
        usual = COMPLETION_MAX_TOKENS if isinstance(request, CompletionRequest) else room
    return max(min(int(usual), room), min(request.min_tokens, room), 1)


def _logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.logprobs
    if request.top_logprobs is not None:
        if not request.logprobs:
            raise bad_request("top_logprobs needs logprobs to be true; set logprobs or leave this out.", "top_logprobs")
        if not 0 <= request.top_logprobs <= MAX_LOGPROBS:
            raise bad_request(
                f"top_logprobs is {request.top_logprobs}; give a number between 0 and {MAX_LOGPROBS}.", "top_logprobs"
            )
    return (request.top_logprobs or 0) if request.logprobs else None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
