"""JobSettings: everything a worker of a TrainingJob needs to know, resolved and frozen by the operator.

The operator writes it as one JSON file into a ConfigMap; the trainer reads nothing else, on a laptop
(`kubeformer-train`) as in a pod. What depends on the data alone (vocabulary, labels, steps in an epoch) is found
by the trainer and reported as `resolved`. Every default is what is done where the setting was not there yet, so that
settings of an earlier release still mean what they meant.
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


class Chat(Document):
    """Rows with a list of messages ({role, content}); next-token prediction, over the assistant's tokens alone."""

    kind: Literal["Chat"] = "Chat"
    messages_field: str = "messages"
    loss_on: Literal["Assistant", "All"] = "Assistant"
    template: Location | None = None  # a Jinja file; None: the base model's, else ChatML
    sequence_length: int = 1024


class Preference(Document):
    """Rows with a prompt and two answers, of which one was preferred. DPO: https://arxiv.org/abs/2305.18290"""

    kind: Literal["Preference"] = "Preference"
    method: Literal["DPO"] = "DPO"
    prompt_field: str = "prompt"
    chosen_field: str = "chosen"
    rejected_field: str = "rejected"
    beta: float = 0.1  # how strongly the model is held to the one it began as
    sequence_length: int = 1024


class TextToText(Document):
    """Rows with a source and a target text: translation, summarisation; an encoder-decoder."""

    kind: Literal["TextToText"] = "TextToText"
    source_field: str = "source"
    target_field: str = "target"
    max_source_length: int = 256
    max_target_length: int = 256


class Recommendation(Document):
    """Rows that say who took what, and when; the next item of a user's sequence is predicted."""

    kind: Literal["Recommendation"] = "Recommendation"
    user_field: str = "user"
    item_field: str = "item"
    time_field: str = "time"
    max_length: int = 50


class Git(Document):
    """A repository that is cloned into the working directory of a custom task."""

    url: str
    revision: str | None = None  # a branch, tag or commit; None: the remote's HEAD


class Custom(Document):
    """The user's own command; it reports by `kubeformer_report` (a file that lies beside the launcher)."""

    kind: Literal["Custom"] = "Custom"
    command: tuple[str, ...]
    packages: tuple[str, ...] = ()  # requirements, installed into scratch before the first start
    code: Location | None = None  # a file or a directory, copied into the working directory
    git: Git | None = None
    total_steps: int | None = None  # for the progress bar; the command may also report it


Task = Annotated[
    TextClassification | LanguageModel | Chat | Preference | TextToText | Recommendation | Custom,
    Field(discriminator="kind"),
]


class Architecture(Document):
    """A Transformer from scratch; the task decides whether it is a decoder, an encoder or both."""

    layers: int
    width: int
    heads: int
    key_value_heads: int | None = None  # None: as many as heads
    mlp_width: int | None = None  # None: 4 x width
    activation: Literal["ReLU", "GELU", "SwiGLU"] = "GELU"
    dropout: float = 0.1


class Lora(Document):
    """Low-rank adapters beside frozen weights. https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2305.14314"""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[Literal["Attention", "MLP"], ...] = ("Attention",)
    base_weights: Literal["Float", "Int8", "NF4"] = "Float"


class Model(Document):
    """What is trained: exactly one of `architecture` (from scratch) and `base` (weights to go on from)."""

    architecture: Architecture | None = None
    base: Location | None = None
    lora: Lora | None = None  # beside `base` alone


class Prepare(Document):
    """Cleaning before the split."""

    normalize: Literal["NFC", "NFKC", "None"] = "NFKC"
    deduplicate: Literal["Exact", "Near", "None"] = "Exact"
    similarity_percent: int = 80  # read where deduplicate is Near
    min_characters: int = 1
    max_bad_rows_percent: int = 1
    languages: tuple[str, ...] = ()  # ISO 639-1 codes of the languages kept; empty: all
    max_repetition_percent: int | None = None  # rows whose words repeat more than this are dropped; None: none are


Format = Literal["Auto", "JSONLines", "CSV", "Parquet", "Text"]  # Auto: by suffix


