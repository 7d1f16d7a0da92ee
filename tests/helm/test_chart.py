"""The chart: safe by default, no more rights than needed, closed to unknown values, and complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from kubeformer.api.chart_values import ChartValues
from kubeformer.api.crd import KINDS, crd
from kubeformer.app.operator import CHILDREN
from kubeformer.app.settings import Settings
from kubeformer.cluster.resources import RESOURCES
from kubeformer.contract import names
from tests.helm.render import CHART, Object, RefusedError, Rendered, render, text


@pytest.fixture(scope="module")
def chart() -> Rendered:
    """The chart with nothing but the two images given."""
    return render()


def pods(chart: Rendered) -> Iterator[tuple[str, Object]]:
    """Every pod that the chart makes: its name and its spec."""
    for deployment in chart.all("Deployment"):
        yield deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]
    for pod in chart.all("Pod"):
        yield pod["metadata"]["name"], pod["spec"]


def rules(chart: Rendered, name: str) -> list[Object]:
    """What a service account of the chart may do."""
    return [rule for kind in ("ClusterRole", "Role") for role in chart.all(kind) for rule in role["rules"]
            if role["metadata"]["name"] == name]  # fmt: skip


def test_every_pod_meets_the_restricted_standard_and_cannot_write_its_root_file_system(chart: Rendered) -> None:
    names_of_pods = []
    for name, spec in pods(chart):
        names_of_pods.append(name)
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == 65532, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert all(volume.keys() <= {"name", "configMap", "emptyDir"} for volume in spec.get("volumes", ())), name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name
    assert sorted(names_of_pods) == ["kubeformer-gateway", "kubeformer-operator", "kubeformer-test"]


def test_nobody_may_read_secrets_or_do_everything(chart: Rendered) -> None:
    for role in chart.all("ClusterRole") + chart.all("Role"):
        for rule in role["rules"]:
            assert "secrets" not in rule["resources"], role["metadata"]["name"]
            assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"], role["metadata"]["name"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), role["metadata"]["name"]


def test_the_operator_writes_of_our_kinds_nothing_but_status_and_finalizers(chart: Rendered) -> None:
    verbs: dict[str, set[str]] = {}
    for rule in rules(chart, "kubeformer-operator"):
        for resource in rule["resources"]:
            verbs.setdefault(resource, set()).update(rule["verbs"])
    assert not verbs["modeldeployments"] & {"create", "update", "delete"}
    assert not verbs["trainingjobs"] & {"create", "update"}
    assert verbs["trainingjobs/status"] == verbs["modeldeployments/status"] == {"patch"}
    assert verbs["pods"] == verbs["nodes"] == {"get", "list", "watch"}
    assert "delete" not in verbs["persistentvolumeclaims"], "a claim may hold what somebody else needs"


def test_the_operator_may_do_to_leases_what_leading_takes_and_only_in_its_own_namespace(chart: Rendered) -> None:
    role = chart.one("Role", "kubeformer-operator")
    assert role["metadata"]["namespace"] == "kubeformer-system"
    create, use = role["rules"]
    assert (create["resources"], create["verbs"]) == (["leases"], ["create"])
    assert (use["resourceNames"], use["verbs"]) == (["kubeformer-operator"], ["get", "update"])
    assert not any("leases" in rule["resources"] for rule in chart.one("ClusterRole", "kubeformer-operator")["rules"])


def test_the_gateway_may_only_read(chart: Rendered) -> None:
    found = rules(chart, "kubeformer-gateway")
    assert {resource for rule in found for resource in rule["resources"]} == {"modeldeployments", "endpointslices"}
    assert {verb for rule in found for verb in rule["verbs"]} == {"get", "list", "watch"}


def test_every_kind_that_the_operator_watches_is_granted(chart: Rendered) -> None:
    granted = {
        (group, resource)
        for rule in rules(chart, "kubeformer-operator")
        if {"get", "list", "watch"} <= set(rule["verbs"])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    for kind in (*CHILDREN, "TrainingJob", "ModelDeployment"):
        group = RESOURCES[kind].api_version.rpartition("/")[0]
        assert (group, RESOURCES[kind].plural) in granted, kind


def test_pod_groups_are_granted_only_where_gangs_are_on() -> None:
    def granted(chart: Rendered) -> bool:
        return any("podgroups" in rule["resources"] for rule in rules(chart, "kubeformer-operator"))

    assert granted(render("gangs=true"))
    assert not granted(render("gangs=false"))


@pytest.mark.parametrize(
    "value", ["foo=1", "operator.foo=1", "images.foo=1", "gateway.service.foo=1", "operator.resources.foo={}"]
)
def test_an_unknown_value_is_refused(value: str) -> None:
    with pytest.raises(RefusedError, match="additional properties 'foo' not allowed"):
        render(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('gateway.service.type="ExternalName"', "gateway/service/type"),
        ("operator.replicas=0", "minimum"),
        ('operator.replicas="1"', "integer"),
        ('storage.uri="s3://bucket"', "pattern"),
        ("gateway.service.port=70000", "maximum"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(value: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        render(value)


def test_without_images_the_chart_says_what_is_missing() -> None:
    with pytest.raises(RefusedError, match="missing properties 'operator', 'runtime'"):
        render(images=False)


def test_the_crds_come_with_the_chart_and_stay_when_it_goes(chart: Rendered) -> None:
    found = {each["metadata"]["name"]: each for each in chart.all("CustomResourceDefinition")}
    for kind in KINDS:
        expected = crd(kind)
        ours = found[expected["metadata"]["name"]]
        assert ours["spec"] == expected["spec"]
        assert ours["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not render("crds.enabled=false").all("CustomResourceDefinition")


def settings(chart: Rendered) -> Any:
    """The operator's settings file."""
    return json.loads(chart.one("ConfigMap", "kubeformer-operator")["data"]["settings.json"])


