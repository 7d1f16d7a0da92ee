"""vLLM: how it is started for a ModelDeployment, in arguments and environment variables of its own. Pure.

Written for vLLM 0.32. Everything follows from ServerSettings, but for what is vLLM's alone: `engine.extraArgs` and the
accelerators. What it cannot do is refused by the API's schema (`kubeformer.api.engine`) and does not come here.
"""

import json
from collections.abc import Mapping, Sequence

from kubeformer.contract import names
from kubeformer.contract.server import Adapter, SamplingDefaults, ServerSettings
from kubeformer.kit.quantities import amount
from kubeformer.serving.process import HEALTH, Process, Resources

FAREWELL_SECONDS = 7
"""vLLM answers 500 to new requests from SIGTERM on, so routers need the time before it to hear that it leaves."""

STOP_SECONDS = 10
"""From SIGTERM until vLLM cuts off what still runs. It often takes all of it even with nothing to do (its workers
hang), so that the long wait, for drainSeconds, is in the hook before SIGTERM instead."""

DRAIN = """
import sys, time, urllib.request
url, pause, farewell, seconds = sys.argv[1], *map(float, sys.argv[2:])
time.sleep(farewell)
end = time.monotonic() + seconds
while time.monotonic() < end:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        break
    counts = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    if not sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(counts)):
        break
    time.sleep(pause)
"""
"""The hook's program: URL of the metrics, pause, farewell and drainSeconds are its arguments."""

SHARED_MEMORY = "2Gi"
"""Of /dev/shm, at most, for several accelerators, whose processes pass tensors through it, and for the CPU, where the
work is done by a process of its own. What is used of it counts as memory."""

MAX_LORA_RANK = 64
"""vLLM's own default, 16, refuses many adapters; room for 64 costs little."""

MOST_ADAPTERS_AT_ONCE = 4
"""Adapters in one batch; further ones take turns."""

EAGER = ("--enforce-eager", "--no-enforce-eager")
PARALLEL = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "--data-parallel-size")
LORA_RANK = "--max-lora-rank"

DTYPES = {"Auto": "auto", "Float32": "float32", "BFloat16": "bfloat16", "Float16": "float16"}


def vllm(
    settings: ServerSettings,
    extra: Sequence[str],
    accelerators: Mapping[str, int],
    resources: Resources,
    threads: int | None,
) -> Process:
    """The process that serves these settings. `accelerators` are those of one pod; with none it runs on the CPU."""
    count = sum(accelerators.values())
    environment = _environment()
    if not count:
        environment |= _on_cpu(resources, threads)
    return Process(
        # `$(NAME)` in a command is Kubernetes' way to write a variable, and `$$` its way to write a dollar.
        tuple(word.replace("$", "$$") for word in _command(settings, extra, count)),
        environment,
        before_stop={"exec": {"command": _drain(settings.drain_seconds)}},
        extra_seconds=FAREWELL_SECONDS + STOP_SECONDS,
        shared_memory=SHARED_MEMORY if count != 1 else None,
        checks_digest=False,
        last_words="FallbackToLogsOnError",
    )


def _drain(seconds: int) -> list[str]:
    url = f"http://127.0.0.1:{names.PORT_SERVER}/metrics"
    return ["python3", "-c", DRAIN, url, "1", str(FAREWELL_SECONDS), str(seconds)]


def _command(settings: ServerSettings, extra: Sequence[str], accelerators: int) -> list[str]:
    given = {argument.partition("=")[0] for argument in extra}
    command = ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    command += [
        "--host=0.0.0.0",
        f"--port={names.PORT_SERVER}",
        f"--disable-access-log-for-endpoints={HEALTH},/metrics",
    ]
    command += [f"--model={settings.model.path}", "--served-model-name", *settings.served_names]
    command += [f"--dtype={DTYPES[settings.dtype]}", f"--max-num-seqs={settings.max_num_seqs}"]
    if settings.max_model_length is not None:
        command.append(f"--max-model-len={settings.max_model_length}")
    command.append(f"--shutdown-timeout={min(STOP_SECONDS, settings.drain_seconds)}")
    if sampling := _sampling(settings.sampling):
        command.append(f"--override-generation-config={json.dumps(sampling)}")
    if settings.speculative_tokens:
        draft = {"method": "ngram", "num_speculative_tokens": settings.speculative_tokens, "prompt_lookup_max": 4}
        command.append(f"--speculative-config={json.dumps(draft | {'prompt_lookup_min': 2})}")
    if settings.adapters:
        command += _adapters(settings.adapters, LORA_RANK in given)
    # On the CPU vLLM would compile the model at every start: minutes on few cores, and headers that our image lacks.
    if not accelerators and not given.intersection(EAGER):
        command.append(EAGER[0])
    if accelerators > 1 and not given.intersection(PARALLEL):
        command.append(f"--tensor-parallel-size={accelerators}")
    return command + list(extra)


def _sampling(defaults: SamplingDefaults) -> dict[str, float]:
    """The defaults in generation_config.json's words, which are the contract's too."""
    given = {
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        "top_k": defaults.top_k,
        "min_p": defaults.min_p,
        "repetition_penalty": defaults.repetition_penalty,
    }
    return {name: value for name, value in given.items() if value is not None}


def _adapters(adapters: Sequence[Adapter], rank_is_given: bool) -> list[str]:
    at_once = min(len(adapters), MOST_ADAPTERS_AT_ONCE)
    words = ["--enable-lora", f"--max-loras={at_once}", f"--max-cpu-loras={len(adapters)}"]
    if not rank_is_given:
        words.append(f"{LORA_RANK}={MAX_LORA_RANK}")
    modules = [{"name": adapter.name, "path": adapter.location.path} for adapter in adapters]
    return [*words, "--lora-modules", *(json.dumps(module) for module in modules)]


def _environment() -> dict[str, str]:
    """No network, no reports home, and every cache on the scratch volume, since nothing else can be written."""
    cache = f"{names.SCRATCH_DIRECTORY}/.cache"
    return {
        "DO_NOT_TRACK": "1",
        "HF_HOME": f"{cache}/huggingface",
        "HF_HUB_OFFLINE": "1",
        "HOME": names.SCRATCH_DIRECTORY,
        "NUMBA_CACHE_DIR": f"{cache}/numba",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torchinductor",
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "USER": "kubeformer",  # the images' user has no name in others' images, and PyTorch asks for one
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
        "VLLM_CONFIG_ROOT": f"{cache}/vllm-config",
        "VLLM_NO_USAGE_STATS": "1",
        "XDG_CACHE_HOME": cache,
    }


def _on_cpu(resources: Resources, threads: int | None) -> dict[str, str]:
    """A quarter of the memory holds keys and values; threads are not bound to cores, which others may use too.

    Nor do they spin for long while they wait, which costs little when alone and makes all the difference in company.
    """
    found = {
        "GOMP_SPINCOUNT": "2000",
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gibibytes(resources)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    return found if threads is None else found | {"OMP_NUM_THREADS": str(threads)}


def cache_gibibytes(resources: Resources) -> int:
    """GiB of keys and values for a server on the CPU: a quarter of its memory, in whole ones, and one at least."""
    for part in ("limits", "requests"):
        memory = amount(resources.get(part, {}).get("memory", ""))
        if memory is not None:
            return max(1, int(memory // (4 * 2**30)))
    return 1
