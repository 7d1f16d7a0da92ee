"""Data recipes: for each kind of task, how raw rows become arrays. `prepare` runs them and knows none by name.

To add a kind of task, write two modules of one name and enter it in MODULES:

1. `data/recipes/NAME.py` with `recipe(settings) -> Recipe`. A recipe says which fields rows need, makes an example of
   a row (or a BadRow that says why not), names an example's texts, divides the examples into training, validation and
   test, and encodes them. What it encodes into is its own frozen dataclass of numpy arrays (a Split), which the store
   writes and maps without knowing it. Plain facts that the arrays are read with (label names, item names) go beside.
2. `trainer/tasks/NAME.py` with `make_task` and `make_network`; see `trainer/tasks/__init__.py`.

Rows need no text: a recipe whose `tokenizer` gives None and whose `divide` splits by its own rule is as good.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar, cast

from kubeformer.contract.job import JobSettings
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.prepared import Beat, Split
from kubeformer_runtime.data.read import BadRow, RawRow
from kubeformer_runtime.data.tokenizer import TextTokenizer

Example = TypeVar("Example")

# Kind of task in the settings: name of its module here and in trainer/tasks.
MODULES: Mapping[str, str] = {
    "TextClassification": "text_classification",
    "LanguageModel": "language_model",
    "Chat": "chat",
    "Preference": "preference",
    "Recommendation": "recommendation",
    "TextToText": "text_to_text",
}


@dataclass(frozen=True, slots=True)
class Parts(Generic[Example]):
    """Examples by what they are for. No test: None."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example] | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """Parts as arrays, and plain facts (JSON) that they are read with, e.g. {"labels": [...]}."""

    train: Split
    validation: Split
    test: Split | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    vocabulary_size: int | None = None  # None: the tokenizer's


class Recipe(Protocol[Example]):
    """One kind of data preparation, made for one job."""

    @property
    def fields(self) -> Mapping[str, str]:
        """Fields without which no row can be used, each with the setting that names it: {"text": "task....textField"}.

        The first one is what a plain text file's paragraphs are put into.
        """
        ...

    @property
    def split_type(self) -> type[Split]:
        """The dataclass of arrays that `encode` makes."""
        ...

    def example(self, row: RawRow) -> Example | BadRow:
        """A row, cleaned, or why it cannot be used."""
        ...

    def texts(self, example: Example) -> Sequence[str]:
        """What a tokenizer is trained on and filters judge."""
        ...

    def key(self, example: Example) -> str:
        """The text by which examples repeat each other, exactly or nearly."""
        ...

    def digest_parts(self, example: Example) -> Iterable[str]:
        """Everything in an example that training depends on."""
        ...

    def divide(self, kept: Sequence[Example], validation: Sequence[Example] | None, beat: Beat) -> Parts[Example]:
        """Examples of `data.source` into training and validation, and test where it is this recipe's to say.

        `validation`: those of `data.validation`, where the user gave it. The parts hold the very objects of `kept`, by
        which the source of each is known. Raises DataError.
        """
        ...

    def tokenizer(self, train: Sequence[Example], beat: Beat) -> TextTokenizer | None:
        """The base model's, or one trained on the training examples; None where there are no texts."""
        ...

    def encode(self, parts: Parts[Example], tokenizer: TextTokenizer | None, beat: Beat) -> Encoded:
        """Arrays of all parts. Raises DataError where the data cannot be what the user means."""
        ...


def recipe_for(settings: JobSettings) -> Recipe[Any]:
    """The recipe of a job's kind of task. Raises DataError(SettingsInvalid) where there is none."""
    kind = settings.task.kind
    if kind not in MODULES:
        raise DataError(Reason.SETTINGS_INVALID, f"spec.task: {kind} is not trained here; known: {', '.join(MODULES)}")
    make = import_module(f"{__name__}.{MODULES[kind]}").recipe
    return cast("Callable[[JobSettings], Recipe[Any]]", make)(settings)
