"""LoRA in a job: adapters put into its network, and what is published of them.

A job with `model.lora` trains A and B of the adapters alone (and a classifier's head, which may be new). Checkpoints
hold these; the frozen weights come from the base again, whose digest the checkpoint's fingerprint covers.

It publishes two things, so that either way of serving works: the merged model, as any job does, for
`model: {trainingJobRef}`; and beside it, in ADAPTER_DIRECTORY, the adapter in PEFT's layout, for `adapters: [{name,
uri: OUTPUT/adapter}]` of a deployment of the base. Merged are the base's own weights, also where they were quantised
while training: both then answer alike. See docs/training.md.
"""

import hashlib
from pathlib import Path

import torch

from kubeformer.contract.base import Location
from kubeformer.contract.job import JobSettings
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.digest import digest
from kubeformer_runtime.model.errors import ModelError
from kubeformer_runtime.model.lora import Lora, add_lora, has_lora, merged_weights
from kubeformer_runtime.model.lora_files import write_adapter
from kubeformer_runtime.model.weights import build, load, shapes_of
from kubeformer_runtime.trainer.errors import InvalidJob
from kubeformer_runtime.trainer.tasks.base import Network

ADAPTER_DIRECTORY = "adapter"
CLASSIFIER_HEADS = ("head.", "classes.", "classifier.", "score.")  # trained too: a base's labels may be others


def adapt(settings: JobSettings, network: Network) -> Network:
    """Puts adapters into the network where the job asks for them; the same bits on every rank and at every start.

    Raises:
        InvalidJob: there are no weights to put them beside, or the settings make no sense.
    """
    lora = settings.model.lora
    if lora is None:
        return network
    if settings.model.base is None:
        raise InvalidJob(
            "spec.model.lora goes beside given weights; set spec.model.uri or trainingJobRef, or drop lora"
        )
    whole = hashlib.blake2b(f"lora/{settings.training.seed}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(whole, "big") >> 1)
    try:
        add_lora(network, Lora(lora.rank, lora.alpha, lora.dropout, lora.targets), lora.base_weights)
    except ModelError as error:
        raise InvalidJob(f"spec.model.{error}") from None
    for name, parameter in network.named_parameters():
        if name.startswith(CLASSIFIER_HEADS):
            parameter.requires_grad_(True)
    return network


def to_publish(settings: JobSettings, network: Network) -> Network:
    """The network as it is saved: itself, or its merged twin where it has adapters.

    Raises:
        ModelError: the base is needed again, and has changed or gone.
    """
    if not has_lora(network):
        return network
    lora, base = settings.model.lora, settings.model.base
    assert lora is not None
    assert base is not None
    quantised = lora.base_weights != "Float"
    weights = merged_weights(network, load(Path(base.path), torch.float32).weights if quantised else None)
    return build(network.config, {name: weights[name].cpu() for name in shapes_of(network.config)})


def publish_adapter(settings: JobSettings, network: Network, directory: Path) -> dict[str, str] | None:
    """Writes DIRECTORY/adapter for a decoder with adapters; what the model's card says of it. None: there is none."""
    base = settings.model.base
    if base is None or not has_lora(network) or not isinstance(network.config, LlamaConfig):
        return None
    name, revision = hub_name(base)
    (directory / ADAPTER_DIRECTORY).mkdir()
    write_adapter(directory / ADAPTER_DIRECTORY, network, name, revision)
    return {"path": ADAPTER_DIRECTORY, "digest": digest(directory / ADAPTER_DIRECTORY)}


def hub_name(base: Location) -> tuple[str, str | None]:
    """What PEFT looks a base up by: ORG/NAME and revision of hf://ORG/NAME@REVISION, else where it lay for the job."""
    if not base.uri.startswith("hf://"):
        return base.path, None
    name, _, revision = base.uri.removeprefix("hf://").partition("@")
    return name, revision or None