def test_the_operator_accepts_the_settings_file_that_the_chart_writes(chart: Rendered) -> None:
    parsed = Settings.model_validate(settings(chart))
    assert parsed.worker_image == parsed.server_image == "registry.example.com/runtime:1"
    assert parsed.storage.uri == "pvc://kubeformer"
    assert parsed.gateway_url == "http://kubeformer-gateway.kubeformer-system"
    assert parsed.leader_election.namespace == "kubeformer-system"
    assert parsed.health_port == names.PORT_OPERATOR_HEALTH


def test_values_reach_the_operator() -> None:
    given = render(
        'storage={"uri":"pvc://shared/models","storageClassName":"nfs","size":"1Ti"}',
        'gateway.url="https://models.example.com"',
        "gangs=true",
        'workers.requests.cpu="2"',
        'operator.logLevel="debug"',
        "operator.writesPerSecond=7",
        'images.pullSecrets=["mine"]',
        "cleanup.tries=9",
    )
    parsed = Settings.model_validate(settings(given))
    assert (parsed.storage.uri, parsed.storage.storage_class_name, parsed.storage.size) == (
        "pvc://shared/models",
        "nfs",
        "1Ti",
    )
    assert parsed.gateway_url == "https://models.example.com"
    assert parsed.gangs
    assert parsed.worker_defaults.resources.requests == {"cpu": "2", "memory": "1Gi"}
    assert parsed.log_level == "debug"
    assert (parsed.writes_per_second, parsed.write_burst) == (7, 14)
    assert parsed.image_pull_secrets == ("mine",)
    assert parsed.cleanup.tries == 9


def test_changed_settings_bring_a_new_operator_pod(chart: Rendered) -> None:
    def stamp(rendered: Rendered) -> str:
        template = rendered.one("Deployment", "kubeformer-operator")["spec"]["template"]
        return str(template["metadata"]["annotations"]["kubeformer.dev/settings-hash"])

    assert stamp(chart) != stamp(render('operator.logLevel="debug"'))


