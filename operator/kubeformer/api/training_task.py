"""What a TrainingJob learns: one member of `task`, each with the fields of the rows that it reads."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kubeformer.api.common import Whole
from kubeformer.api.rules import Model, Rule, at_most_one, empty, exactly_one, matching
from kubeformer.api.uri import MAX_LENGTH, FileUri

FieldName = Annotated[
    str,
    Field(min_length=1, max_length=128),
    matching(r"^[^\x00-\x1f\x7f]+$", "must be a field's name, without control characters"),
]


class File(Model):
    """A file."""

    uri: FileUri
    """Where it is, as in configmap://NAME/KEY or pvc://CLAIM/PATH."""


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


class Chat(Model):
    """Rows with conversations: the model learns to answer (instruction tuning)."""

    messages_field: FieldName = "messages"
    """Field of each row that holds the list of messages, each with role and content."""

    loss_on: Literal["Assistant", "All"] = "Assistant"
    """Assistant: only what the assistant says is learnt; All: every token."""

    template: File | None = None
    """Jinja template that turns messages into text; left out: the base model's own, else ChatML."""

    sequence_length: Annotated[int, Field(ge=16, le=32768), Whole] = 1024
    """Tokens of a training sequence; conversations are packed one after the other."""


class Preference(Model):
    """Rows with a prompt and two answers, one preferred: the model learns to prefer likewise."""

    method: Literal["DPO"] = "DPO"
    """DPO: direct preference optimisation, against the model as it was at the beginning."""

    prompt_field: FieldName = "prompt"
    """Field of each row that holds the prompt."""

    chosen_field: FieldName = "chosen"
    """Field of each row that holds the preferred answer."""

    rejected_field: FieldName = "rejected"
    """Field of each row that holds the other answer."""

    beta: Annotated[float, Field(gt=0, le=10)] = 0.1
    """How strongly the model is held to the one it began as."""

    sequence_length: Annotated[int, Field(ge=16, le=32768), Whole] = 1024
    """Tokens of prompt and answer that are read; the rest is cut off."""


class TextToText(Model):
    """Rows with a source and a target text: translation, summarisation."""

    source_field: FieldName = "source"
    """Field of each row that holds the text to start from."""

    target_field: FieldName = "target"
    """Field of each row that holds the text to write."""

    max_source_length: Annotated[int, Field(ge=8, le=8192), Whole] = 256
    """Tokens of a source that are read; the rest is cut off."""

    max_target_length: Annotated[int, Field(ge=8, le=8192), Whole] = 256
    """Tokens of a target that are learnt; the rest is cut off."""


class Recommendation(Model):
    """Rows that say who took what and when: the model learns what a user takes next."""

    user_field: FieldName = "user"
    """Field of each row that names the user."""

    item_field: FieldName = "item"
    """Field of each row that names the item."""

    time_field: FieldName = "time"
    """Field of each row that orders what a user took, a number or a time."""

    max_length: Annotated[int, Field(ge=2, le=8192), Whole] = 50
    """Last items of a user that are looked at."""


class Git(Model):
    """A repository with code."""

    url: Annotated[
        str,
        Field(min_length=1, max_length=MAX_LENGTH),
        matching(r"^https://[^/@?# ]+/[^?# ]+$", "must be https://HOST/PATH, without user name, query or fragment"),
    ]
    """Address to clone from; it must be readable without a password."""

    revision: (
        Annotated[
            str,
            Field(min_length=1, max_length=256),
            matching(r"^[A-Za-z0-9][-._/A-Za-z0-9]*$", "must be a branch, tag or commit"),
        ]
        | None
    ) = None
    """Branch, tag or commit; left out: the repository's own choice. Name a commit to run the same code for ever."""


class Custom(Model):
    """A command of your own, under the same lifecycle: restarts, suspension, progress, metrics, checkpoints."""

    RULES: ClassVar[tuple[Rule, ...]] = (at_most_one("code", "git", where="spec.task.custom"),)

    command: Annotated[list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1, max_length=64)]
    """Program and arguments, such as [python, train.py], run in each process with torchrun's variables set."""

    packages: Annotated[
        list[
            Annotated[
                str,
                Field(min_length=1, max_length=256),
                matching(r"^[A-Za-z0-9][^;@/]*$", "must be a requirement such as numpy==2.1.0"),
            ]
        ],
        Field(max_length=64),
    ] = empty(list)
    """Python packages that pip installs before the first start, such as numpy==2.1.0."""

    code: File | None = None
    """A file that is copied into the working directory, as in configmap://trainer/train.py."""

    git: Git | None = None
    """A repository that is cloned into the working directory."""

    total_steps: Annotated[int, Field(ge=1, le=1_000_000_000), Whole] | None = None
    """Steps that the command will take, for the progress column; left out: what it reports."""


class Task(Model):
    """What is learnt: exactly one of the members."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one(
            "textClassification",
            "languageModel",
            "chat",
            "preference",
            "textToText",
            "recommendation",
            "custom",
            where="spec.task",
            example="textClassification: {}",
        ),
    )

    text_classification: TextClassification | None = None
    """Learn to tell the label of a text; {} takes the fields text and label."""

    language_model: LanguageModel | None = None
    """Learn to write, from the beginning or from given weights; {} takes the field text."""

    chat: Chat | None = None
    """Learn to answer in conversations; {} takes the field messages."""

    preference: Preference | None = None
    """Learn to prefer what people prefer; {} takes the fields prompt, chosen and rejected."""

    text_to_text: TextToText | None = None
    """Learn to turn one text into another; {} takes the fields source and target."""

    recommendation: Recommendation | None = None
    """Learn what a user takes next; {} takes the fields user, item and time."""

    custom: Custom | None = None
    """Run a command of your own."""

    @property
    def kind(self) -> str:
        """The name of the member that is given."""
        return next(field.alias or name for name, field in Task.model_fields.items() if getattr(self, name) is not None)
