"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: LoRA adapters that come and go while the server runs."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kubeformer.contract.names import CLAIMS_DIRECTORY
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.server.errors import ApiError, bad_request
from kubeformer_runtime.server.operations import to_its_end
from kubeformer_runtime.server.protocol import Body
from kubeformer_runtime.server.serving import Serving

Document = dict[str, Any]
ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"


class LoadAdapterRequest(Body):
    """POST /v1/load_lora_adapter."""

    lora_name: Annotated[str, Field(pattern=ADAPTER_NAME)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]


class UnloadAdapterRequest(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: str


async def load_adapter(serving: Serving, body: LoadAdapterRequest) -> Document:
    """Load a LoRA adapter; from then on requests may name it as their model."""
    generator, name = serving.need_generator(), body.lora_name
    serving.check_awake()
    if name in serving.settings.served_names:
        raise bad_request(f"lora_name is {name}, which is the name of the model itself; choose another.", "lora_name")
    if name in serving.adapters:
        raise bad_request(f"The adapter `{name}` is loaded already; unload it first.", "lora_name")
    directory = adapter_directory(body.lora_path, serving.settings.model.path)
    engine = generator.engine

    async def act() -> Document:
        try:
            await engine.call(lambda: engine.core.add_adapter(name, directory))
        except ModelError as error:
            raise bad_request(f"The adapter cannot be loaded: {error}", "lora_path") from None
        serving.adapters[name] = body.lora_path
        serving.metrics.adapters_loaded(len(serving.adapters))
        return {"status": f"Success: LoRA adapter '{name}' added successfully."}

    return await to_its_end(act())


async def unload_adapter(serving: Serving, body: UnloadAdapterRequest) -> Document:
    """Let go of a LoRA adapter: new requests no longer find it, answers under way are written to their end."""
    engine, name = serving.need_generator().engine, body.lora_name
    serving.check_awake()
    if serving.adapters.pop(name, None) is None:
        raise ApiError(404, f"The adapter `{name}` is not loaded.", "lora_name")

    async def act() -> Document:
        await engine.call(lambda: engine.core.remove_adapter(name))
        serving.metrics.adapters_loaded(len(serving.adapters))
        return {"status": f"Success: LoRA adapter '{name}' removed successfully."}

    return await to_its_end(act())


def adapter_directory(path: str, model: str) -> Path:
    """The directory that a client names, where clients may name it: below the volumes' root or beside the model.

    Links are followed before that is checked, so that none leads out; outside, nobody learns what exists.
    """
    roots = [Path(CLAIMS_DIRECTORY).resolve(), Path(model).resolve().parent]
    try:
        found = Path(path).resolve()
    except (OSError, ValueError, RuntimeError):
        found = None
    if found is None or not any(found.is_relative_to(root) and found != root for root in roots):
        raise bad_request(
            f"lora_path is {path[:200]!r}; give a directory on one of this server's volumes, below {CLAIMS_DIRECTORY} "
            "or beside the model.",
            "lora_path",
        )
    if not found.is_dir():
        raise bad_request(f"lora_path is {path[:200]!r}; there is no such directory.", "lora_path")
    return found
