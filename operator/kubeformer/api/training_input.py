"""What a TrainingJob learns from: the model to begin with, and the data."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kubeformer.api.common import LocalObjectRef, TrainingJobRef, Whole
from kubeformer.api.rules import UNIQUE, Model, Rule, empty, exactly_one, keyed_by, matching
from kubeformer.api.uri import BaseUri, DataUri, WeightsUri

Percent = Annotated[int, Field(ge=0, le=100), Whole]


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


class Lora(Model):
    """Low-rank adapters: the given weights stay, small matrices beside them are trained."""

    rank: Annotated[int, Field(ge=1, le=1024), Whole] = 16
    """Width of the small matrices."""

    alpha: Annotated[float, Field(gt=0, le=10_000)] = 32.0
    """What the adapter counts: its output is multiplied by alpha / rank."""

    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of the adapter's inputs dropped in training."""

    targets: Annotated[list[Literal["Attention", "MLP"]], Field(min_length=1, max_length=2), *UNIQUE] = Field(
        ["Attention"]
    )
    """Which matrices get an adapter."""

    base_weights: Literal["Float", "Int8", "NF4"] = "Float"
    """How the given weights are held meanwhile; NF4 takes an eighth of the memory of Float (QLoRA)."""


class ModelSource(Model):
    """What is trained: exactly one of architecture, uri and trainingJobRef."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("architecture", "uri", "trainingJobRef", where="spec.model", example="architecture: {}"),
        Rule(
            "!has(self.lora) || !has(self.architecture)",
            "lora goes beside given weights alone; use uri or trainingJobRef in place of architecture, or drop lora",
            lambda m: m.lora is None or m.architecture is None,
        ),
    )

    architecture: Architecture | None = None
    """A model from the beginning; {} takes a small one."""

    uri: BaseUri | None = None
    """Weights to go on from: a model directory in Hugging Face layout, as in pvc://models/base or hf://ORG/NAME."""

    secret_ref: LocalObjectRef | None = None
    """Secret with HF_TOKEN for uri. Only the workers read it."""

    training_job_ref: TrainingJobRef | None = None
    """Weights to go on from: what that TrainingJob published; waits until it has."""

    lora: Lora | None = None
    """Train adapters beside the given weights in place of the weights; {} takes rank 16 in attention."""


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
        Rule(
            "!has(self.uri) || self.keepTogether == 'Exact'",
            "keepTogether: Near goes beside percent alone; with rows of their own nothing is split",
            lambda v: v.uri is None or v.keep_together == "Exact",
        ),
    )

    percent: Annotated[int, Field(ge=1, le=90), Whole] | None = None
    """Share of the rows, chosen by the seed."""

    uri: DataUri | None = None
    """Rows of their own, as in pvc://CLAIM/PATH or configmap://NAME/KEY."""

    keep_together: Literal["Exact", "Near"] = "Exact"
    """What percent leaves on one side: equal texts, or also near-duplicates, of which otherwise one may train and the
    other validate; as alike as prepare.deduplicate.similarityPercent, left out 80. Near takes up to 50,000 rows."""


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
    """How texts become tokens: exactly one of the members."""

    RULES: ClassVar[tuple[Rule, ...]] = (exactly_one("train", "uri", where="spec.data.tokenizer", example="train: {}"),)

    train: TrainTokenizer | None = None
    """Train a tokenizer on the training rows; {} takes 8192 tokens."""

    uri: WeightsUri | None = None
    """Take a tokenizer that exists: a directory with a tokenizer.json, as in pvc://models/base."""


Format = Literal["Auto", "JSONLines", "CSV", "Parquet", "Text"]


class Source(Model):
    """One of several places that rows come from."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=48),
        matching(r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "must be a name of lower-case letters, digits and -"),
    ]
    """Name, told apart in logs and figures."""

    uri: DataUri
    """Rows, as in data.uri."""

    format: Format = "Auto"
    """How the files are written; Auto: by suffix."""

    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """How often a row is trained on, relative to rows of the other sources; the largest at most 100 times the least."""


class Data(Model):
    """Where rows come from, and what is done to them."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("uri", "sources", where="spec.data", example="uri: pvc://mail/spam.jsonl"),
        Rule(
            "!has(self.sources) || self.format == 'Auto'",
            "format goes beside uri alone; each of the sources has its own",
            lambda d: d.sources is None or d.format == "Auto",
        ),
    )

    uri: DataUri | None = None
    """Rows: JSON Lines, CSV, Parquet or plain text (a row a paragraph), gzip or not; globs work, as in
    pvc://mail/spam-*.jsonl. Other places: s3://BUCKET/KEY, https://HOST/PATH, hf://datasets/ORG/NAME/PATH."""

    format: Format = "Auto"
    """How the files of uri are written; Auto: by suffix."""

    sources: Annotated[list[Source], Field(min_length=1, max_length=16), *keyed_by("name")] | None = None
    """Several places instead of uri."""

    secret_ref: LocalObjectRef | None = None
    """Secret with the credentials for all URIs of data: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
    AWS_REGION, AWS_ENDPOINT_URL; HF_TOKEN. Only the workers read it."""

    prepare: Prepare = Prepare()
    """Cleaning, before data is split."""

    validation: Validation = Validation(percent=10)
    """Rows to score training on: a share of the rows, or their own."""

    test: Test | None = None
    """Rows to score the published model on."""

    tokenizer: Tokenizer | None = None
    """How texts become tokens; left out: as the weights do, and without weights a BPE tokenizer of 8192 tokens."""
