"""Renders the chart with the local cluster's helm, for the tests beside it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localcluster.binaries import PARTS, folder_of
from localcluster.layout import layout_from

CHART = Path(__file__).resolve().parents[2] / "helm" / "kubeformer"
IMAGES = ("images.operator=registry.example.com/operator:1", "images.runtime=registry.example.com/runtime:1")
NAMESPACE = "kubeformer-system"

Object = dict[str, Any]


class RefusedError(Exception):
    """helm refuses the values; the message is what it says."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the chart makes, in order."""

    objects: tuple[Object, ...]

    def all(self, kind: str) -> list[Object]:
        """Every object of the kind."""
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str) -> Object:
        """The one object of the kind and name."""
        (found,) = (each for each in self.all(kind) if each["metadata"]["name"] == name)
        return found


def helm() -> str:
    """The path of helm. Raises FileNotFoundError, saying how to get it."""
    path = folder_of(PARTS["helm"], layout_from(os.environ, Path.home()).binaries) / "helm"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; `python -m localcluster binaries` brings it")
    return str(path)


def text(*values: str, images: bool = True) -> str:
    """The chart's manifests with values given as NAME=VALUE (JSON). Raises RefusedError."""
    sets = [part for value in values for part in ("--set-json", value)]
    if images:
        sets += [part for value in IMAGES for part in ("--set", value)]
    command = [helm(), "template", "kubeformer", str(CHART), "--namespace", NAMESPACE, *sets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RefusedError(done.stderr)
    return done.stdout


def render(*values: str, images: bool = True) -> Rendered:
    """The objects that the chart makes with values given as NAME=VALUE (JSON). Raises RefusedError."""
    return Rendered(tuple(each for each in yaml.safe_load_all(text(*values, images=images)) if each))
