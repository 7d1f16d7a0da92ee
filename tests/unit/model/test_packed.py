"""Documents packed into one row are read as if each stood alone: no token sees a neighbour or counts on from one."""

import pytest
import torch

from kubeformer_runtime.model.layers import document_mask, places
from tests.unit.model.builders import llama_config, random_llama


def test_a_document_begins_at_place_0_and_sees_only_itself() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1]])
    assert places(documents).tolist() == [[0, 1, 0, 1, 2]]
    assert document_mask(documents)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("positions", ["Rotary", "Learned"])
def test_logits_of_packed_documents_are_those_of_each_alone(positions: str) -> None:
    learned = {
        "family": "gpt2",
        "norm": "LayerNorm",
        "attention_bias": True,
        "mlp_bias": True,
        "activation": "GELUTanh",
    }
    more = {"positions": "Learned", "key_value_heads": 4, **learned} if positions == "Learned" else {}
    model = random_llama(llama_config(layers=2, heads=4, **more)).eval()
    first, second = torch.arange(5), torch.arange(20, 28)
    with torch.no_grad():
        packed = model(torch.cat((first, second))[None], torch.tensor([[0] * 5 + [1] * 8]))[0]
        alone = torch.cat((model(first[None])[0], model(second[None])[0]))
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
