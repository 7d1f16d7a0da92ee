"""Asleep, an engine has given back the memory of weights and cache; awake again, it answers as before."""

from examples import smollm2
from kubeformer.contract.base import Location
from kubeformer.contract.server import ServerSettings
from kubeformer_runtime.engine.core import EngineCore, Request
from kubeformer_runtime.engine.loading import LanguageModel, load_engine
from kubeformer_runtime.engine.memory import give_back_memory
from kubeformer_runtime.engine.sampling_params import SamplingParams

PROMPT = [7 * number % 1000 for number in range(300)]


def resident_megabytes() -> float:
    """Memory of this process that is really there."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def answer(core: EngineCore) -> tuple[list[int], int]:
    """Four greedy tokens, and how much of the prompt was in the cache."""
    core.add(Request("r", PROMPT, SamplingParams(temperature=0.0, max_tokens=4), 0))
    deltas = []
    while core.has_work:
        deltas += core.step().deltas
    return [item.token for delta in deltas for item in delta.tokens], deltas[-1].num_cached_tokens


def test_sleep_frees_nine_tenths_of_what_loading_took_and_waking_brings_the_same_answers() -> None:
    settings = ServerSettings(
        name="m",
        namespace="default",
        model=Location(uri="pvc://models/smollm2", path=str(smollm2.ensure())),
        served_names=["m"],
        kv_cache_megabytes=64,
        max_model_length=1024,
    )
    give_back_memory()
    before = resident_megabytes()
    model = load_engine(settings, threads=1)
    assert isinstance(model, LanguageModel)
    core = model.core
    first, _ = answer(core)
    assert answer(core) == (first, 288)
    awake = resident_megabytes()
    core.sleep()
    asleep = resident_megabytes()
    assert awake - before > 200, "SmolLM2 has 135 million weights of two bytes at least"
    assert awake - asleep > 0.9 * (awake - before), f"{before:.0f} MB before, {awake:.0f} awake, {asleep:.0f} asleep"
    core.wake()
    assert answer(core) == (first, 0), "and nothing is left in the prefix cache"
