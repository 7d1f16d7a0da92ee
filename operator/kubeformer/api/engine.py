"""What a ModelDeployment says about its engine: ours or vLLM, and how it computes.

What one engine cannot do is refused by the schema, with a sentence: `vllm_rules` holds for the whole spec, since with
`type: Auto` the resources decide which engine it is.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from kubeformer.api.common import ResourceMap, Whole
from kubeformer.api.rules import UNIQUE, Model, Rule, cel_text, empty, matching

EngineName = Literal["Builtin", "VLLM"]

ACCELERATOR = r"^[^/]+/(gpu|mig-|tpu|gaudi|neuron|npu|i915$|xe$)"
"""Pattern of the names under which device plugins announce accelerators, as in nvidia.com/gpu."""

OWN_FLAGS = (
    "--model",
    "--served-model-name",
    "--host",
    "--port",
    "--uds",
    "--root-path",
    "--config",
    "--headless",
    "--dtype",
    "--max-model-len",
    "--max-num-seqs",
    "--enable-lora",
    "--lora-modules",
    "--generation-config",
    "--override-generation-config",
    "--speculative-config",
    "--shutdown-timeout",
    "--disable-log-stats",
)
"""vLLM's arguments that follow from other fields, and those that would take a server away from probes and gateway."""

_FLAG = matching(
    r"^--[a-z][-a-z0-9]*(\.[-_.a-zA-Z0-9]+)?(=.*)?$",
    "must be one argument of vLLM in lower case, with its value behind =, as in --quantization=fp8",
)
_NOT_OURS = Rule(
    f"![{', '.join(cel_text(flag) for flag in OWN_FLAGS)}].exists(f, f.startsWith(self.split('=')[0].split('.')[0]))",
    "follows from other fields of the spec, or is short for one that does: set that field, and write others in full",
    lambda given: not any(flag.startswith(given.split("=")[0].split(".")[0]) for flag in OWN_FLAGS),
)
ExtraArgument = Annotated[str, Field(min_length=3, max_length=1024), _FLAG, _NOT_OURS]


class NGram(Model):
    """Drafts copied from where the last tokens stood before, in the prompt or in the answer."""

    tokens: Annotated[int, Field(ge=1, le=8), Whole] = 4
    """Tokens drafted at most for each step of a request."""


class Speculative(Model):
    """Drafting tokens ahead and checking them in one step. It changes the speed, not how likely any answer is."""

    n_gram: NGram
    """Drafts copied from the text so far, for example nGram: {}; good where answers repeat their prompt."""


class Engine(Model):
    """How the model is run, and by what."""

    type: Literal["Auto", "Builtin", "VLLM"] = "Auto"
    """What runs the model. Builtin is Kubeformer's own engine; VLLM is vLLM. Auto: VLLM if spec.resources name an
    accelerator, such as nvidia.com/gpu, else Builtin. status.engine says which it is."""

    dtype: Literal["Auto", "Float32", "BFloat16", "Float16"] = "Auto"
    """Arithmetic. Auto: as the weights are stored."""

    quantization: Literal["None", "Int8", "Int4"] = "None"
    """Weights made smaller when they are loaded; arithmetic and cache stay in dtype. With Builtin alone."""

    numerics: Literal["Fast", "Reproducible"] = "Fast"
    """Reproducible: a greedy or seeded request gives the same tokens whatever else runs, at some cost in speed. With
    Builtin alone."""

    max_model_length: Annotated[int, Field(ge=16, le=1_048_576), Whole] | None = None
    """Tokens of prompt and answer together, at most; left out: what the model was made for."""

    max_sequences: Annotated[int, Field(ge=1, le=4096), Whole] = 64
    """Requests worked on at once by a replica; more wait."""

    speculative: Speculative | None = None
    """Drafting tokens ahead; left out: none are."""

    extra_args: Annotated[list[ExtraArgument], Field(max_length=32), *UNIQUE] = empty(list)
    """Further arguments of vLLM, as in --quantization=fp8 or --tensor-parallel-size=2. With VLLM alone."""


_ACCELERATOR = re.compile(ACCELERATOR.replace("$", r"\Z"))


def accelerators(limits: ResourceMap, requests: ResourceMap) -> dict[str, int]:
    """How many accelerators one pod asks for, by resource name, sorted; those it asks none of are left out."""
    asked = [(name, str(count)) for name, count in (*requests.items(), *limits.items()) if _ACCELERATOR.search(name)]
    return {name: int(count) if count.isdecimal() else 1 for name, count in sorted(asked) if count != "0"}


def engine_of(spec: Any) -> tuple[EngineName, str]:
    """Which engine a spec (of a ModelDeployment) asks for, and why, in words."""
    if spec.engine.type != "Auto":
        return spec.engine.type, f"spec.engine.type is {spec.engine.type}."
    found = accelerators(spec.resources.limits, spec.resources.requests)
    if found:
        return "VLLM", f"spec.engine.type is Auto, and spec.resources name {', '.join(found)}."
    return "Builtin", "spec.engine.type is Auto, and spec.resources name no accelerator."


def _accelerated(member: str) -> str:
    map_ = f"self.resources.{member}"
    return (
        f"(has(self.resources) && has({map_}) && "
        f"{map_}.exists(k, k.matches({cel_text(ACCELERATOR)}) && string({map_}[k]) != '0'))"
    )


_VLLM = (
    "(self.engine.type == 'VLLM' || (self.engine.type == 'Auto' && "
    f"({_accelerated('limits')} || {_accelerated('requests')})))"
)
_WHEN = "with vLLM (engine.type VLLM, or Auto with an accelerator)"


def _not_with_vllm(cel: str, message: str, holds: Callable[[Any], bool]) -> Rule:
    return Rule(f"!{_VLLM} || {cel}", message, lambda spec: engine_of(spec)[0] != "VLLM" or holds(spec))


VLLM_RULES: tuple[Rule, ...] = (
    _not_with_vllm(
        "self.engine.quantization == 'None'",
        f"engine.quantization must be None {_WHEN}: it serves weights as they were quantised when they were saved, and "
        "has methods of its own, as in extraArgs: [--quantization=fp8]",
        lambda spec: spec.engine.quantization == "None",
    ),
    _not_with_vllm(
        "self.engine.numerics == 'Fast'",
        f"engine.numerics must be Fast {_WHEN}, whose tokens depend on what else runs; for Reproducible, "
        "set engine.type: Builtin",
        lambda spec: spec.engine.numerics == "Fast",
    ),
    _not_with_vllm(
        "!has(self.sampling) || !has(self.sampling.seed)",
        f"sampling.seed cannot be set {_WHEN}, which takes seeds from requests alone; leave it out, or set "
        "engine.type: Builtin",
        lambda spec: spec.sampling.seed is None,
    ),
    _not_with_vllm(
        "!has(self.sampling) || !has(self.sampling.maxTokens)",
        f"sampling.maxTokens cannot be set {_WHEN}, for which it would be a limit and not a default; leave it out, or "
        "set engine.type: Builtin",
        lambda spec: spec.sampling.max_tokens is None,
    ),
    Rule(
        f"{_VLLM} || !has(self.engine.extraArgs) || self.engine.extraArgs.size() == 0",
        "engine.extraArgs are arguments of vLLM, and this deployment gets the built-in engine: leave them out, or "
        "set engine.type: VLLM",
        lambda spec: engine_of(spec)[0] == "VLLM" or not spec.engine.extra_args,
    ),
)
"""What a spec cannot ask of vLLM, and of the built-in engine."""
