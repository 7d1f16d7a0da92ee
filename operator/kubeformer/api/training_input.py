"""What a TrainingJob learns and from what: the task, the model to begin with, and the data."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kubeformer.api.common import TrainingJobRef, Whole
from kubeformer.api.rules import Model, Rule, empty, exactly_one, matching
from kubeformer.api.uri import DataUri, WeightsUri

FieldName = Annotated[
    str,
    Field(min_length=1, max_length=128),
    matching(r"^[^\x00-\x1f\x7f]+$", "must be the name of a field of the rows, without control characters"),
]
Percent = Annotated[int, Field(ge=0, le=100), Whole]


class TextClassification(Model):
    """Rows with a text and a label: the model learns to tell the label."""

    text_field: FieldName = "text"
    """Field of each row that holds the text."""

    label_field: FieldName = "label"
    """Field of each row that holds the label; every value found becomes a class."""

    max_length: Annotated[int, Field(ge=8, le=8192), Whole] = 256
    """Tokens of a text that are read; the rest is cut off."""


class LanguageModel(Model):
    """Rows with a text: the model learns to go on writing."""

    text_field: FieldName = "text"
    """Field of each row that holds the text."""

    sequence_length: Annotated[int, Field(ge=16, le=32768), Whole] = 512
    """Tokens of a training sequence; texts are packed one after the other."""


class Task(Model):
    """What is learnt: exactly one of the members."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("textClassification", "languageModel", where="spec.task", example="textClassification: {}"),
    )

    text_classification: TextClassification | None = None
    """Learn to tell the label of a text; {} takes the fields text and label."""

    language_model: LanguageModel | None = None
    """Learn to write, from the beginning or from given weights; {} takes the field text."""


class Architecture(Model):
    """A Transformer to train from the beginning."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.width % self.heads == 0",
            "width must be a multiple of heads, since each head takes an equal part of it",
            lambda a: a.width % a.heads == 0,
        ),
        Rule(
            "self.width / self.heads % 2 == 0",
            "width divided by heads must be even, since positions are turned in pairs",
            lambda a: (a.width // a.heads) % 2 == 0,
        ),
        Rule(
            "!has(self.keyValueHeads) || self.heads % self.keyValueHeads == 0",
            "heads must be a multiple of keyValueHeads, since as many heads share each of them",
            lambda a: a.key_value_heads is None or a.heads % a.key_value_heads == 0,
        ),
    )

    layers: Annotated[int, Field(ge=1, le=128), Whole] = 2
    """Blocks, one after the other."""

    width: Annotated[int, Field(ge=8, le=16384), Whole] = 128
    """Size of the vector that stands for a token; a multiple of heads."""

    heads: Annotated[int, Field(ge=1, le=256), Whole] = 4
    """Heads of attention."""

    key_value_heads: Annotated[int, Field(ge=1, le=256), Whole] | None = None
    """Heads of keys and values, shared by equal groups of heads; left out: as many as heads."""

    mlp_width: Annotated[int, Field(ge=8, le=131072), Whole] | None = None
    """Width inside the feed-forward part; left out: four times width."""

    activation: Literal["ReLU", "GELU", "SwiGLU"] = "GELU"
    """Activation of the feed-forward part."""

    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """Share of activations dropped in training, against overfitting."""


class ModelSource(Model):
    """What is trained: exactly one of the members."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("architecture", "uri", "trainingJobRef", where="spec.model", example="architecture: {}"),
    )

    architecture: Architecture | None = None
    """A model from the beginning; {} takes a small one."""

    uri: WeightsUri | None = None
    """Weights to go on from: a model directory in Hugging Face layout, as in pvc://models/base."""

    training_job_ref: TrainingJobRef | None = None
    """Weights to go on from: what that TrainingJob published; waits until it has."""


class Deduplicate(Model):
    """Which rows count as one. Left out altogether: exact duplicates are dropped."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.similarityPercent) || !has(self.method) || self.method == 'Near'",
            "similarityPercent needs method: Near (or no method); exact duplicates have no degree",
            lambda d: d.similarity_percent is None or d.method in (None, "Near"),
        ),
    )

    method: Literal["Exact", "Near", "None"] | None = None
    """Exact: equal texts; Near: similar ones too; None: keep all. Left out: Near with similarityPercent, else Exact."""

    similarity_percent: Annotated[int, Field(ge=50, le=99), Whole] | None = None
    """How many of two texts' word sequences have to be shared to count as one; with Near, left out: 80."""


class Prepare(Model):
    """Cleaning, before data is split."""

    normalize: Literal["NFC", "NFKC", "None"] = "NFKC"
    """Unicode normalisation of texts."""

    deduplicate: Deduplicate = empty(Deduplicate)
    """Dropping of rows that repeat others, so that no text is in training and validation both."""

    min_characters: Annotated[int, Field(ge=0, le=1_000_000), Whole] = 1
    """Rows with a shorter text are dropped."""

    max_bad_rows_percent: Percent = 1
    """How many rows may be unreadable before the job fails with DataInvalid."""


class Validation(Model):
    """Rows held back from training to score it: exactly one of the members."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("percent", "uri", where="spec.data.validation", example="percent: 10"),
    )

    percent: Annotated[int, Field(ge=1, le=90), Whole] | None = None
    """Share of the rows of data.uri, chosen by the seed."""

    uri: DataUri | None = None
    """Rows of their own, as in pvc://CLAIM/PATH or configmap://NAME/KEY."""


class Test(Model):
    """Rows that training never sees."""

    uri: DataUri
    """Rows to score the published model on, once, at the end."""


class TrainTokenizer(Model):
    """A tokenizer learnt from the training rows."""

    algorithm: Literal["BPE"] = "BPE"
    """Byte pair encoding over bytes: no text is unknown to it."""

    vocabulary_size: Annotated[int, Field(ge=300, le=262144), Whole] = 8192
    """Tokens of the vocabulary, at most."""


class Tokenizer(Model):
    """How texts become tokens."""

    train: TrainTokenizer
    """Train a tokenizer on the training rows; {} takes 8192 tokens."""


class Data(Model):
    """Where rows come from, and what is done to them."""

    uri: DataUri
    """Rows: JSON Lines, CSV or plain text (a row a paragraph), by suffix, gzip or not; globs work, as in pvc://mail/spam-*.jsonl."""

    prepare: Prepare = Prepare()
    """Cleaning, before data is split."""

    validation: Validation = Validation(percent=10)
    """Rows to score training on: a share of data.uri, or their own."""

    test: Test | None = None
    """Rows to score the published model on."""

    tokenizer: Tokenizer | None = None
    """How texts become tokens; left out: as the weights do, and without weights a BPE tokenizer of 8192 tokens."""
