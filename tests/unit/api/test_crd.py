"""The CRDs: structural, bounded, small, and what is committed is what the models generate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BaseModel, Field

from kubeformer.api.chartgen import ChartError, crd_template, values_schema
from kubeformer.api.crd import KINDS, Kind, SchemaError, crd, root, structural
from kubeformer.api.crdgen import files, main
from kubeformer.api.model_deployment import ModelDeployment
from kubeformer.api.rules import VALIDATIONS, Model
from kubeformer.api.training_job import TrainingJob

BY_NAME = {kind.name: kind for kind in KINDS}
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def generated() -> Mapping[str, str]:
    """Every generated file, by path; made once, as writing YAML takes a second."""
    return files()


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a structural schema, with its path."""
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from nodes(member, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}.{key}")


def spec_nodes(kind: Kind) -> list[tuple[str, dict[str, Any]]]:
    """Every node of the kind's spec and status."""
    properties = root(kind)["properties"]
    return [*nodes(properties["spec"], "spec"), *nodes(properties["status"], "status")]


@each_kind
def test_nothing_is_said_that_a_structural_schema_cannot_hold(kind: Kind) -> None:
    forbidden = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title", "discriminator", "uniqueItems"}
    for path, node in spec_nodes(kind):
        assert not forbidden & node.keys(), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert not isinstance(node.get("exclusiveMinimum", True), int) or node.get("exclusiveMinimum", True) is True
        assert "type" in node or "x-kubernetes-int-or-string" in node, path


@each_kind
def test_everything_is_bounded_and_described(kind: Kind) -> None:
    for path, node in spec_nodes(kind):
        match node.get("type"):
            case "string":
                assert "maxLength" in node or "enum" in node, path
            case "array":
                assert "maxItems" in node, path
                assert node["x-kubernetes-list-type"] in ("map", "set", "atomic"), path
            case "integer" | "number":
                assert {"minimum", "maximum", "format"} <= node.keys(), path
            case "object":
                assert "properties" in node or "maxProperties" in node, path
        if not path.endswith((".items", ".additionalProperties")):
            assert node["description"], path


@each_kind
def test_each_crd_is_small_enough_for_every_way_to_apply_it(kind: Kind, generated: Mapping[str, str]) -> None:
    assert len(generated[f"crds/{kind.file}"].encode()) < 100_000


@each_kind
def test_the_status_has_no_defaults_so_that_it_is_stored_as_written(kind: Kind) -> None:
    assert not [path for path, node in nodes(root(kind)["properties"]["status"]) if "default" in node]


@each_kind
def test_members_that_are_variants_carry_their_rule(kind: Kind) -> None:
    rules = [rule["message"] for _, node in spec_nodes(kind) for rule in node.get(VALIDATIONS, ())]
    assert any("give exactly one of" in message for message in rules)
    assert all(len(message) < 300 and "\n" not in message for message in rules)


def test_names_columns_and_subresources_are_those_of_the_api() -> None:
    job, deployment = (crd(BY_NAME[name])["spec"] for name in ("TrainingJob", "ModelDeployment"))
    assert (job["names"]["shortNames"], deployment["names"]["shortNames"]) == (["tj"], ["mdep"])
    assert job["names"]["categories"] == deployment["names"]["categories"] == ["kubeformer"]

    def columns(spec: dict[str, Any], wide: bool) -> list[str]:
        found = spec["versions"][0]["additionalPrinterColumns"]
        return [column["name"].upper() for column in found if ("priority" in column) == wide]

    assert columns(job, False) == ["STATUS", "PROGRESS", "LOSS", "ETA", "WORKERS", "RESTARTS", "AGE"]
    assert "CHECKPOINT" in columns(job, True)
    assert columns(deployment, False) == ["READY", "REASON", "REPLICAS", "ENGINE", "MODEL", "REVISION", "URL", "AGE"]
    assert job["versions"][0]["subresources"] == {"status": {}}
    assert deployment["versions"][0]["subresources"]["scale"]["specReplicasPath"] == ".spec.replicas"


@each_kind
def test_every_column_reads_a_field_that_the_status_has(kind: Kind) -> None:
    status = root(kind)["properties"]["status"]
    for column in kind.columns:
        if not column.path.startswith(".status."):
            continue
        node = status
        # Filters and slices pick an item of a list: [?(@.type=="Ready")], [-1:].
        for step in column.path.removeprefix(".status.").replace("[?(@.", "[").split("."):
            name, _, condition = step.partition("[")
            node = node["properties"][name]
            if condition:
                node = node["items"]
        assert node["type"] == column.type, column


def test_a_default_that_a_rule_looks_at_is_given_in_full() -> None:
    rollout = root(BY_NAME["ModelDeployment"])["properties"]["spec"]["properties"]["rollout"]
    assert rollout["default"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_what_is_committed_is_what_the_models_generate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_the_files_are_yaml_of_the_definitions(generated: Mapping[str, str]) -> None:
    for kind in KINDS:
        assert yaml.load(generated[f"crds/{kind.file}"], Loader=yaml.CSafeLoader) == crd(kind)


def test_the_reference_has_every_field_every_condition_and_every_reason(generated: Mapping[str, str]) -> None:
    page = generated["docs/reference/api.md"]
    for kind in KINDS:
        for path, _ in spec_nodes(kind):
            if "." in path and not path.endswith((".items", ".additionalProperties")):
                assert f"`{path.replace('.items', '[]')}`" in page
    for word in ("Succeeded", "DataNotFound", "ModelReady", "RolloutStuck", "fieldValidation=Strict"):
        assert word in page


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a model made up for a test."""
    raw = model.model_json_schema(by_alias=True)
    return structural(raw, raw.get("$defs", {}), "spec")


def test_an_open_bound_is_refused_because_the_cost_of_rules_would_explode() -> None:
    class Open(Model):
        """Test."""

        text: str
        """Test."""

    with pytest.raises(SchemaError, match=r"spec\.text: has no maxLength"):
        schema_of(Open)


def test_a_field_without_a_description_is_refused() -> None:
    class Silent(Model):
        """Test."""

        count: Annotated[int, Field(ge=0, le=1)]

    with pytest.raises(SchemaError, match=r"spec\.count: has no description"):
        schema_of(Silent)


def test_a_union_is_refused_in_favour_of_one_member_a_variant() -> None:
    class Either(Model):
        """Test."""

        value: TrainingJob | ModelDeployment
        """Test."""

    with pytest.raises(SchemaError, match=r"spec\.value: a union"):
        schema_of(Either)


def test_an_exclusive_bound_is_a_boolean_beside_the_bound() -> None:
    class Positive(Model):
        """Test."""

        rate: Annotated[float, Field(gt=0, le=1)]
        """Test."""

    rate = schema_of(Positive)["properties"]["rate"]
    assert (rate["minimum"], rate["exclusiveMinimum"], rate["maximum"]) == (0, True, 1)


def test_a_template_of_the_chart_cannot_hold_what_helm_would_take_for_its_own() -> None:
    with pytest.raises(ChartError, match="Helm takes for a template"):
        crd_template({"metadata": {"name": "x"}, "spec": "{{ .Values }}"})
    assert '"x-kubernetes' not in values_schema()
