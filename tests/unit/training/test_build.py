"""The children of a TrainingJob: what the pods may and may not do, what they see, and how the Job fails."""

from typing import Any

import pytest

from kubeformer import training
from kubeformer.contract import names
from kubeformer.contract.job import JobSettings
from kubeformer.kit.view import Key
from tests.unit.restricted import violations
from tests.unit.training.builders import JOB, KEY, world
from tests.unit.world import NAMESPACE, World, config_map, node


def made(w: World) -> dict[str, Any]:
    w.settle(training.reconcile, KEY)
    spec: dict[str, Any] = w.objects[JOB]["spec"]
    return spec


def pod_of(w: World) -> dict[str, Any]:
    spec: dict[str, Any] = made(w)["template"]["spec"]
    return spec


def settings_of(w: World) -> JobSettings:
    made(w)
    text = next(b for k, b in w.objects.items() if k.kind == "ConfigMap" and "-settings-" in k.name)["data"]
    return JobSettings.model_validate_json(text[names.SETTINGS_KEY])


def environment(w: World) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in pod_of(w)["containers"][0]["env"]}


def test_workers_and_the_clean_up_are_allowed_under_pod_security_restricted() -> None:
    w = world(pod={"sharedMemory": "1Gi", "env": [{"name": "A", "value": "b"}]})
    assert violations(pod_of(w)) == []
    w.start_workers("spam")
    w.settle(training.reconcile, KEY)
    w.delete(KEY)
    w.settle(training.reconcile, KEY)
    cleanup = w.objects[Key("Job", NAMESPACE, "spam-cleanup")]["spec"]["template"]["spec"]
    assert violations(cleanup) == []


def read_only(w: World) -> dict[str, bool]:
    mounts = pod_of(w)["containers"][0]["volumeMounts"]
    return {mount["mountPath"]: mount.get("readOnly", False) for mount in mounts}


def test_data_can_only_be_read_and_a_claim_that_is_written_too_can_be_written() -> None:
    rows = config_map("rows", **{"test.jsonl": ""})
    data = {"uri": "pvc://mail/spam.jsonl", "test": {"uri": "configmap://rows/test.jsonl"}}
    mounts = read_only(world(rows, data=data))
    assert mounts["/mnt/claims/mail"] is True
    assert mounts["/mnt/claims/kubeformer"] is False
    assert mounts["/mnt/configmaps/rows"] is True
    same = world(data=data, output={"storage": {"uri": "pvc://mail/out"}})
    same.add(rows)
    mounts = read_only(same)
    assert mounts["/mnt/claims/mail"] is False


def test_worker_zero_has_a_name_that_the_others_know() -> None:
    w = world(workers={"replicas": 2, "processesPerWorker": 3})
    found = environment(w)
    assert found["PET_NNODES"] == "2"
    assert found["PET_NPROC_PER_NODE"] == "3"
    assert found["PET_MASTER_ADDR"] == "spam-0.spam-workers"
    service = w.objects[Key("Service", NAMESPACE, "spam-workers")]["spec"]
    assert pod_of(w)["subdomain"] == "spam-workers"
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    labels = w.objects[JOB]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


