"""Writes what is generated from the models: crds/, the chart's copy of them, its values.schema.json, docs/reference/.

Run `python -m kubeformer.api.crdgen` (or `make gen`) after a change of the models; with `--check` nothing is written
and the exit status says whether the files are as they should be. The one place of this room that touches files.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kubeformer.api.chartgen import HEADER, crd_template, values_schema, values_yaml
from kubeformer.api.crd import KINDS, crd
from kubeformer.api.docgen import reference

CHART = "helm/kubeformer"


class _Dumper(yaml.SafeDumper):
    """YAML with short lists of words on one line: easier to read, and half a schema's size is indentation."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.nodes.SequenceNode:
        """See yaml.SafeDumper."""
        words = all(isinstance(item, str) for item in sequence) and len(sequence) < 10
        return super().represent_sequence(tag, sequence, flow_style=words or flow_style)


def files() -> Mapping[str, str]:
    """Every generated file: its path below the repository, and its text."""
    found = {
        "docs/reference/api.md": reference(KINDS),
        f"{CHART}/values.yaml": values_yaml(),
        f"{CHART}/values.schema.json": values_schema(),
    }
    for kind in KINDS:
        text = HEADER + yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, width=180, allow_unicode=True)
        found[f"crds/{kind.file}"] = text
        found[f"{CHART}/templates/crds/{kind.file}"] = crd_template(crd(kind))
    return found


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which are not as they should be."""
    root = Path(__file__).resolve().parents[3]
    stale = {name: text for name, text in files().items() if _text(root / name) != text}
    if "--check" in arguments:
        for name in stale:
            print(f"{name} is not what the models generate; run `make gen` and commit the result", file=sys.stderr)
        return 1 if stale else 0
    for name, text in stale.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
        print(f"wrote {name}")
    return 0


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