def test_processes_are_probed_where_they_answer(chart: Rendered) -> None:
    (operator,) = chart.one("Deployment", "kubeformer-operator")["spec"]["template"]["spec"]["containers"]
    (gateway,) = chart.one("Deployment", "kubeformer-gateway")["spec"]["template"]["spec"]["containers"]
    assert operator["ports"] == [{"name": "health", "containerPort": names.PORT_OPERATOR_HEALTH}]
    assert operator["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert operator["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert gateway["ports"] == [{"name": "http", "containerPort": names.PORT_GATEWAY}]
    assert gateway["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert operator["command"] == ["python", "-m", "kubeformer.app"]
    assert gateway["command"] == ["python", "-m", "kubeformer.gateway"]


def test_services_and_budgets_select_the_pods_they_are_for(chart: Rendered) -> None:
    for name in ("kubeformer-operator", "kubeformer-gateway"):
        deployment = chart.one("Deployment", name)["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        for selector in (
            deployment["selector"]["matchLabels"],
            chart.one("Service", name)["spec"]["selector"],
            chart.one("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"],
            chart.one("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"],
        ):
            assert selector.items() <= labels.items(), name
    assert chart.one("Service", "kubeformer-gateway")["spec"]["ports"] == [
        {"name": "http", "port": 80, "targetPort": "http"}
    ]


def test_policies_let_through_what_is_needed_and_name_workers_and_servers(chart: Rendered) -> None:
    def reached(name: str) -> dict[int, Object]:
        rules_out = chart.one("NetworkPolicy", name)["spec"]["egress"]
        return {port["port"]: rule.get("to", [{}])[0] for rule in rules_out for port in rule["ports"]}

    operator, gateway = reached("kubeformer-operator"), reached("kubeformer-gateway")
    assert operator.keys() == {443, 6443, 53, names.PORT_PROGRESS}
    assert gateway.keys() == {443, 6443, 53, names.PORT_SERVER}
    for to, component in ((operator[names.PORT_PROGRESS], "worker"), (gateway[names.PORT_SERVER], "server")):
        assert to["podSelector"]["matchLabels"] == {
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
            names.LABEL_COMPONENT: component,
        }
    assert not render("networkPolicy.enabled=false").all("NetworkPolicy")


def test_placement_reaches_both_processes() -> None:
    for name in ("operator", "gateway"):
        given = render(
            f'{name}.priorityClassName="system-cluster-critical"',
            f'{name}.nodeSelector={{"pool":"system"}}',
            f'{name}.tolerations=[{{"key":"system","operator":"Exists"}}]',
            f"{name}.replicas=3",
        )
        deployment = given.one("Deployment", f"kubeformer-{name}")["spec"]
        spec = deployment["template"]["spec"]
        assert deployment["replicas"] == 3
        assert spec["priorityClassName"] == "system-cluster-critical"
        assert spec["nodeSelector"] == {"pool": "system"}
        assert spec["tolerations"] == [{"key": "system", "operator": "Exists"}]


def test_helm_test_asks_operator_and_gateway(chart: Rendered) -> None:
    pod = chart.one("Pod", "kubeformer-test")
    (program,) = pod["spec"]["containers"][0]["args"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "http://kubeformer-operator:8081/healthz" in program
    assert "http://kubeformer-gateway:80/v1/models" in program
    compile(program, "helm-test", "exec")


def test_the_same_values_give_the_same_bytes() -> None:
    assert text() == text()


def test_the_defaults_in_values_yaml_are_those_of_the_model() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    images = {"operator": "a", "runtime": "b"}
    values["images"] |= images
    assert ChartValues.parse(values) == ChartValues.parse({"images": images})
    assert values.keys() | {"global"} == {field.alias for field in ChartValues.model_fields.values()}
