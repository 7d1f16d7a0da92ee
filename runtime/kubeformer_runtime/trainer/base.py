"""Weights to go on from that lie outside of the cluster: fetched once a pod, before anything looks at them."""

import time
from pathlib import Path

from kubeformer.contract.job import JobSettings
from kubeformer_runtime.data.fetch import fetch, is_remote
from kubeformer_runtime.data.prepared import Beat

_WAIT_SECONDS = 0.5


def fetch_base(settings: JobSettings, beat: Beat, local_rank: int) -> None:
    """Returns when the base is at its path: the pod's first rank fetches it, the others wait. Raises DataError."""
    base = settings.model.base
    if base is None or not is_remote(base):
        return
    ready = Path(f"{base.path}.ready")
    if local_rank == 0 and not ready.exists():
        fetch(base, "model", beat)
        ready.touch()
    while not ready.exists():
        beat()
        time.sleep(_WAIT_SECONDS)
