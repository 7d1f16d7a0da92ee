"""Where things are: on a claim or in a ConfigMap of the resource's own namespace, or in a store outside of the cluster.

    pvc://CLAIM/PATH   configmap://NAME/KEY   s3://BUCKET/KEY   https://HOST/PATH
    hf://ORG/NAME[@REVISION][/PATH]   hf://datasets/ORG/NAME[@REVISION][/PATH]

One parser for every URI of every resource. `parse` turns text into a `PvcUri`, `ConfigMapUri` or `RemoteUri` and
refuses, with a sentence, whatever could mean two things: `..`, user names, queries, fragments, other schemes. The
field types (`DataUri`, `WeightsUri`, ...) hold the same rules in the CRD's schema.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from pydantic_core import PydanticCustomError

from kubeformer.api.rules import Rule, avoiding, matching

MAX_LENGTH = 1024

# A step of a path is any text without these; globs are told apart below. Patterns are short because the CRD repeats
# them for every field, and has to stay small.
_NAME = "[a-z0-9]([-.a-z0-9]*[a-z0-9])?"
_SHAPE_PVC = rf"pvc://{_NAME}(/[^/]+)*"
_SHAPE_CONFIG_MAP = rf"configmap://{_NAME}/[-._a-zA-Z0-9]+"
_SHAPE_S3 = rf"s3://{_NAME}(/[^/]+)+"
_SHAPE_HTTPS = rf"https://{_NAME}(:[0-9]+)?(/[^/]+)+"
_SHAPE_HF = r"hf://([A-Za-z0-9][-._A-Za-z0-9]*/){1,2}[A-Za-z0-9][-._A-Za-z0-9]*(@[^/@]+)?(/[^/]+)*"
_ENDING = "without empty steps or a slash at the end"


def _shape(message: str, *patterns: str) -> Rule:
    return matching(f"^({'|'.join(patterns)})$", f"must be {message}, {_ENDING}")


_NO_USER = avoiding(r"^[a-z0-9+.-]*://[^/]*@", "must not hold a user name; credentials are a Secret's")
_NO_QUERY = avoiding(
    r"[?#\\\x00-\x1f\x7f]", "must not hold a query or a fragment (? or #), control characters or backslashes"
)
_NO_DOTS = avoiding(r"/\.\.?(/|$)", "must not step up or in place (.. or . in the path); write the path in full")
_NO_GLOB = avoiding(r"[*\[\]]", "must not hold a glob (* or [...]); globs work in the path of data alone")
_GLOB_IN_PATH = avoiding(
    r"^([a-z0-9]+://[^/]*|(configmap|https)://.*)[*\[\]]",
    "may hold a glob (* or [...]) in the path alone, not in the name; of a ConfigMap or by https, name one key",
)

_COMMON = (_NO_USER, _NO_QUERY, _NO_DOTS)
_DATA: tuple[Rule, ...] = (
    *_COMMON,
    _GLOB_IN_PATH,
    _shape(
        "pvc://CLAIM/PATH, configmap://NAME/KEY, s3://BUCKET/KEY, https://HOST/PATH or "
        "hf://[datasets/]ORG/NAME[@REVISION][/PATH]",
        *(_SHAPE_PVC, _SHAPE_CONFIG_MAP, _SHAPE_S3, _SHAPE_HTTPS, _SHAPE_HF),
    ),
)
_PLAIN: tuple[Rule, ...] = (
    *_COMMON,
    _NO_GLOB,
    _shape("pvc://CLAIM/PATH", _SHAPE_PVC),
)
_BASE: tuple[Rule, ...] = (
    *_COMMON,
    _NO_GLOB,
    _shape("pvc://CLAIM/PATH or hf://ORG/NAME[@REVISION]", _SHAPE_PVC, _SHAPE_HF),
)
_FILE: tuple[Rule, ...] = (
    *_COMMON,
    _NO_GLOB,
    _shape("pvc://CLAIM/PATH or configmap://NAME/KEY", _SHAPE_PVC, _SHAPE_CONFIG_MAP),
)

DataUri = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH), *_DATA]
"""Rows: a file, or several by a glob, on a claim, in a bucket or repository; a key of a ConfigMap; a file by https."""

WeightsUri = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH), *_PLAIN]
"""A model directory on a claim."""

BaseUri = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH), *_BASE]
"""A model directory on a claim, or a repository of the Hugging Face Hub."""

FileUri = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH), *_FILE]
"""A file on a claim, or one key of a ConfigMap."""

StorageUri = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH), *_PLAIN]
"""A directory on a claim to write to; made where it is missing."""


class UriError(ValueError):
    """Text that is no URI of ours. The message quotes it and says what would be right."""


@dataclass(frozen=True, slots=True)
class PvcUri:
    """A path on a PersistentVolumeClaim; "" is its root. `str` gives the URI back."""

    claim: str
    path: str = ""

    def __str__(self) -> str:
        return f"pvc://{self.claim}/{self.path}" if self.path else f"pvc://{self.claim}"

    def __truediv__(self, step: str) -> "PvcUri":
        """The URI one or more steps further in."""
        return PvcUri(self.claim, f"{self.path}/{step}" if self.path else step)

    @property
    def is_glob(self) -> bool:
        """Whether the path may name several files."""
        return re.search(r"[*\[\]]", self.path) is not None


@dataclass(frozen=True, slots=True)
class ConfigMapUri:
    """One key of a ConfigMap. `str` gives the URI back."""

    name: str
    key: str

    def __str__(self) -> str:
        return f"configmap://{self.name}/{self.key}"


@dataclass(frozen=True, slots=True)
class RemoteUri:
    """A place outside of the cluster: `scheme` is s3, https or hf. `str` gives the URI back."""

    scheme: str
    rest: str  # what follows ://

    def __str__(self) -> str:
        return f"{self.scheme}://{self.rest}"


Uri = PvcUri | ConfigMapUri | RemoteUri


def parse(text: str) -> Uri:
    """The URI that `text` is; a glob may stand in the path of a claim. Raises UriError."""
    if len(text) > MAX_LENGTH:
        raise UriError(f"a URI of {len(text)} characters is too long: at most {MAX_LENGTH} are taken")
    for rule in _DATA:
        try:
            rule.check(text)
        except PydanticCustomError as error:
            raise UriError(f"{text!r}: {rule.message}") from error
    scheme, _, rest = text.partition("://")
    name, _, path = rest.partition("/")
    if scheme == "pvc":
        return PvcUri(name, path)
    return ConfigMapUri(name, path) if scheme == "configmap" else RemoteUri(scheme, rest)


def parse_storage(text: str) -> PvcUri:
    """The directory on a claim that `text` names: no glob, no ConfigMap. Raises UriError."""
    uri = parse(text)
    if not isinstance(uri, PvcUri):
        raise UriError(f"{text!r}: {_PLAIN[-1].message}")
    if uri.is_glob:
        raise UriError(f"{text!r}: {_NO_GLOB.message}")
    return uri
