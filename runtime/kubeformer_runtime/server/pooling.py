"""POST /v1/embeddings /pooling /classify /score /rerank: from a parsed body to the answer, in vLLM's shapes.

What a model can be asked follows from its directory: an encoder without a head embeds (and scores by the cosine of
embeddings), one with a head classifies, and scores pairs where it has a single label; our own classifier classifies.
"""

import asyncio
import base64
import math
import secrets
import struct
from collections.abc import Sequence
from typing import Any

from kubeformer_runtime.engine.encoder_model import EncoderModel
from kubeformer_runtime.engine.pooling import PoolingInput
from kubeformer_runtime.model.encoder_config import Problem
from kubeformer_runtime.server.errors import bad_request
from kubeformer_runtime.server.pooling_protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    InputFields,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from kubeformer_runtime.server.serving import Labeller, Pooler, Serving

Vector = list[float]


async def embeddings(serving: Serving, body: EmbeddingRequest) -> dict[str, Any]:
    """POST /v1/embeddings."""
    name, pooler = serving.check_model(body.model), serving.need_pooler("embed")
    width = _width(pooler.model, body.dimensions)
    vectors, read = await _run(serving, pooler, await _encode(pooler.model, body))
    wanted = pooler.model.pooling.normalize if body.use_activation is None else body.use_activation
    vectors = [normalised(vector[:width]) if wanted else vector[:width] for vector in vectors]
    data = [
        {"index": index, "object": "embedding", "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    return _frame(serving, "embd-", name, data, read)


async def pooling(serving: Serving, body: PoolingRequest) -> dict[str, Any]:
    """POST /pooling: the embedding, or what the classes get."""
    name, pooler = serving.check_model(body.model), serving.need_pooler(None)
    vectors, read = await _run(serving, pooler, await _encode(pooler.model, body))
    data = [
        {
            "index": index,
            "object": "pooling",
            "data": _written(activated(pooler.model, vector, body.use_activation), body.encoding_format),
        }
        for index, vector in enumerate(vectors)
    ]
    return _frame(serving, "pool-", name, data, read)


async def classify(serving: Serving, body: ClassifyRequest) -> dict[str, Any]:
    """POST /classify: for each input the likeliest label and the probabilities of all."""
    name = serving.check_model(body.model)
    if serving.labeller is not None:
        labels: Sequence[str] = serving.labeller.engine.labels
        answers, read = await _classify_own(serving, serving.labeller, body)
    else:
        pooler = serving.need_pooler("classify")
        labels = pooler.model.labels
        vectors, read = await _run(serving, pooler, await _encode(pooler.model, body))
        answers = [activated(pooler.model, vector, body.use_activation) for vector in vectors]
    data = []
    for index, answer in enumerate(answers):
        best = max(range(len(answer)), key=answer.__getitem__)
        data.append({"index": index, "label": labels[best], "probs": answer, "num_classes": len(answer)})
    return _frame(serving, "classify-", name, data, read)


async def score(serving: Serving, body: ScoreRequest) -> dict[str, Any]:
    """POST /score and /v1/score."""
    name, firsts, seconds = serving.check_model(body.model), body.firsts, body.seconds
    if len(firsts) not in (1, len(seconds)):
        raise bad_request(
            f"text_1 has {len(firsts)} texts and text_2 {len(seconds)}; give one text_1, or as many as text_2.",
            "text_1",
        )
    scores, read = await _scores(serving, body, firsts, seconds, ("text_1", "text_2"))
    data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)]
    return _frame(serving, "score-", name, data, read)


async def rerank(serving: Serving, body: RerankRequest) -> dict[str, Any]:
    """POST /rerank, /v1/rerank and /v2/rerank: the best documents first."""
    name = serving.check_model(body.model)
    scores, read = await _scores(serving, body, [body.query], body.documents, ("query", "documents"))
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
    results = [
        {"index": index, "document": {"text": body.documents[index]}, "relevance_score": scores[index]}
        for index in order
    ]
    answer = _frame(serving, "rerank-", name, [], read)
    return {"id": answer["id"], "model": name, "usage": answer["usage"], "results": results}


async def _scores(
    serving: Serving,
    body: ScoreRequest | RerankRequest,
    firsts: Sequence[str],
    seconds: Sequence[str],
    fields: tuple[str, str],
) -> tuple[list[float], int]:
    """One score a pair, and the tokens read."""
    pooler = serving.need_pooler("score")
    model, cut = pooler.model, body.truncate_prompt_tokens
    if model.task == "classify":
        pairs = zip([firsts[0]] * len(seconds) if len(firsts) == 1 else firsts, seconds, strict=True)
        items = await asyncio.to_thread(
            lambda: [model.encode(first, second, field=fields[1], truncate=cut) for first, second in pairs]
        )
        vectors, read = await _run(serving, pooler, items)
        return [activated(model, vector, body.use_activation)[0] for vector in vectors], read
    if body.use_activation is False:
        raise bad_request("use_activation is false, but a cosine has no activation; leave it out.", "use_activation")
    items = await asyncio.to_thread(
        lambda: [
            model.encode(text, field=field, truncate=cut)
            for field, texts in zip(fields, (firsts, seconds), strict=True)
            for text in texts
        ]
    )
    vectors, read = await _run(serving, pooler, items)
    left, right = vectors[: len(firsts)], vectors[len(firsts) :]
    return [cosine(left[0] if len(left) == 1 else left[index], other) for index, other in enumerate(right)], read


