"""vLLM as the other engine: the same deployment, said in vLLM's arguments, in a pod with the same manners."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from kubeformer import serving
from kubeformer.kit.view import Key
from kubeformer.serving.vllm import DRAIN, cache_gibibytes
from tests.unit.restricted import violations
from tests.unit.serving.builders import DEPLOYMENT, DIGEST, KEY, from_job, trained, world
from tests.unit.world import NAMESPACE, World, claim, condition, node

Object = dict[str, Any]
VLLM = {"type": "VLLM"}
GPUS = {"limits": {"nvidia.com/gpu": 2, "memory": "64Gi"}}


def planned(w: World) -> Object:
    """The pod of the servers."""
    w.settle(serving.reconcile, KEY)
    found: Object = w.objects[DEPLOYMENT]["spec"]["template"]["spec"]
    return found


def command(w: World) -> list[str]:
    found: list[str] = planned(w)["containers"][0]["command"]
    return found


def value(words: list[str], flag: str) -> str:
    """What stands behind `flag=`."""
    (found,) = [word.partition("=")[2] for word in words if word.startswith(f"{flag}=")]
    return found


def variables(pod: Object) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in pod["containers"][0]["env"]}


def test_the_image_and_the_command_are_vllms() -> None:
    w = world(engine=VLLM)
    pod = planned(w)
    assert pod["containers"][0]["image"] == "registry.local/vllm:1"
    assert command(w)[:3] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert value(command(w), "--model") == "/mnt/claims/kubeformer/models/spam"
    assert value(command(w), "--port") == "8000"
    status = w.objects[KEY]["status"]
    assert (status["engine"], status["engineReason"]) == ("VLLM", "spec.engine.type is VLLM.")
    assert status["resolved"]["image"] == "registry.local/vllm:1"


def test_nothing_is_compiled_at_start_on_the_cpu_unless_asked_for() -> None:
    assert "--enforce-eager" in command(world(engine=VLLM))
    accelerated = world(engine=VLLM, resources=GPUS)
    accelerated.add(node("gpu", **{"nvidia.com/gpu": "8", "memory": "128Gi"}))
    assert "--enforce-eager" not in command(accelerated)
    asked = command(world(engine=VLLM | {"extraArgs": ["--no-enforce-eager"]}))
    assert asked[-1] == "--no-enforce-eager"
    assert "--enforce-eager" not in asked


def test_every_field_reaches_vllm() -> None:
    w = world(
        claim("adapters"),
        model={
            "uri": "pvc://kubeformer/models/base",
            "servedNames": ["assistant", "helper"],
            "adapters": [{"name": "legal", "uri": "pvc://adapters/le$(gal)"}],
        },
        engine={
            "dtype": "BFloat16",
            "maxModelLength": 4096,
            "maxSequences": 7,
            "speculative": {"nGram": {"tokens": 3}},
            "extraArgs": ["--quantization=fp8"],
        },
        sampling={"temperature": 0.5, "topP": 0.9, "topK": 5, "minP": 0.1, "repetitionPenalty": 1.1},
        drainSeconds=100,
        resources=GPUS,
    )
    w.add(node("gpu", **{"nvidia.com/gpu": "8", "memory": "128Gi"}))
    words = command(w)
    at = words.index("--served-model-name")
    assert words[at + 1 : at + 3] == ["assistant", "helper"]
    assert words[at + 3].startswith("--")
    assert (value(words, "--dtype"), value(words, "--max-model-len")) == ("bfloat16", "4096")
    assert value(words, "--max-num-seqs") == "7"
    assert json.loads(value(words, "--override-generation-config")) == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
    }
    assert json.loads(value(words, "--speculative-config"))["num_speculative_tokens"] == 3
    assert value(words, "--tensor-parallel-size") == "2"
    module = json.loads(words[words.index("--lora-modules") + 1])
    assert module == {"name": "legal", "path": "/mnt/claims/adapters/le$$(gal)"}  # Kubernetes makes one dollar of two
    assert value(words, "--max-lora-rank") == "64"
    assert words[-1] == "--quantization=fp8"
    mounts = {m["mountPath"]: m for m in planned(w)["containers"][0]["volumeMounts"]}
    assert mounts["/mnt/claims/adapters"]["readOnly"] is True
    assert w.objects[KEY]["status"]["servedNames"] == ["assistant", "helper", "legal", "lab/spam"]


def test_what_is_left_out_is_left_to_vllm() -> None:
    said = " ".join(command(world(engine=VLLM)))
    for flag in ("max-model-len", "generation-config", "speculative", "lora", "parallel"):
        assert flag not in said


def test_arguments_of_the_users_own_come_instead_of_what_is_derived() -> None:
    engine = {"extraArgs": ["--tensor-parallel-size=1", "--data-parallel-size=2"]}
    w = world(engine=engine, resources=GPUS)
    w.add(node("gpu", **{"nvidia.com/gpu": "8", "memory": "128Gi"}))
    assert value(command(w), "--tensor-parallel-size") == "1"


def test_a_pod_on_the_cpu_sets_room_aside_for_the_cache_and_binds_no_cores() -> None:
    pod = planned(world(engine=VLLM, resources={"limits": {"cpu": "2", "memory": "8Gi"}}))
    found = variables(pod)
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert (found["VLLM_CPU_OMP_THREADS_BIND"], found["OMP_NUM_THREADS"]) == ("nobind", "2")
    assert "shm" in [volume["name"] for volume in pod["volumes"]]  # its work is done by a process of its own


def test_several_accelerators_share_memory_and_one_does_not() -> None:
    for count, shared in ((1, None), (2, "2Gi")):
        w = world(resources={"limits": {"nvidia.com/gpu": count}})
        w.add(node("gpu", **{"nvidia.com/gpu": "8"}))
        pod = planned(w)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes.get("shm", {}).get("emptyDir", {}).get("sizeLimit") == shared
        assert not [name for name in variables(pod) if name.startswith("VLLM_CPU")]
        assert w.objects[KEY]["status"]["engine"] == "VLLM"


def test_nothing_is_written_outside_the_scratch_volume_nor_said_to_anybody() -> None:
    pod = planned(world(engine=VLLM))
    assert violations(pod) == []
    found = variables(pod)
    assert (found["HF_HUB_OFFLINE"], found["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    caches = [value for name, value in found.items() if name.endswith(("HOME", "_DIR", "_ROOT"))]
    assert len(caches) >= 6
    assert all(place.startswith("/scratch") for place in caches)


def test_a_variable_of_the_users_own_comes_first() -> None:
    bound = {"name": "VLLM_CPU_OMP_THREADS_BIND", "value": "0-1"}
    assert variables(planned(world(engine=VLLM, pod={"env": [bound]})))["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"


def test_it_leaves_the_endpoints_before_it_is_told_to_stop_and_then_has_its_time() -> None:
    pod = planned(world(engine=VLLM, drainSeconds=100))
    (server,) = pod["containers"]
    *_, farewell, drain = server["lifecycle"]["preStop"]["exec"]["command"]
    assert int(farewell) >= 5  # vLLM refuses new requests from SIGTERM on
    assert int(drain) == 100
    stopping = int(value(server["command"], "--shutdown-timeout"))
    assert pod["terminationGracePeriodSeconds"] >= int(farewell) + 100 + stopping + 10
    assert server["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert server["terminationMessagePolicy"] == "FallbackToLogsOnError"


class Metrics(BaseHTTPRequestHandler):
    """Answers with the busy figures that the test has put on the server, the last of them for ever."""

    def do_GET(self) -> None:
        left: list[int] = self.server.left  # type: ignore[attr-defined]
        busy = left.pop(0) if len(left) > 1 else left[0]
        text = f'# HELP x\nvllm:num_requests_running{{engine="0"}} {busy}.0\nvllm:num_requests_waiting{{a="b"}} 0.0\n'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.mark.parametrize(("busy", "asked"), [([0], 1), ([2, 1, 0], 3), ([1], None)])
def test_the_hook_before_sigterm_waits_for_what_runs_but_not_for_ever(busy: list[int], asked: int | None) -> None:
    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        server.left = [*busy]  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        seconds = "30" if asked is not None else "0.2"  # it is never idle: then the time runs out
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        done = subprocess.run([sys.executable, "-c", DRAIN, url, "0.05", "0", seconds], timeout=60, check=False)
        server.shutdown()
        assert done.returncode == 0
        if asked is not None:
            assert server.left == [0]  # type: ignore[attr-defined]


def test_the_hook_ends_where_nobody_answers() -> None:
    url = "http://127.0.0.1:9/metrics"
    assert subprocess.run([sys.executable, "-c", DRAIN, url, "1", "0", "60"], timeout=30, check=False).returncode == 0


@pytest.mark.parametrize("engine", [{}, VLLM])
def test_metrics_are_found_by_the_usual_annotations(engine: Object) -> None:
    w = world(engine=engine, pod={"annotations": {"prometheus.io/scrape": "false"}})
    planned(w)
    annotations = w.objects[DEPLOYMENT]["spec"]["template"]["metadata"]["annotations"]
    assert (annotations["prometheus.io/port"], annotations["prometheus.io/path"]) == ("8000", "/metrics")
    assert annotations["prometheus.io/scrape"] == "false"  # the user's own word counts


def test_a_digest_is_checked_before_vllm_which_would_take_whatever_it_finds() -> None:
    w = world(trained(), deployment=from_job(engine=VLLM, resources={"limits": {"memory": "4Gi"}}))
    pod = planned(w)
    (first,) = pod["initContainers"]
    assert first["command"] == ["python", "-m", "kubeformer_runtime.model.check"]
    assert first["image"] == w.settings.server_image
    assert violations(pod) == []
    (settings,) = [body for key, body in w.objects.items() if key.kind == "ConfigMap"]
    assert json.loads(settings["data"]["settings.json"])["model"]["digest"] == DIGEST
    assert "initContainers" not in planned(world(engine=VLLM))  # of a bare directory no digest is known
    assert "initContainers" not in planned(world(trained(), deployment=from_job()))  # our engine looks by itself


def test_a_digest_that_differs_is_said_in_the_conditions() -> None:
    w = world(trained(), deployment=from_job(engine=VLLM))
    w.settle(serving.reconcile, KEY)
    (key,) = w.roll_out("spam", ready=0)
    message = json.dumps({"reason": "ModelInvalid", "message": "pvc://m has digest x, but y was asked for"})
    ended = {"name": "digest", "ready": False, "state": {"terminated": {"exitCode": 78, "message": message}}}
    w.objects[key]["status"]["initContainerStatuses"] = [ended]
    w.settle(serving.reconcile, KEY)
    found = condition(w.objects[KEY]["status"], "Ready")
    assert (found["reason"], found["message"]) == ("ModelInvalid", "pvc://m has digest x, but y was asked for")


def test_of_the_end_of_a_log_the_line_that_tells_most_is_shown() -> None:
    w = world(engine=VLLM)
    w.settle(serving.reconcile, KEY)
    (key,) = w.roll_out("spam", ready=0)
    log = (
        "(EngineCore pid=7) ValueError: max_model_len (9999) is greater than the derived max_model_len (2048)\n"
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n"
        "nanobind: leaked 2 instances!\n"
    )
    state = {"terminated": {"exitCode": 1, "message": log}}
    w.objects[key]["status"]["containerStatuses"][0] |= {"ready": False, "state": state}
    w.settle(serving.reconcile, KEY)
    found = condition(w.objects[KEY]["status"], "Ready")
    assert found["reason"] == "ContainerFailed"
    assert found["message"].endswith("is greater than the derived max_model_len (2048)")


def test_an_installation_without_vllms_image_says_so() -> None:
    w = world(engine=VLLM)
    w.settings = type(w.settings)(worker_image="w:1", server_image="s:1")
    w.settle(serving.reconcile, KEY)
    assert DEPLOYMENT not in w.objects
    found = condition(w.objects[KEY]["status"], "Ready")
    assert found["reason"] == "SettingsInvalid"
    assert "images.vllm" in found["message"]
    w.edit(KEY, pod={"image": "vllm/vllm-openai:latest"})
    assert planned(w)["containers"][0]["image"] == "vllm/vllm-openai:latest"


def test_the_claim_of_an_adapter_has_to_be_there() -> None:
    adapters = [{"name": "legal", "uri": "pvc://nowhere/legal"}]
    w = world(model={"uri": "pvc://kubeformer/models/base", "adapters": adapters})
    w.settle(serving.reconcile, KEY)
    found = condition(w.objects[KEY]["status"], "Valid")
    assert found["reason"] == "ClaimNotFound"
    assert "spec.model.adapters, the uri of legal, is pvc://nowhere/legal" in found["message"]


def test_the_built_in_engine_gets_the_same_wishes_as_settings() -> None:
    w = world(
        model={
            "uri": "pvc://kubeformer/models/base",
            "adapters": [{"name": "legal", "uri": "pvc://kubeformer/legal"}],
        },
        engine={"quantization": "Int8", "numerics": "Reproducible", "speculative": {"nGram": {"tokens": 2}}},
    )
    w.settle(serving.reconcile, KEY)
    (key,) = [key for key in w.objects if key.kind == "ConfigMap"]
    settings = json.loads(w.objects[key]["data"]["settings.json"])
    assert (settings["quantization"], settings["numerics"], settings["speculativeTokens"]) == (
        "Int8",
        "Reproducible",
        2,
    )
    (adapter,) = settings["adapters"]
    assert adapter["location"]["path"] == "/mnt/claims/kubeformer/legal"
    assert settings["servedNames"] == ["spam"]
    assert w.objects[KEY]["status"]["engine"] == "Builtin"
    assert Key("Service", NAMESPACE, "spam") in w.objects


@pytest.mark.parametrize(
    ("resources", "gibibytes"),
    [({"requests": {"memory": "1Gi"}}, 1), ({"limits": {"memory": "9Gi"}, "requests": {"memory": "2Gi"}}, 2), ({}, 1)],
)
def test_a_quarter_of_the_memory_is_cache(resources: dict[str, dict[str, str]], gibibytes: int) -> None:
    assert cache_gibibytes(resources) == gibibytes
