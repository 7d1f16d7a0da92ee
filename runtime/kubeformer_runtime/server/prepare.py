"""From a parsed body to what the engine gets: prompts as tokens, sampling, the form that binds the answer.

Everything that can be wrong with a request is found here, before the first byte of an answer.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from kubeformer_runtime.engine.core import Request
from kubeformer_runtime.engine.sampling_params import ParameterError, StructuredOutput
from kubeformer_runtime.server.chat import as_tools, conversation, no_template
from kubeformer_runtime.server.chat_shape import ChatShape
from kubeformer_runtime.server.errors import bad_request
from kubeformer_runtime.server.protocol import ChatRequest, CompletionRequest, SamplingFields
from kubeformer_runtime.server.sampling import check_stream_options, resolve
from kubeformer_runtime.server.serving import Generator, Serving
from kubeformer_runtime.server.shapes import CompletionShape, DecodeToken, Head, Prompt, Wishes
from kubeformer_runtime.server.tools import Toolbox, toolbox_of

MAX_SEQUENCES = 1024  # prompts times n, of one request


@dataclass(slots=True)
class Generation:
    """One HTTP request on its way: the engine's requests, and how to say what they bring."""

    serving: Serving
    generator: Generator
    head: Head
    shape: ChatShape | CompletionShape
    requests: list[Request]
    prompts: list[Prompt]  # of the requests
    interval: int = 1  # tokens a chunk of a stream
    source: str = ""  # the field that binds the answer to a form

    @property
    def n(self) -> int:
        return self.requests[0].params.n

    @property
    def opens(self) -> bool:
        """Whether a stream opens each choice with a chunk of its own."""
        return self.shape.opens(self.prompts)


def prepare_chat(serving: Serving, body: ChatRequest, answer_id: str | None = None) -> Generation:
    """Render the messages and check everything; ApiError or ParameterError where something is wrong."""
    generator, name = serving.need_generator(), serving.check_model(body.model)
    _check_combinations(body, logprobs=body.logprobs)
    toolbox = toolbox_of(body)
    prompt = chat_tokens(generator, name, body, toolbox)
    shape = ChatShape(decode_token(generator), _wishes(body, logprobs=body.logprobs))
    reader = partial(toolbox.reader, _call_id) if toolbox else None
    tier = "default" if body.service_tier else None
    head = Head(answer_id or _answer_id(body, shape), int(serving.wall_clock()), name, tier, body.metadata)
    known = Prompt(prompt, body.messages[-1].text if body.echo else "", reader)
    return _generation(serving, generator, head, body, shape, [known], toolbox)


def chat_tokens(generator: Generator, name: str, body: ChatRequest, toolbox: Toolbox | None) -> list[int]:
    """The prompt of a conversation as tokens."""
    text = render_chat(generator, name, body, toolbox)
    return generator.model.tokenizer.encode(text, add_special_tokens=bool(body.add_special_tokens))


def render_chat(generator: Generator, name: str, body: ChatRequest, toolbox: Toolbox | None) -> str:
    """The prompt of a conversation."""
    if (template := generator.template) is None:
        raise no_template(name)
    if body.echo and body.messages[-1].role != "assistant":
        raise bad_request("echo needs the assistant's message as the last one; leave it out.", "echo")
    variables = dict(body.chat_template_kwargs)
    template.check_variables(variables, ("messages", "add_generation_prompt", "tools", "documents"))
    for field in ("documents", "reasoning_effort"):
        if (value := getattr(body, field)) is not None:
            if field not in template.names:
                raise bad_request(f"{field} has no effect on this model's chat template; leave it out.", field)
            variables[field] = value
    functions = toolbox.functions if toolbox else ()
    if functions and template.takes_tools:
        variables["tools"] = as_tools(functions)
    return template.render(
        conversation(body.messages, functions, template),
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        variables=variables,
    )


def prepare_completion(serving: Serving, body: CompletionRequest) -> Generation:
    """Tokenise the prompts and check everything; ApiError or ParameterError where something is wrong."""
    generator, name = serving.need_generator(), serving.check_model(body.model)
    _check_combinations(body, logprobs=body.logprobs is not None)
    echoed = body.echo and body.logprobs is not None
    if echoed and body.stream:
        raise bad_request("echo with logprobs cannot be streamed; leave one of the three out.", "echo")
    special = True if body.add_special_tokens is None else body.add_special_tokens
    tokenizer, size = generator.model.tokenizer, generator.model.vocab_size
    prompts: list[Prompt] = []
    for prompt in _prompts(body):
        if isinstance(prompt, str):
            prompts.append(Prompt(tokenizer.encode(prompt, add_special_tokens=special), prompt if body.echo else ""))
            continue
        if (wrong := next((token for token in prompt if not 0 <= token < size), None)) is not None:
            raise bad_request(f"prompt names token {wrong}; the vocabulary has 0 to {size - 1}.", "prompt")
        text = tokenizer.decode(prompt, skip_special_tokens=body.skip_special_tokens) if body.echo else ""
        prompts.append(Prompt(list(prompt), text))
    wishes = replace(_wishes(body, logprobs=body.logprobs is not None), echoed_logprobs=echoed)
    shape = CompletionShape(decode_token(generator), wishes)
    head = Head(_answer_id(body, shape), int(serving.wall_clock()), name)
    return _generation(serving, generator, head, body, shape, prompts, None)


async def bind(generation: Generation) -> Generation:
    """Compile the form that the answer must have, if any; ParameterError that names its field where it cannot be."""
    form = generation.requests[0].params.structured
    if form is None:
        return generation
    try:
        structure = await generation.generator.structures.compile(form)
    except ParameterError as error:
        raise ParameterError(generation.source, str(error)) from None
    generation.requests = [replace(request, structure=structure) for request in generation.requests]
    return generation


