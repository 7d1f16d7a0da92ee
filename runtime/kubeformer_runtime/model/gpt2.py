"""GPT-2's names and layouts of weights, translated to ours (which are Llama's) and back.

GPT-2 keeps its linear layers as Conv1D, (in, out) where torch.nn.Linear has (out, in), and q, k and v as one.
Some files, the first release's among them, leave out the prefix "transformer."; some hold causal masks as
tensors named attn.bias, which are no weights.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kubeformer_runtime.model.errors import ModelError

PREFIX = "transformer."
WHOLE = {
    "wte.weight": "model.embed_tokens.weight",
    "wpe.weight": "model.embed_positions.weight",
    "ln_f.weight": "model.norm.weight",
    "ln_f.bias": "model.norm.bias",
    "lm_head.weight": "lm_head.weight",
    "score.weight": "score.weight",  # of a classifier
}
HEADS = ("lm_head.weight", "score.weight")  # stand without the prefix
# A part of GPT-2's layer: the parts of ours that it holds, one after the other.
PARTS = {
    "ln_1": ("input_layernorm",),
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "ln_2": ("post_attention_layernorm",),
    "mlp.c_fc": ("mlp.up_proj",),
    "mlp.c_proj": ("mlp.down_proj",),
}
LAYER = re.compile(r"h\.(\d+)\.(.+)\.(weight|bias)")
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def from_gpt2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's tensors under our names; names that are not GPT-2's stay as they are, for the check to find."""
    found: dict[str, Tensor] = {}
    for full, tensor in weights.items():
        name = full.removeprefix(PREFIX)
        if MASK.fullmatch(name):
            continue
        if name in WHOLE:
            found[WHOLE[name]] = tensor
        elif (match := LAYER.fullmatch(name)) and match[2] in PARTS:
            found.update(_split(full, tensor, match[1], PARTS[match[2]], match[3]))
        else:
            found[full] = tensor
    return found


def _split(full: str, tensor: Tensor, layer: str, parts: tuple[str, ...], kind: str) -> Iterator[tuple[str, Tensor]]:
    if tensor.dim() != (2 if kind == "weight" and "norm" not in parts[0] else 1) or tensor.shape[-1] % len(parts):
        raise ModelError(f"{full} has shape {tuple(tensor.shape)}, which no GPT-2 has")
    for part, piece in zip(parts, tensor.chunk(len(parts), dim=-1), strict=True):
        yield f"model.layers.{layer}.{part}.{kind}", piece.t().contiguous()


def to_gpt2(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The way back; every weight of the model has to be there (the head where it is not the embedding)."""
    found = {name if name in HEADS else PREFIX + name: weights[ours] for name, ours in WHOLE.items() if ours in weights}
    for layer in range(layers):
        for name, parts in PARTS.items():
            for kind in ("weight", "bias"):
                pieces = [weights[f"model.layers.{layer}.{part}.{kind}"].t() for part in parts]
                found[f"{PREFIX}h.{layer}.{name}.{kind}"] = torch.cat(pieces, dim=-1).contiguous()
    return found


def name_in_file(ours: str) -> str:
    """The tensor of a GPT-2 file that holds a weight of ours, for messages."""
    for name, whole in WHOLE.items():
        if whole == ours:
            return name if name in HEADS else PREFIX + name
    layer, rest = ours.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"{PREFIX}h.{layer}.{next(name for name, parts in PARTS.items() if part in parts)}.{kind}"