async def _encode(model: EncoderModel, body: InputFields) -> list[PoolingInput]:
    """The inputs as token ids; ParameterError where one cannot be computed. Off the event loop: texts may be long."""

    def one(item: str | list[int]) -> PoolingInput:
        if isinstance(item, str):
            return model.encode(
                item, field="input", truncate=body.truncate_prompt_tokens, add_special_tokens=body.add_special_tokens
            )
        if body.truncate_prompt_tokens is not None:
            raise bad_request("truncate_prompt_tokens is for texts; shorten the token lists.", "truncate_prompt_tokens")
        return model.checked(PoolingInput(item), "input")

    return await asyncio.to_thread(lambda: [one(item) for item in body.items])


async def _run(serving: Serving, pooler: Pooler, items: Sequence[PoolingInput]) -> tuple[list[Vector], int]:
    """Raw vectors, and the tokens read."""
    began, read = serving.clock(), sum(len(item.tokens) for item in items)
    vectors = await pooler.engine.compute(items)
    serving.metrics.pooled(len(items), read, serving.clock() - began)
    return vectors, read


async def _classify_own(serving: Serving, labeller: Labeller, body: ClassifyRequest) -> tuple[list[Vector], int]:
    """Our own classifier frames and cuts texts as in training, so that it takes no token ids and no other wishes."""
    texts = [item for item in body.items if isinstance(item, str)]
    if len(texts) != len(body.items):
        raise bad_request("input holds token ids; this classifier takes texts.", "input")
    for field, usual in (("truncate_prompt_tokens", None), ("use_activation", None), ("add_special_tokens", True)):
        if getattr(body, field) != usual:
            raise bad_request(f"{field} cannot be chosen for this classifier; leave it out.", field)
    tokens = await asyncio.to_thread(labeller.model.encode, texts)
    began, read = serving.clock(), sum(len(item) for item in tokens)
    answers = await labeller.engine.classify(tokens)
    serving.metrics.pooled(len(tokens), read, serving.clock() - began)
    return answers, read


def _width(model: EncoderModel, dimensions: int | None) -> int:
    """How many numbers of a vector are wanted; ApiError where the model was not trained to be cut so."""
    width, allowed = model.encoder.config.width, model.encoder.config.matryoshka
    if dimensions is None or dimensions == width:
        return width
    if allowed is False:
        raise bad_request(
            f"dimensions is {dimensions}, but this model's embeddings have {width} numbers and were not trained to be "
            "cut (matryoshka); leave it out.",
            "dimensions",
        )
    if not 1 <= dimensions <= width or (allowed is not True and dimensions not in allowed):
        wanted = f"a number between 1 and {width}" if allowed is True else f"one of {', '.join(map(str, allowed))}"
        raise bad_request(f"dimensions is {dimensions}; give {wanted}.", "dimensions")
    return dimensions


def activated(model: EncoderModel, vector: Vector, wanted: bool | None) -> Vector:
    """A raw vector as the model's directory wants it to be read, or as the request does."""
    if model.task == "embed":
        return normalised(vector) if (model.pooling.normalize if wanted is None else wanted) else vector
    return vector if wanted is False else probabilities(vector, model.encoder.config.problem)


def probabilities(logits: Vector, problem: Problem) -> Vector:
    """Softmax over classes that exclude each other, else a sigmoid for each; values of regressions stay as they are."""
    if problem == "regression":
        return logits
    if problem == "multi_label" or len(logits) == 1:
        return [1 / (1 + math.exp(-value)) if value >= 0 else 1 - 1 / (1 + math.exp(value)) for value in logits]
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def normalised(vector: Vector) -> Vector:
    """The vector with length 1; a zero vector stays."""
    length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


def cosine(left: Vector, right: Vector) -> float:
    """The cosine of the angle between two vectors."""
    return math.fsum(a * b for a, b in zip(normalised(left), normalised(right), strict=True))


def _written(vector: Vector, encoding: str) -> Vector | str:
    """The numbers, or base64 of them as little-endian float32."""
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _frame(serving: Serving, prefix: str, name: str, data: list[dict[str, Any]], read: int) -> dict[str, Any]:
    return {
        "id": prefix + secrets.token_hex(16),
        "object": "list",
        "created": int(serving.wall_clock()),
        "model": name,
        "data": data,
        "usage": {"prompt_tokens": read, "total_tokens": read, "completion_tokens": 0},
    }