def decode_token(generator: Generator) -> DecodeToken:
    """A function from a token id to its text."""
    return lambda token: generator.model.tokenizer.decode([token], skip_special_tokens=False)


def constraint_of(body: SamplingFields, toolbox: Toolbox | None) -> tuple[StructuredOutput | None, str]:
    """The form that binds the answer, and the field that asked for it."""
    wanted, format = body.structured_outputs, body.response_format
    if format is not None and format.type == "text":
        format = None
    if wanted is not None and format is not None:
        raise bad_request(
            "structured_outputs and response_format exclude each other; leave one of them out.", "structured_outputs"
        )
    if toolbox is not None:
        if (schema := toolbox.schema) is not None:
            return StructuredOutput.of_schema(schema), "tools"
        grammar = toolbox.grammar
        return (None if grammar is None else StructuredOutput("grammar", grammar)), "tools"
    if format is not None:
        if format.json_schema is None:
            return StructuredOutput("json_object"), "response_format"
        return StructuredOutput.of_schema(format.json_schema.schema_), "response_format.json_schema.schema"
    if wanted is None:
        return None, ""
    if wanted.json_ is not None:
        return StructuredOutput.of_schema(wanted.json_), "structured_outputs.json"
    if wanted.regex is not None:
        return StructuredOutput("regex", wanted.regex), "structured_outputs.regex"
    if wanted.choice is not None:
        return StructuredOutput("choice", tuple(wanted.choice)), "structured_outputs.choice"
    if wanted.grammar is not None:
        return StructuredOutput("grammar", wanted.grammar), "structured_outputs.grammar"
    return StructuredOutput("json_object"), "structured_outputs.json_object"


def _check_combinations(body: SamplingFields, *, logprobs: bool) -> None:
    """Fields that mean nothing without another one."""
    check_stream_options(body)
    if body.stream_interval is not None and not body.stream:
        raise bad_request("stream_interval needs stream to be true; set stream or leave this out.", "stream_interval")
    if body.prompt_logprobs is not None and body.stream:
        raise bad_request("prompt_logprobs cannot be streamed; leave one of them out.", "prompt_logprobs")
    if body.truncation_side is not None and body.truncate_prompt_tokens is None:
        raise bad_request("truncation_side needs truncate_prompt_tokens; give both or neither.", "truncation_side")
    if body.return_tokens_as_token_ids and not (logprobs or body.prompt_logprobs is not None):
        raise bad_request(
            "return_tokens_as_token_ids needs logprobs; ask for them or leave this out.", "return_tokens_as_token_ids"
        )


def _wishes(body: SamplingFields, *, logprobs: bool) -> Wishes:
    return Wishes(logprobs, body.return_token_ids, body.return_tokens_as_token_ids, body.prompt_logprobs is not None)


def _answer_id(body: SamplingFields, shape: ChatShape | CompletionShape) -> str:
    return shape.id_prefix + (body.request_id or secrets.token_hex(16))


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _prompts(body: CompletionRequest) -> Sequence[str | Sequence[int]]:
    """The prompts, one or several, in whichever of the four forms."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    first = body.prompt[0]
    return [body.prompt] if isinstance(first, int) else body.prompt  # type: ignore[return-value, list-item]


def _truncated(body: SamplingFields, tokens: list[int], max_model_len: int) -> list[int]:
    """The prompt as short as asked for."""
    wanted = body.truncate_prompt_tokens
    if wanted is None:
        return tokens
    if wanted > max_model_len:
        raise bad_request(
            f"truncate_prompt_tokens is {wanted}, but this model takes at most {max_model_len}; give less, or -1.",
            "truncate_prompt_tokens",
        )
    length = max(1, max_model_len - (body.max_tokens or 1)) if wanted == -1 else wanted
    if body.truncation_side == "right":
        return tokens[:length]
    return tokens[max(0, len(tokens) - length) :]


def _generation(
    serving: Serving,
    generator: Generator,
    head: Head,
    body: ChatRequest | CompletionRequest,
    shape: ChatShape | CompletionShape,
    prompts: list[Prompt],
    toolbox: Toolbox | None,
) -> Generation:
    if len(prompts) * max(body.n, 0) > MAX_SEQUENCES:
        raise bad_request(
            f"{len(prompts)} prompts with n = {body.n} ask for more than {MAX_SEQUENCES} answers; send fewer.", "n"
        )
    model = generator.model
    structured, source = constraint_of(body, toolbox)
    adapter = serving.adapter(head.model)
    run = secrets.token_hex(8)  # a client may give two requests the same id
    requests, kept = [], []
    for index, prompt in enumerate(prompts):
        tokens = _truncated(body, prompt.tokens, model.max_model_len)
        if not tokens:
            raise bad_request("The prompt has no tokens; give at least one.", "prompt")
        params = resolve(
            body,
            serving.settings.sampling,
            model.generation,
            prompt_tokens=len(tokens),
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            tokenizer=model.tokenizer,
        )
        scored = params.prompt_logprobs
        if shape.wishes.echoed_logprobs:
            scored = max(scored or 0, params.logprobs or 0)
        params = replace(params, structured=structured, prompt_logprobs=scored)
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        request = Request(f"{head.id}.{run}-{index}", tokens, params, seed, body.priority, adapter, body.cache_salt)
        generator.engine.core.check(request)
        requests.append(request)
        kept.append(replace(prompt, tokens=tokens))
    return Generation(serving, generator, head, shape, requests, kept, body.stream_interval or 1, source)
