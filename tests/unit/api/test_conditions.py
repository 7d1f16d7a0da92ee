"""Conditions: a word with a meaning, and a time that moves only when the status does."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from kubeformer.api.conditions import (
    MAX_MESSAGE,
    Condition,
    DeploymentCondition,
    DeploymentReason,
    Described,
    JobCondition,
    JobReason,
    find,
    updated,
)
from kubeformer.contract.names import Reason

THEN, NOW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


@pytest.mark.parametrize("words", [JobCondition, JobReason, DeploymentCondition, DeploymentReason])
def test_every_word_is_camel_case_and_has_a_meaning_of_one_line(words: type[Described]) -> None:
    for word in words:
        assert str(word).isalnum(), word
        assert str(word)[0].isupper(), word
        assert word.meaning.endswith("."), word
        assert "\n" not in word.meaning, word


def test_every_reason_that_the_runtime_gives_is_explained() -> None:
    given = {value for name, value in vars(Reason).items() if name.isupper()}
    assert given <= {str(reason) for reason in JobReason}


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = updated([], JobCondition.SUCCEEDED, "Unknown", JobReason.PENDING, "", 1, THEN)
    second = updated([first], JobCondition.SUCCEEDED, "Unknown", JobReason.TRAINING, "going on", 2, NOW)
    third = updated([second], JobCondition.SUCCEEDED, "True", JobReason.COMPLETED, "done", 2, NOW)
    assert first["lastTransitionTime"] == second["lastTransitionTime"] == THEN
    assert (second["reason"], second["observedGeneration"]) == ("Training", 2)
    assert third["lastTransitionTime"] == NOW
    assert find([third], "Succeeded") == third
    assert find([third], "Valid") is None


def test_a_condition_is_what_the_schema_takes_whatever_the_message() -> None:
    long = updated([], DeploymentCondition.READY, "False", DeploymentReason.REJECTED, "x" * 5000, 1, NOW)
    parsed = TypeAdapter(Condition).validate_python(long)
    assert len(parsed.message) == MAX_MESSAGE
    assert parsed.message.endswith("…")
