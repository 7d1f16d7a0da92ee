"""The catalog forgets nothing that exists and keeps nothing that is gone."""

from typing import Any

from kubeformer.gateway.catalog import Catalog
from kubeformer.kit.view import Key


def deployment(name: str) -> dict[str, Any]:
    """A ModelDeployment as a watch brings it."""
    return {"metadata": {"name": name, "namespace": "team"}, "spec": {"model": {"uri": "pvc://m/m"}}}


def served(catalog: Catalog) -> list[str]:
    """The short names in the table."""
    return [name for name, _ in catalog.table.served()]


def test_what_the_watch_brings_and_takes_is_in_the_table_at_once() -> None:
    catalog = Catalog()
    catalog.changed("ModelDeployment", deployment("a"))
    catalog.changed("ModelDeployment", deployment("b"))
    assert served(catalog) == ["a", "b"]
    catalog.gone(Key("ModelDeployment", "team", "a"), 7)
    assert served(catalog) == ["b"]


def test_what_was_deleted_while_the_watch_was_broken_goes_with_the_next_list() -> None:
    catalog = Catalog()
    for name in "abc":
        catalog.changed("ModelDeployment", deployment(name))
    assert catalog.listed("ModelDeployment", [Key("ModelDeployment", "team", "b")], 9) == 2
    assert served(catalog) == ["b"]


def test_the_table_is_the_same_object_until_there_is_news() -> None:
    catalog = Catalog()
    catalog.changed("ModelDeployment", deployment("a"))
    assert catalog.table is catalog.table
