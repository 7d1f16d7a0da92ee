"""Brings what lies outside the cluster (s3://, https://, hf://) to the path at which a Location says it is found.

    fetch(location, "data", beat)      # then find_files(location, "data") as for any other place

pvc:// and configmap:// are mounted and need nothing. Credentials are the tools' own environment variables: AWS_* and
HF_TOKEN.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from kubeformer.contract.base import Location
from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.fetch_file import Progress, fetch_file
from kubeformer_runtime.data.prepared import Beat

REMOTE = ("s3", "https", "http", "hf")  # http for servers on a laptop; the API of a TrainingJob refuses it


def is_remote(location: Location) -> bool:
    """Whether a location has to be fetched."""
    return location.uri.partition("://")[0] in REMOTE


def fetch(
    location: Location,
    field: str,
    beat: Beat,
    progress: Callable[[Progress], None] = lambda _: None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Download the files of a remote location that are not here yet; nothing for other locations.

    `field` is its name in the spec, for messages. `location.path` must end with the URI behind its scheme. Raises
    DataError: not found, refused, no credentials, another size or checksum than promised, no space left.
    """
    scheme, _, rest = location.uri.partition("://")
    if scheme not in REMOTE:
        return
    if not location.path.endswith("/" + rest):
        raise DataError(Reason.SETTINGS_INVALID, f"{field}: the path {location.path} does not end with {rest}")
    root = Path(location.path.removesuffix("/" + rest))
    if scheme == "s3":
        from kubeformer_runtime.data.fetch_s3 import s3_files

        remotes = s3_files(location.uri, rest, root, field)
    elif scheme == "hf":
        from kubeformer_runtime.data.fetch_http import hub_files

        remotes = hub_files(location.uri, rest, root, field, environment)
    else:
        from kubeformer_runtime.data.fetch_http import web_file

        remotes = [web_file(location.uri, Path(location.path), field, location.digest)]
    for remote in remotes:
        fetch_file(remote, field, beat, progress)
