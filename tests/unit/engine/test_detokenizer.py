"""Text while it arrives: pieces put together are the whole text, characters come whole, stop strings never show."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from kubeformer_runtime.engine.detokenizer import Detokenizer, StopStrings
from kubeformer_runtime.engine.tokenizer import EngineTokenizer
from tests.unit.engine.builders import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def decode(tokens: Sequence[int]) -> str:
    return TOKENIZER.decode(tokens)


@settings(max_examples=200, deadline=None)
@given(prompt=st.text(max_size=8), text=st.text(max_size=40))
def test_pieces_of_a_text_are_whole_characters_and_make_up_the_text(prompt: str, text: str) -> None:
    detokenizer = Detokenizer(decode, list(prompt.encode()))
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join([*pieces, detokenizer.flush()]) == text
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=12))
def test_bytes_that_are_no_text_come_out_as_the_tokenizer_shows_them(content: bytes) -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(byte) for byte in content]
    assert "".join([*pieces, detokenizer.flush()]) == decode(list(content))


def test_endless_broken_bytes_are_given_out_and_not_collected_for_ever() -> None:
    detokenizer = Detokenizer(decode)
    assert "".join(detokenizer.push(0xFF) for _ in range(100)) != ""


def test_a_character_cut_between_prompt_and_answer_belongs_to_the_answer() -> None:
    first, *rest = "é".encode()
    detokenizer = Detokenizer(decode, [*b"caf", first])
    assert "".join(detokenizer.push(byte) for byte in rest) == "é"


def test_special_tokens_have_no_text_but_do_no_harm() -> None:
    detokenizer = Detokenizer(decode)
    assert [detokenizer.push(token) for token in (*b"a", EOS, *b"b")] == ["a", "", "b"]


def stream(
    text: str, stops: Sequence[str], cuts: Sequence[int] = (), *, include: bool = False
) -> tuple[str, str | None]:
    """A text fed in pieces, cut at the given places: what was given out, and the stop string that was found."""
    watcher = StopStrings(stops, include=include)
    places = [0, *sorted({cut for cut in cuts if cut < len(text)}), len(text)]
    given_out = ""
    for start, end in itertools.pairwise(places):
        given_out += watcher.push(text[start:end], last=end == len(text))
        assert not any(stop in given_out for stop in stops) or include
    return given_out, watcher.found


def test_text_ends_before_the_stop_string() -> None:
    assert stream("one\n\ntwo", ["\n\n"]) == ("one", "\n\n")
    assert stream("one\n\ntwo", ["\n\n"], include=True) == ("one\n\n", "\n\n")


def test_a_beginning_that_turns_out_otherwise_is_given_out_after_all() -> None:
    watcher = StopStrings(["STOP"])
    assert watcher.push("a ST") == "a "
    assert watcher.push("ART") == "START"


def test_what_is_held_back_comes_out_at_the_end() -> None:
    assert stream("value: EN", ["END"]) == ("value: EN", None)


def test_of_two_stop_strings_the_one_that_is_complete_first_wins() -> None:
    assert stream("abcdef", ["bcdef", "cd"]) == ("ab", "cd")


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab", max_size=24),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 24), max_size=8),
)
def test_how_a_text_is_cut_into_pieces_changes_nothing(text: str, stops: list[str], cuts: list[int]) -> None:
    """Against a plain reference: look after every character whether the text so far ends in a stop string."""
    expected, found = text, None
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            found = max(ending, key=len)
            expected = text[: end - len(found)]
            break
    assert stream(text, stops, cuts) == (expected, found)


@pytest.mark.parametrize("include", [True, False])
def test_nothing_follows_a_stop_string(include: bool) -> None:
    watcher = StopStrings(["."], include=include)
    watcher.push("a.b")
    assert watcher.push("c", last=True) == ""


def test_a_word_is_the_tokens_of_both_ways_to_write_it() -> None:
    """At the beginning of a text and after a space, where the space is part of the word's first token."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "Ġ": 2, "Ġa": 3}, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = EngineTokenizer(tokenizer)
    assert words.word_tokens("ab") == words.word_tokens(" ab") == [(0, 1), (3, 1)]
    assert words.word_tokens("ba") == [(1, 0)]  # after a space it is one token longer, and ends in these
    assert words.word_tokens(" ") == [()]
