"""Our own engine, started as the operator starts it: a settings file and `python -m kubeformer_runtime.server`."""

import json
import sys
from pathlib import Path
from typing import Literal

from bench.peers.server import Launch
from kubeformer.contract.base import Location
from kubeformer.contract.server import ServerSettings

Quantization = Literal["None", "Int8", "Int4"]
Numerics = Literal["Fast", "Reproducible"]
DType = Literal["Auto", "Float32", "BFloat16", "Float16"]


def launch(
    model: Path,
    folder: Path,
    *,
    quantization: Quantization = "None",
    numerics: Numerics = "Fast",
    dtype: DType = "BFloat16",
    speculative_tokens: int = 0,
    max_model_length: int | None = 2048,
) -> Launch:
    """The server for a model directory; `folder` gets the settings file."""
    weights = {"None": {"Float32": "fp32"}.get(dtype, "bf16"), "Int8": "int8", "Int4": "int4"}[quantization]
    name = f"kubeformer {weights}"
    if numerics == "Reproducible":
        name += " reproducible"
    if speculative_tokens:
        name += f" ngram{speculative_tokens}"
    settings = ServerSettings(
        name="bench",
        namespace="default",
        model=Location(uri=f"pvc://models/{model.name}", path=str(model)),
        served_names=["m"],
        dtype=dtype,
        quantization=quantization,
        numerics=numerics,
        speculative_tokens=speculative_tokens,
        max_model_length=max_model_length,
        kv_cache_megabytes=1024,
        drain_seconds=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{model.name}-{name.replace(' ', '-')}.json"
    file.write_text(settings.model_dump_json(by_alias=True, exclude_defaults=True))
    shown = json.loads(settings.model_dump_json(by_alias=True, exclude_defaults=True))
    for hidden in ("name", "namespace", "model", "servedNames"):
        shown.pop(hidden, None)
    return Launch(
        name=name,
        command=(sys.executable, "-m", "kubeformer_runtime.server", "--host", "127.0.0.1", "--port", "{port}"),
        environment={"KUBEFORMER_SETTINGS": str(file)},
        model="m",
        extra={"ignore_eos": True},
        settings=json.dumps(shown),
        weights=weights,
    )
