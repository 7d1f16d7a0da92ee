"""URIs: one parser, which gives back what it was given or says what is wrong with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from kubeformer.api.uri import (
    BaseUri,
    ConfigMapUri,
    DataUri,
    FileUri,
    PvcUri,
    RemoteUri,
    StorageUri,
    UriError,
    WeightsUri,
    parse,
    parse_storage,
)

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
STEPS = st.text(st.characters(exclude_characters="/\\?#*[]", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)
PATHS = st.lists(STEPS.filter(lambda step: step not in (".", "..")), max_size=4).map("/".join)
KEYS = st.from_regex(r"[-_a-zA-Z0-9][-._a-zA-Z0-9]{0,10}", fullmatch=True)


@given(NAMES, PATHS)
def test_a_path_on_a_claim_comes_back_as_it_was_written(claim: str, path: str) -> None:
    uri = PvcUri(claim, path)
    assert parse(str(uri)) == uri


@given(NAMES, KEYS)
def test_a_key_of_a_config_map_comes_back_as_it_was_written(name: str, key: str) -> None:
    uri = ConfigMapUri(name, key)
    assert parse(str(uri)) == uri


@given(st.one_of(st.text(), st.text().map("pvc://{}".format), st.text().map("configmap://{}".format)))
def test_any_text_is_a_uri_that_comes_back_or_is_refused_with_a_sentence(text: str) -> None:
    try:
        found = str(parse(text))
    except UriError as error:
        found = str(error)
    assert found == text or any(words in found for words in (": must ", ": may ", "too long"))


@given(st.text(max_size=30).map("pvc://{}".format))
def test_the_field_of_data_takes_what_the_parser_takes(text: str) -> None:
    def accepted() -> bool:
        try:
            TypeAdapter(DataUri).validate_python(text)
        except ValidationError:
            return False
        return True

    try:
        parse(text)
    except UriError:
        assert not accepted()
    else:
        assert accepted()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oci://registry/repository", "must be pvc://CLAIM/PATH, configmap://NAME/KEY, s3://BUCKET/KEY, https://"),
        ("/data/mail.jsonl", "must be pvc://CLAIM/PATH"),
        ("s3://bucket", "s3://BUCKET/KEY"),
        ("s3://key:secret@bucket/x", "credentials are a Secret's"),
        ("https://host", "https://HOST/PATH"),
        ("https://host/*.csv", "name one key"),
        ("hf://alone", "hf://[datasets/]ORG/NAME"),
        ("pvc://mail/../other", "must not step up"),
        ("pvc://mail/..", "must not step up"),
        ("pvc://mail/./x", "must not step up"),
        ("pvc://me@mail/x", "must not hold a user name"),
        ("pvc://mail/x?version=1", "must not hold a query or a fragment"),
        ("pvc://mail/x#top", "must not hold a query or a fragment"),
        ("pvc://mail*/x", "in the path alone"),
        ("configmap://words/*", "name one key"),
        ("pvc://mail//x", "without empty steps"),
        ("pvc://mail/x/", "a slash at the end"),
        ("pvc://", "must be pvc://CLAIM/PATH"),
        ("configmap://words", "must be pvc://CLAIM/PATH, configmap://NAME/KEY"),
        ("pvc://Mail/x", "must be pvc://CLAIM/PATH"),
        ("pvc://mail/a\tb", "control characters"),
        ("pvc://mail/a\\b", "backslashes"),
        ("pvc://mail/x\n", "control characters"),
        ("pvc://" + "x" * 1100, "too long"),
    ],
)
def test_what_could_mean_two_things_is_refused_and_quoted(text: str, words: str) -> None:
    with pytest.raises(UriError) as refused:
        parse(text)
    assert words in str(refused.value)
    if len(text) < 1000:
        assert repr(text) in str(refused.value)


def test_names_that_only_look_like_steps_up_are_taken() -> None:
    assert parse("pvc://mail/..hidden/a..b/c.") == PvcUri("mail", "..hidden/a..b/c.")
    assert parse("pvc://mail/me@home.jsonl") == PvcUri("mail", "me@home.jsonl")


def test_globs_are_for_data_alone() -> None:
    glob = "pvc://mail/spam-[0-9]*.jsonl"
    assert parse(glob) == PvcUri("mail", "spam-[0-9]*.jsonl")
    uri = parse(glob)
    assert isinstance(uri, PvcUri)
    assert uri.is_glob
    assert not PvcUri("mail", "spam.jsonl").is_glob
    TypeAdapter(DataUri).validate_python(glob)
    for field in (WeightsUri, StorageUri):
        with pytest.raises(ValidationError, match="must not hold a glob"):
            TypeAdapter(field).validate_python(glob)


@given(st.sampled_from(["s3://bucket", "https://host:8443", "hf://org/name", "hf://datasets/org/name@main"]), PATHS)
def test_a_place_outside_of_the_cluster_comes_back_as_it_was_written(place: str, path: str) -> None:
    text = f"{place}/{path or 'rows.jsonl'}"
    assert parse(text) == RemoteUri(*text.split("://"))
    assert str(parse(text)) == text


def test_each_field_takes_the_schemes_that_make_sense_there() -> None:
    def taken(field: object, *texts: str) -> list[str]:
        return [text for text in texts if _fits(field, text)]

    texts = ("pvc://a/b", "configmap://a/b", "s3://bucket/b", "https://host/b", "hf://org/name")
    assert taken(DataUri, *texts) == list(texts)
    assert taken(BaseUri, *texts) == ["pvc://a/b", "hf://org/name"]
    assert taken(FileUri, *texts) == ["pvc://a/b", "configmap://a/b"]
    assert taken(WeightsUri, *texts) == taken(StorageUri, *texts) == ["pvc://a/b"]


def _fits(field: object, text: str) -> bool:
    try:
        TypeAdapter(field).validate_python(text)
    except ValidationError:
        return False
    return True


def test_storage_is_on_a_claim() -> None:
    assert parse_storage("pvc://kubeformer") == PvcUri("kubeformer")
    assert str(parse_storage("pvc://kubeformer") / "models" / "spam") == "pvc://kubeformer/models/spam"
    for text in ("configmap://words/x", "pvc://mail/*", "s3://x"):
        with pytest.raises(UriError):
            parse_storage(text)
