"""Real vLLM in a pod: a client, a scraper and a person who deletes it cannot tell it from our own engine.

The tests are a story: the last one deletes the deployment.
"""

from __future__ import annotations

import json
import threading
import time

from examples.gateway import Gateway, Spoken
from tests.e2e.lab import Lab

QUESTION = "Write a long story about a lighthouse keeper and her dog."


def pods(lab: Lab, model: str) -> list[str]:
    """Names of the deployment's pods that are there, those that stop among them."""
    return [pod["metadata"]["name"] for pod in lab.list("pods", f"kubeformer.dev/model-deployment={model}")]


def raw(lab: Lab, model: str, path: str) -> str:
    """What the server's pod answers, through the API server."""
    (name,) = pods(lab, model)
    return lab.kubectl.run("get", "--raw", f"/api/v1/namespaces/{lab.namespace}/pods/{name}:8000/proxy{path}")


def test_the_status_says_which_engine_it_is(lab: Lab, model: str) -> None:
    status = lab.get("modeldeployment", model)["status"]
    assert (status["engine"], status["engineReason"]) == ("VLLM", "spec.engine.type is VLLM.")
    assert "kubeformer-vllm" in status["resolved"]["image"]
    assert json.loads(raw(lab, model, "/version"))["version"].startswith("0.")


def test_a_chat_streams_through_the_gateway(lab: Lab, model: str, gateway: Gateway) -> None:
    assert model in gateway.models()
    pieces: list[str] = []
    spoken = gateway.chat(model, "What is the capital of France?", 24, pieces.append)
    assert "Paris" in spoken.text
    assert len(pieces) > 3
    again = gateway.chat(f"{lab.namespace}/{model}", "What is the capital of France?", 24, pieces.append)
    assert again.text == spoken.text


def test_metrics_have_vllms_names_and_the_models_name_as_label(lab: Lab, model: str) -> None:
    lines = raw(lab, model, "/metrics").splitlines()
    for name in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total"):
        (line,) = [line for line in lines if line.startswith(f"{name}{{")]
        assert f'model_name="{model}"' in line


def test_an_answer_that_has_begun_is_finished_when_the_deployment_is_deleted(
    lab: Lab, model: str, gateway: Gateway
) -> None:
    pieces: list[str] = []
    spoken: list[Spoken] = []
    talk = threading.Thread(target=lambda: spoken.append(gateway.chat(model, QUESTION, 300, pieces.append)))
    talk.start()
    lab.wait("the answer has begun", lambda: pieces, 60)
    lab.delete("modeldeployment", model)
    lab.wait("the pod is told to stop", lambda: _stops(lab, model), 60)
    before = len(pieces)
    assert talk.is_alive(), "the answer ended before the pod was told to stop: ask for a longer one"
    talk.join(timeout=180)
    assert spoken, "the stream was cut off, or hangs"
    assert spoken[0].tokens > before  # the count of tokens comes last, so nothing is missing
    assert len(pieces) > before
    began = time.monotonic()
    lab.wait("the pod is gone", lambda: not pods(lab, model), 90)
    assert time.monotonic() - began < 90  # far from the drainSeconds that an idle vLLM would wait out by itself


def _stops(lab: Lab, model: str) -> bool:
    found = lab.list("pods", f"kubeformer.dev/model-deployment={model}")
    return all("deletionTimestamp" in pod["metadata"] for pod in found)