class Source(Document):
    """One of several places that rows come from."""

    name: str
    location: Location
    weight: float = 1.0  # how often a row is trained on, relative to the other sources' rows
    format: Format = "Auto"


class Data(Document):
    """Where rows come from: `source`, or `sources` mixed by weight; none for a custom task.

    A location's path may hold a glob. For s3, https and hf the path lies below SCRATCH_DIRECTORY: the trainer puts
    there what it downloads, with the credentials that the tools find in their environment variables.
    """

    source: Location | None = None
    sources: tuple[Source, ...] = ()
    format: Format = "Auto"  # of `source`
    prepare: Prepare = Prepare()
    validation: Location | None = None
    validation_percent: int = 10  # of the source, where `validation` is left out
    keep_together: Literal["Exact", "Near"] = "Exact"  # on one side of that split: equal texts, or alike ones too
    test: Location | None = None
    tokenizer: Location | None = None  # a directory with a tokenizer.json, for a model from scratch
    vocabulary_size: int = 8192  # of the BPE tokenizer trained where nothing brings one

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """`sources`, or `source` as the only one, named data; empty for a custom task."""
        if self.source is None:
            return self.sources
        return (Source(name="data", location=self.source, format=self.format),)


class EarlyStopping(Document):
    """Stop after `patience` evaluations without a better objective."""

    patience: int
    min_delta: float = 0.0


class Training(Document):
    """The optimisation. One of `epochs`, `steps` and `tokens` counts: tokens before steps before epochs.

    The batch is that of all workers together.
    """

    epochs: int | None = 3
    steps: int | None = None
    tokens: int | None = None
    batch_size: int = 32
    learning_rate: float = 3e-4
    optimizer: Literal["AdamW", "SGD", "Muon"] = "AdamW"
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    schedule: Literal["Cosine", "Linear", "Constant", "WarmupStableDecay"] = "Cosine"
    warmup_percent: int = 5
    decay_percent: int = 20  # of all steps, at the end; read where the schedule is WarmupStableDecay
    objective_metric: str  # e.g. validation/accuracy
    objective_direction: Literal["Maximize", "Minimize"]
    evaluate_every_epochs: int = 1
    evaluate_every_steps: int | None = None  # instead of epochs, where set
    early_stopping: EarlyStopping | None = None
    precision: Literal["Float32", "BFloat16", "Float16", "Auto"] = "Auto"  # Auto: what the hardware does well
    activation_checkpointing: Literal["Auto", "None", "Full"] = "Auto"  # Auto: where memory would not do without
    seed: int = 0


class Checkpoint(Document):
    """Where and how often training state is saved. The directory is shared by all workers."""

    directory: str
    interval_seconds: int | None = 300  # None: from what a checkpoint costs and how often ranks fail
    keep: int = 3
    resume_from: Location | None = None  # another job's checkpoint (or their directory): optimiser and all


class Output(Document):
    """Where the model is published: `path` is a directory, made by the trainer, replaced atomically."""

    location: Location
    publish: Literal["Best", "Last"] = "Best"


class Recovery(Document):
    """What the launcher may mend by itself."""

    max_restarts: int = 10
    hang_timeout_seconds: int = 600


class Workers(Document):
    """How many pods, how many ranks in each, and how they share the work."""

    replicas: int = 1
    processes_per_worker: int = 1
    strategy: Literal["Auto", "DDP", "FSDP", "TensorParallel"] = "Auto"


class Tracker(Document):
    """Somebody who is told the metrics beside the operator; rank 0 speaks to them."""

    name: str
    kind: Literal["TensorBoard", "MLflow", "WandB"]
    uri: str | None = None  # MLflow: the tracking server or file store; WandB: the server, where it is an own one
    directory: str | None = None  # TensorBoard: of the event files
    project: str | None = None  # WandB's project, MLflow's experiment


class JobSettings(Document):
    """The whole document; see the module's docstring."""

    name: str
    namespace: str
    uid: str
    task: Task
    model: Model = Model()
    data: Data = Data()
    training: Training
    workers: Workers = Workers()
    checkpoint: Checkpoint
    recovery: Recovery = Recovery()
    output: Output
    tracking: tuple[Tracker, ...] = ()
