"""A real S3 server, versitygw over a directory, on loopback: built from its Go module at the first use, then cached.

Where Go is missing, starting fails with the sentence that says what to install; nothing is passed over.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from localcluster import binaries
from localcluster.components import Cluster
from localcluster.layout import Layout
from localcluster.report import Report

KEY, SECRET = "tester", "tester-secret"


def program() -> str:
    """The server's path. Raises ClusterError."""
    cache = os.environ.get("KUBEFORMER_CACHE") or Path.home() / ".cache" / "kubeformer"
    cluster = Cluster(Layout(Path(cache)), "local", os.environ, Report())
    binaries.ensure(cluster, "versitygw")
    return binaries.program(cluster, "versitygw")


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a pod's environment has to say to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """boto3's."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """Serve S3 from a directory of its own."""
    for name in ("data", "metadata"):
        (directory / name).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program(), "--port", f"127.0.0.1:{port}", "--access", KEY, "--secret", SECRET, "--quiet"]
    command += ["posix", "--sidecar", str(directory / "metadata"), str(directory / "data")]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"versitygw does not answer: {(directory / 'log').read_text()}") from None
                    time.sleep(0.05)
            yield S3Server(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(30)
