"""Heartbeat: a rank tells its launcher how it is doing. Training never waits for it and never fails by it.

One Progress a line goes over the launcher's Unix socket (environment KUBEFORMER_SOCKET). Without the variable
nothing is sent, so the trainer runs the same outside of a pod. A launcher that is gone or slow loses beats,
the next one connects again.
"""

import os
import socket
from collections.abc import Mapping

from kubeformer.contract import names
from kubeformer.contract.progress import Progress

_SEND_TIMEOUT_SECONDS = 0.2


class Heartbeat:
    """The rank's end of the socket. `socket_path` None: a no-op."""

    def __init__(self, socket_path: str | None) -> None:
        self._path = socket_path
        self._socket: socket.socket | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Heartbeat":
        """The socket that the launcher named, or a no-op."""
        return cls(environment.get(names.ENV_SOCKET) or None)

    def send(self, progress: Progress) -> bool:
        """Send one Progress. True if the launcher's socket took it; never raises for a launcher that is gone."""
        if self._path is None:
            return False
        line = progress.model_dump_json().encode() + b"\n"
        for attempt in (1, 2):  # a connection from before the launcher's restart fails once
            try:
                self._connected(self._path).sendall(line)
                return True
            except OSError:
                self.close()
                if attempt == 2:
                    return False
        return False

    def _connected(self, path: str) -> socket.socket:
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(_SEND_TIMEOUT_SECONDS)
            try:
                connection.connect(path)
            except OSError:
                connection.close()
                raise
            self._socket = connection
        return self._socket

    def close(self) -> None:
        """Close the connection; the next send opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