def test_threads_follow_the_cpu_limit_and_the_user_may_say_otherwise() -> None:
    limits = {"resources": {"limits": {"cpu": "3500m"}}}
    assert environment(world(workers=limits))["OMP_NUM_THREADS"] == "3"
    assert environment(world(workers=limits | {"processesPerWorker": 4}))["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(world())
    theirs = {"env": [{"name": "OMP_NUM_THREADS", "value": "7"}]}
    assert environment(world(workers=limits, pod=theirs))["OMP_NUM_THREADS"] == "7"


def test_what_cannot_work_ends_the_job_and_voluntary_stops_never_count() -> None:
    spec = made(world(recovery={"maxRestarts": 4}))
    assert spec["backoffLimit"] == 4
    assert spec["podReplacementPolicy"] == "Failed"
    fail, disruption, stopped = spec["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [78])
    assert (disruption["action"], disruption["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [143])
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # which a pod failure policy needs


def test_what_the_user_says_about_pods_is_done() -> None:
    pod = {
        "image": "ours/trainer:2",
        "imagePullSecrets": [{"name": "registry"}],
        "labels": {"team": "mail"},
        "annotations": {"note": "x"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
        "priorityClassName": "batch",
        "runtimeClassName": "gvisor",
        "sharedMemory": "2Gi",
        "terminationGracePeriodSeconds": 33,
    }
    w = world(pod=pod)
    spec = pod_of(w)
    template = w.objects[JOB]["spec"]["template"]["metadata"]
    container = spec["containers"][0]
    assert container["image"] == "ours/trainer:2"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert template["labels"]["team"] == "mail"
    assert template["annotations"]["note"] == "x"
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert environment(w)["HF_HUB_OFFLINE"] == "1"
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("batch", "gvisor")
    assert spec["terminationGracePeriodSeconds"] == 33
    shm = next(v for v in spec["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_what_is_left_out_of_resources_is_set_aside_by_size() -> None:
    assert pod_of(world())["containers"][0]["resources"] == {"requests": {"cpu": "500m", "memory": "1Gi"}}
    large = {"architecture": {"layers": 24, "width": 1024, "heads": 16}}
    memory = pod_of(world(node("large", memory="64Gi"), model=large))["containers"][0]["resources"]["requests"][
        "memory"
    ]
    assert memory.endswith("Mi")
    assert 6_000 < int(memory.removesuffix("Mi")) < 30_000
    limited = {"resources": {"limits": {"cpu": "200m", "memory": "2Gi"}}}
    assert pod_of(world(workers=limited))["containers"][0]["resources"]["requests"] == {"cpu": "200m", "memory": "1Gi"}


def test_every_field_of_training_reaches_the_trainer() -> None:
    w = world(
        task={"languageModel": {"textField": "body", "sequenceLength": 128}},
        model={
            "architecture": {
                "layers": 3,
                "width": 96,
                "heads": 6,
                "keyValueHeads": 2,
                "mlpWidth": 200,
                "activation": "SwiGLU",
                "dropout": 0.0,
            }
        },
        data={
            "uri": "pvc://mail/a.jsonl",
            "prepare": {
                "normalize": "NFC",
                "deduplicate": {"similarityPercent": 70},
                "minCharacters": 5,
                "maxBadRowsPercent": 2,
            },
            "validation": {"percent": 20},
            "tokenizer": {"train": {"vocabularySize": 999}},
        },
        training={
            "steps": 50,
            "batchSize": 16,
            "learningRate": 0.002,
            "optimizer": {"type": "SGD", "weightDecay": 0.1, "maxGradientNorm": 2.0},
            "schedule": {"type": "WarmupStableDecay", "warmupPercent": 10, "decayPercent": 30},
            "objective": {"metric": "validation/loss"},
            "evaluation": {"everySteps": 10, "earlyStopping": {"patience": 2, "minDelta": 0.01}},
            "precision": "BFloat16",
            "activationCheckpointing": "Full",
            "seed": 7,
        },
        checkpoint={"intervalSeconds": 60, "keep": 2},
        recovery={"maxRestarts": 3, "hangTimeoutSeconds": 90},
        output={"publish": "Last"},
    )
    found = settings_of(w).model_dump(mode="json")
    assert found["task"] == {"kind": "LanguageModel", "textField": "body", "sequenceLength": 128}
    assert found["model"]["architecture"] == {
        "layers": 3,
        "width": 96,
        "heads": 6,
        "keyValueHeads": 2,
        "mlpWidth": 200,
        "activation": "SwiGLU",
        "dropout": 0.0,
    }
    assert found["data"]["prepare"] == {
        "normalize": "NFC",
        "deduplicate": "Near",
        "similarityPercent": 70,
        "minCharacters": 5,
        "maxBadRowsPercent": 2,
        "languages": [],
        "maxRepetitionPercent": None,
    }
    assert (found["data"]["validationPercent"], found["data"]["vocabularySize"]) == (20, 999)
    assert found["training"] == {
        "epochs": None,
        "steps": 50,
        "tokens": None,
        "batchSize": 16,
        "learningRate": 0.002,
        "optimizer": "SGD",
        "weightDecay": 0.1,
        "maxGradientNorm": 2.0,
        "schedule": "WarmupStableDecay",
        "warmupPercent": 10,
        "decayPercent": 30,
        "objectiveMetric": "validation/loss",
        "objectiveDirection": "Minimize",
        "evaluateEveryEpochs": 1,
        "evaluateEverySteps": 10,
        "earlyStopping": {"patience": 2, "minDelta": 0.01},
        "precision": "BFloat16",
        "activationCheckpointing": "Full",
        "seed": 7,
    }
    assert found["workers"] == {"replicas": 1, "processesPerWorker": 1, "strategy": "Auto"}
    assert (found["checkpoint"]["intervalSeconds"], found["checkpoint"]["keep"]) == (60, 2)
    assert found["recovery"] == {"maxRestarts": 3, "hangTimeoutSeconds": 90}
    assert found["output"]["publish"] == "Last"


def test_the_settings_never_change_under_a_name() -> None:
    w = world()
    made(w)
    first = next(b for k, b in w.objects.items() if k.kind == "ConfigMap")
    other = world(training={"seed": 1})
    made(other)
    second = next(b for k, b in other.objects.items() if k.kind == "ConfigMap")
    assert first["immutable"] is True
    assert first["metadata"]["name"] != second["metadata"]["name"]


BASE = {"model": {"uri": "hf://org/base@main", "secretRef": {"name": "hub"}, "lora": {"targets": ["MLP"]}}}
TASKS: list[tuple[Any, Any, Any, str]] = [
    ({"textClassification": {"maxLength": 64}}, {}, {"maxLength": 64}, "validation/accuracy"),
    ({"languageModel": {}}, {}, {"sequenceLength": 512}, "validation/loss"),
    ({"chat": {"lossOn": "All"}}, BASE, {"lossOn": "All", "template": None}, "validation/loss"),
    ({"preference": {"beta": 0.2}}, BASE, {"beta": 0.2, "method": "DPO"}, "validation/loss"),
    ({"textToText": {"sourceField": "en"}}, {}, {"sourceField": "en", "maxTargetLength": 256}, "validation/chrf"),
    ({"recommendation": {}}, {}, {"itemField": "item", "maxLength": 50}, "validation/ndcg@10"),
    ({"custom": {"command": ["python", "x.py"]}}, {}, {"command": ["python", "x.py"]}, "validation/loss"),
]


@pytest.mark.parametrize(("task", "more", "fields", "metric"), TASKS, ids=lambda value: str(value)[:20])
def test_every_task_reaches_the_trainer_with_its_model_rate_and_objective(
    task: Any, more: Any, fields: Any, metric: str
) -> None:
    found = settings_of(world(task=task, **more)).model_dump(mode="json")
    kind = next(iter(task))
    assert found["task"]["kind"] == kind[0].upper() + kind[1:]
    assert found["task"].items() >= fields.items()
    assert (found["model"]["base"] is not None) == bool(more)
    assert (found["model"]["architecture"] is None) == (bool(more) or kind == "custom")
    assert found["training"]["objectiveMetric"] == metric
    assert 0 < found["training"]["learningRate"] <= 1e-3
    if more:
        assert found["model"]["base"]["path"] == "/scratch/downloads/hf/org/base@main"
        assert found["model"]["lora"]["targets"] == ["MLP"]


def test_adapters_bear_a_higher_rate_than_the_weights_themselves() -> None:
    def rate(**model: Any) -> float:
        return settings_of(world(task={"chat": {}}, model={"uri": "hf://org/base", **model})).training.learning_rate

    assert rate(lora={}) >= 10 * rate()


def test_several_sources_are_read_and_what_is_remote_is_downloaded_with_a_secret() -> None:
    w = world(
        data={
            "sources": [
                {"name": "own", "uri": "pvc://mail/a.jsonl"},
                {"name": "web", "uri": "s3://bucket/b-*.parquet", "format": "Parquet", "weight": 2.5},
            ],
            "validation": {"percent": 20, "keepTogether": "Near"},
            "secretRef": {"name": "store"},
        },
        tracking=[{"name": "ours", "wandb": {}, "secretRef": {"name": "wandb"}}, {"name": "board", "tensorBoard": {}}],
        pod={"env": [{"name": "AWS_REGION", "value": "eu-central-1"}]},
    )
    settings = settings_of(w)
    assert [(source.name, source.weight, source.format) for source in settings.data.all_sources] == [
        ("own", 1.0, "Auto"),
        ("web", 2.5, "Parquet"),
    ]
    assert (settings.data.validation_percent, settings.data.keep_together) == (20, "Near")
    assert settings.data.all_sources[1].location.path == "/scratch/downloads/s3/bucket/b-*.parquet"
    assert [(tracker.kind, tracker.project) for tracker in settings.tracking] == [
        ("WandB", "kubeformer"),
        ("TensorBoard", None),
    ]
    env = {variable["name"]: variable for variable in pod_of(w)["containers"][0]["env"]}
    secret = {"name": "store", "key": "AWS_SECRET_ACCESS_KEY", "optional": True}
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"] == {"secretKeyRef": secret}
    assert env["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "wandb"
    assert env["AWS_REGION"] == {"name": "AWS_REGION", "value": "eu-central-1"}
    assert "HF_TOKEN" not in env
    assert {volume["name"] for volume in pod_of(w)["volumes"]} >= {"claim-0", "scratch"}


def test_a_custom_image_gets_the_launcher_beside_its_own_files() -> None:
    custom = {"command": ["python", "train.py"], "code": {"uri": "configmap://code/train.py"}}
    code = config_map("code", **{"train.py": ""})
    own = pod_of(world(code, task={"custom": custom}, pod={"image": "registry.example.com/mine:1"}))
    (copy,) = own["initContainers"]
    assert copy["image"] != own["containers"][0]["image"] == "registry.example.com/mine:1"
    assert copy["command"][-2:] == ["kubeformer_runtime.launcher.copy", "/scratch/kubeformer"]
    assert {"name": "PYTHONPATH", "value": "/scratch/kubeformer"} in own["containers"][0]["env"]
    assert "/mnt/configmaps/code" in {mount["mountPath"] for mount in own["containers"][0]["volumeMounts"]}
    assert "initContainers" not in pod_of(world(code, task={"custom": custom}))
