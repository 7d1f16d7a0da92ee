"""SmolLM2's greedy tokens are those of `transformers` in float32; all 50 prompts: make bench NAME=greedy.

`transformers` reads each prompt with our answer behind it. If at every place its likeliest token is the one we
gave, its greedy answer is ours, token by token.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.greedy import Answer, Mix, build_core, compare, ours, prompts
from examples import smollm2
from kubeformer_runtime.engine.tokenizer import EngineTokenizer

PROMPTS, TOKENS = 10, 4


@pytest.fixture(scope="module")
def smollm2_texts() -> dict[str, list[Answer]]:
    """Answers alone and together, and those that transformers would have given, from one loading of each."""
    torch.set_num_threads(1)
    directory = smollm2.ensure()
    prompt_list = prompts(EngineTokenizer.load(directory), PROMPTS)
    core = build_core(directory, Mix("together", 64, 64, 256), 1)
    found = {"alone": [ours(core, [prompt], TOKENS).answers[0] for prompt in prompt_list]}
    core.forget_prefixes()
    found["together"] = ours(core, prompt_list, TOKENS).answers
    del core
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found["transformers"] = []
    for prompt, answer in zip(prompt_list, found["alone"], strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.argmax(-1).tolist()
        rows = logits.log_softmax(-1)
        found["transformers"].append(
            Answer(chosen, [float(row[token]) for row, token in zip(rows, chosen, strict=True)])
        )
    return found


@pytest.mark.parametrize("way", ["alone", "together"])
def test_greedy_tokens_and_log_probabilities_equal_those_of_transformers(
    smollm2_texts: dict[str, list[Answer]], way: str
) -> None:
    equal, difference = compare(smollm2_texts["transformers"], smollm2_texts[way])
    assert equal == PROMPTS
    assert difference < 1e-4
