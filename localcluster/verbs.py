"""The verbs of the core: up, down, status, kubeconfig, binaries, kill, restart."""

from __future__ import annotations

from localcluster.components import Verb

VERBS: tuple[Verb, ...] = ()
