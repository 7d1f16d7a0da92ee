"""Where things are: `pvc://CLAIM/PATH` and `configmap://NAME/KEY`, in the resource's own namespace.

One parser for every URI of every resource. `parse` turns text into a `PvcUri` or `ConfigMapUri` and refuses, with a
sentence, whatever could mean two things: `..`, user names, queries, fragments, other schemes. The field types
(`DataUri`, `WeightsUri`, `StorageUri`) hold the same rules in the CRD's schema.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from pydantic_core import PydanticCustomError

from kubeformer.api.rules import SUBDOMAIN, Rule, avoiding, matching

MAX_LENGTH = 1024

_SCHEMES = "other places (s3://, hf://, https://, oci://, file paths) are not supported in this version"

# A step of a path is any text without these; globs are told apart below.
_SHAPE_PVC = rf"^pvc://{SUBDOMAIN}(/[^/]+)*$"
_SHAPE_CONFIG_MAP = rf"^configmap://{SUBDOMAIN}/[-._a-zA-Z0-9]+$"

_NO_USER = avoiding(r"^[a-z0-9+.-]*://[^/]*@", "must not hold a user name; mount what needs credentials as a claim")
_NO_QUERY = avoiding(r"[?#]", "must not hold a query or a fragment (? or #)")
_NO_CONTROL = avoiding(r"[\x00-\x1f\x7f\\]", "must not hold control characters or backslashes")
_NO_DOTS = avoiding(r"/\.\.?(/|$)", "must not step up or in place (.. or . in the path); write the path in full")
_NO_GLOB = avoiding(r"[*\[\]]", "must not hold a glob (* or [...]); globs work in the path of data alone")
_GLOB_IN_PATH = avoiding(r"^[a-z]+://[^/]*[*\[\]]", "may hold a glob (* or [...]) in the path alone, not in the name")
_NO_GLOB_KEY = avoiding(r"^configmap://.*[*\[\]]", "may hold a glob in the path of a claim alone; name one key")
_PVC_ONLY = matching(r"^pvc://", f"must begin with pvc://, as in pvc://CLAIM/PATH; {_SCHEMES}")
_ANY_SCHEME = matching(
    r"^(pvc|configmap)://", f"must begin with pvc:// or configmap://, as in pvc://CLAIM/PATH; {_SCHEMES}"
)
_SHAPE = matching(
    f"{_SHAPE_PVC}|{_SHAPE_CONFIG_MAP}",
    "must be pvc://CLAIM/PATH or configmap://NAME/KEY, without empty steps or a slash at the end",
)

_COMMON = (_NO_USER, _NO_QUERY, _NO_CONTROL, _NO_DOTS)
_DATA: tuple[Rule, ...] = (_ANY_SCHEME, *_COMMON, _GLOB_IN_PATH, _NO_GLOB_KEY, _SHAPE)
_PLAIN: tuple[Rule, ...] = (_PVC_ONLY, *_COMMON, _NO_GLOB, _SHAPE)

DataUri = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH), *_DATA]
"""Rows: a file, or several by a glob, on a claim; or one key of a ConfigMap."""

WeightsUri = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH), *_PLAIN]
"""A model directory on a claim."""

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


Uri = PvcUri | ConfigMapUri


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
    return PvcUri(name, path) if scheme == "pvc" else ConfigMapUri(name, path)


def parse_storage(text: str) -> PvcUri:
    """The directory on a claim that `text` names: no glob, no ConfigMap. Raises UriError."""
    uri = parse(text)
    if isinstance(uri, ConfigMapUri):
        raise UriError(f"{text!r}: {_PVC_ONLY.message}")
    if uri.is_glob:
        raise UriError(f"{text!r}: {_NO_GLOB.message}")
    return uri
