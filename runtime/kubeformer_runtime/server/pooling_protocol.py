"""Request bodies of the endpoints that answer with vectors and scores. Rules as in protocol.py."""

from typing import Annotated, Literal

from pydantic import Field

from kubeformer_runtime.server.protocol import Body

MAX_INPUTS = 2048  # texts of one request; OpenAI's number

Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
Tokens = Annotated[list[int], Field(min_length=1)]
Inputs = str | Tokens | Texts | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS)]


class PoolingFields(Body):
    """What all of them share. `truncate_prompt_tokens`: -1 for as many tokens as the model takes."""

    model: str | None = None
    truncate_prompt_tokens: int | None = None
    use_activation: bool | None = None  # normalise, softmax or sigmoid; None: as the model's directory says


class InputFields(PoolingFields):
    """A text, several, or the same as token ids."""

    input: Inputs
    add_special_tokens: bool = True

    @property
    def items(self) -> list[str | list[int]]:
        """The inputs as a list."""
        if isinstance(self.input, str):
            return [self.input]
        items: list[str | list[int]] = []
        if isinstance(self.input[0], int):
            items.append([token for token in self.input if isinstance(token, int)])
        else:
            items.extend(item for item in self.input if not isinstance(item, int))
        return items


class EmbeddingRequest(InputFields):
    """POST /v1/embeddings. `dimensions` cuts the vectors of models that were trained for it (matryoshka)."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class PoolingRequest(InputFields):
    """POST /pooling."""

    encoding_format: Literal["float", "base64"] = "float"


class ClassifyRequest(InputFields):
    """POST /classify."""


class ScoreRequest(PoolingFields):
    """POST /score: pairs (text_1, text_2); one text of the first kind goes with all of the second."""

    text_1: str | Texts
    text_2: str | Texts

    @property
    def firsts(self) -> list[str]:
        """text_1 as a list."""
        return [self.text_1] if isinstance(self.text_1, str) else self.text_1

    @property
    def seconds(self) -> list[str]:
        """text_2 as a list."""
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2


class RerankRequest(PoolingFields):
    """POST /rerank. `top_n` 0: all documents."""

    query: str
    documents: Texts
    top_n: Annotated[int, Field(ge=0)] = 0
