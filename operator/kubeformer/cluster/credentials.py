"""Credentials: where the API server is and how to speak to it, from a kubeconfig or from inside a pod.

Finding and refreshing them is left to the official client (exec plugins, OIDC, token files); everything else of it is
not used.
"""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

DEFAULT_KUBECONFIG = "~/.kube/config"
EXEC_REFRESH_SECONDS = 60.0


class CredentialsError(Exception):
    """There is no usable way to the API server; the message says what was looked for."""


@dataclass(slots=True)
class Credentials:
    """How to reach the API server. `authorization` is asked before every request, because tokens expire."""

    server: str
    ca_path: str | None
    certificate_path: str | None
    key_path: str | None
    verify: bool
    server_name: str | None
    proxy: str | None
    authorization: Callable[[], Awaitable[str | None]]  # the value of the header
    reload: Callable[[], Awaitable[None]]  # after a 401: read everything again

    def tls(self) -> ssl.SSLContext | None:
        """The context for this server, or None for plain HTTP."""
        if not self.server.startswith("https:"):
            return None
        context = ssl.create_default_context(cafile=self.ca_path)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_path:
            context.load_cert_chain(self.certificate_path, self.key_path)
        return context


async def find(environment: Mapping[str, str] = os.environ) -> Credentials:
    """Credentials from $KUBECONFIG, else from the pod's service account, else from ~/.kube/config.

    Raises CredentialsError when none of them can be used.
    """
    path = environment.get("KUBECONFIG")
    try:
        if path:
            return await _from_kubeconfig(path)
        if environment.get("KUBERNETES_SERVICE_HOST"):
            configuration = Configuration()
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return _from(configuration, lambda: _reload_in_cluster(configuration))
        if Path(DEFAULT_KUBECONFIG).expanduser().exists():
            return await _from_kubeconfig(DEFAULT_KUBECONFIG)
    except (ConfigException, OSError, ValueError) as error:
        raise CredentialsError(f"no credentials for the API server: {error}") from error
    raise CredentialsError(
        f"no credentials for the API server: set KUBECONFIG, run inside a pod, or put a file at {DEFAULT_KUBECONFIG}"
    )


async def _from_kubeconfig(path: str) -> Credentials:
    configuration = Configuration()
    await _load(path, configuration)
    loaded = asyncio.get_running_loop().time()

    async def again() -> None:
        nonlocal loaded
        now = asyncio.get_running_loop().time()
        if now - loaded >= 1.0:
            loaded = now
            await _load(path, configuration)

    return _from(configuration, again)


async def _load(path: str, configuration: Any) -> None:
    await load_kube_config(  # type: ignore[no-untyped-call]
        config_file=path, client_configuration=configuration, persist_config=False
    )


async def _reload_in_cluster(configuration: Any) -> None:
    load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]


def _from(configuration: Any, reload: Callable[[], Awaitable[None]]) -> Credentials:
    async def authorization() -> str | None:
        if "BearerToken" in configuration.api_key:
            token: str | None = await configuration.get_api_key_with_prefix("BearerToken")
            return token
        if configuration.username:
            basic: str = configuration.get_basic_auth_token()
            return basic
        return None

    return Credentials(
        server=configuration.host.rstrip("/"),
        ca_path=configuration.ssl_ca_cert,
        certificate_path=configuration.cert_file,
        key_path=configuration.key_file,
        verify=configuration.verify_ssl,
        server_name=configuration.tls_server_name,
        proxy=configuration.proxy,
        authorization=authorization,
        reload=reload,
    )
