"""Classification in batches: each text's answer is the one it gets alone."""

import asyncio

import pytest
import torch

from kubeformer_runtime.engine.async_engine import EngineDeadError
from kubeformer_runtime.engine.classification import ClassificationEngine, probabilities
from tests.unit.model.builders import classifier_config, random_classifier

MODEL = random_classifier(classifier_config())
TEXTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [], [11, 12], [3] * 40]


def alone(tokens: list[int]) -> list[float]:
    return probabilities(MODEL, [tokens[: MODEL.config.max_length]], torch.device("cpu"))[0]


@pytest.mark.parametrize("limits", [{}, {"max_rows": 2}, {"max_tokens": 8}], ids=str)
async def test_answers_keep_their_order_and_do_not_depend_on_the_batch(limits: dict[str, int]) -> None:
    engine = ClassificationEngine(MODEL, **limits)  # type: ignore[arg-type]
    engine.start()
    found = await asyncio.gather(engine.classify(TEXTS), engine.classify(TEXTS[::-1]))
    await engine.close()
    for tokens, first, second in zip(TEXTS, found[0], found[1][::-1], strict=True):
        assert first == pytest.approx(alone(tokens), abs=1e-5)
        assert second == pytest.approx(first, abs=1e-5)
        assert sum(first) == pytest.approx(1.0)


async def test_texts_are_cut_to_the_deployments_length() -> None:
    engine = ClassificationEngine(MODEL, max_length=2)
    engine.start()
    (found,) = await engine.classify([[5, 6, 7, 8]])
    await engine.close()
    assert found == pytest.approx(alone([5, 6]), abs=1e-6)


async def test_a_client_that_leaves_does_not_disturb_the_others() -> None:
    engine = ClassificationEngine(MODEL)
    engine.start()
    leaving = asyncio.create_task(engine.classify([[1]] * 50))
    staying = asyncio.create_task(engine.classify([[2, 3]]))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying)[0] == pytest.approx(alone([2, 3]), abs=1e-5)
    assert engine.num_requests == 0
    await engine.close()


async def test_a_broken_engine_answers_with_an_error_and_says_that_it_is_dead() -> None:
    engine = ClassificationEngine(MODEL)
    engine.start()
    with pytest.raises(EngineDeadError):
        await engine.classify([[10_000]])  # a token that no vocabulary has: the model raises
    assert not engine.alive
    with pytest.raises(EngineDeadError):
        await engine.classify([[1]])
