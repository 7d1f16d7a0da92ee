"""JobSettings: everything a worker of a TrainingJob needs to know, resolved and frozen by the operator.

The operator writes it as one JSON file into a ConfigMap; the trainer reads nothing else. What depends on
the data alone (vocabulary, labels, steps in an epoch) is found by the trainer and reported as `resolved`.
"""

from typing import Annotated, Literal

from pydantic import Field

from kubeformer.contract.base import Document, Location


class TextClassification(Document):
    """Rows with a text and a label; accuracy is what counts."""

    kind: Literal["TextClassification"] = "TextClassification"
    text_field: str = "text"
    label_field: str = "label"
    max_length: int = 256


class LanguageModel(Document):
    """Rows with a text; next-token prediction over packed sequences."""

    kind: Literal["LanguageModel"] = "LanguageModel"
    text_field: str = "text"
    sequence_length: int = 512


Task = Annotated[TextClassification | LanguageModel, Field(discriminator="kind")]


class Architecture(Document):
    """A Transformer from scratch."""

    layers: int
    width: int
    heads: int
    key_value_heads: int | None = None  # None: as many as heads
    mlp_width: int | None = None  # None: 4 x width
    activation: Literal["ReLU", "GELU", "SwiGLU"] = "GELU"
    dropout: float = 0.1


class Model(Document):
    """What is trained: exactly one of `architecture` (from scratch) and `base` (weights to go on from)."""

    architecture: Architecture | None = None
    base: Location | None = None


class Prepare(Document):
    """Cleaning before the split."""

    normalize: Literal["NFC", "NFKC", "None"] = "NFKC"
    deduplicate: Literal["Exact", "Near", "None"] = "Exact"
    similarity_percent: int = 80  # read where deduplicate is Near
    min_characters: int = 1
    max_bad_rows_percent: int = 1


class Data(Document):
    """Where rows come from. `source.path` may hold a glob; files are JSON Lines, CSV or plain text by suffix."""

    source: Location
    prepare: Prepare = Prepare()
    validation: Location | None = None
    validation_percent: int = 10  # of the source, where `validation` is left out
    test: Location | None = None
    vocabulary_size: int = 8192  # of the BPE tokenizer trained where the model brings none


class EarlyStopping(Document):
    """Stop after `patience` evaluations without a better objective."""

    patience: int
    min_delta: float = 0.0


class Training(Document):
    """The optimisation. One of `epochs` and `steps` is set; the batch is that of all workers together."""

    epochs: int | None = 3
    steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 3e-4
    optimizer: Literal["AdamW", "SGD"] = "AdamW"
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    schedule: Literal["Cosine", "Linear", "Constant"] = "Cosine"
    warmup_percent: int = 5
    objective_metric: str  # e.g. validation/accuracy
    objective_direction: Literal["Maximize", "Minimize"]
    evaluate_every_epochs: int = 1
    evaluate_every_steps: int | None = None  # instead of epochs, where set
    early_stopping: EarlyStopping | None = None
    precision: Literal["Float32", "BFloat16", "Auto"] = "Auto"  # Auto: bfloat16 on GPUs that have it, else float32
    seed: int = 0


class Checkpoint(Document):
    """Where and how often training state is saved. The directory is shared by all workers."""

    directory: str
    interval_seconds: int = 300
    keep: int = 3


class Output(Document):
    """Where the model is published: `path` is a directory, made by the trainer, replaced atomically."""

    location: Location
    publish: Literal["Best", "Last"] = "Best"


class Recovery(Document):
    """What the launcher may mend by itself."""

    max_restarts: int = 10
    hang_timeout_seconds: int = 600


class Workers(Document):
    """How many pods, and how many ranks in each."""

    replicas: int = 1
    processes_per_worker: int = 1


class JobSettings(Document):
    """The whole document; see the module's docstring."""

    name: str
    namespace: str
    uid: str
    task: Task
    model: Model
    data: Data
    training: Training
    workers: Workers = Workers()
    checkpoint: Checkpoint
    recovery: Recovery = Recovery()
    output: Output
