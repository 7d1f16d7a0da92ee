"""GatewaySettings: what the gateway is told from outside, in environment variables (KUBEFORMER_GATEWAY_...)."""

from collections.abc import Mapping

from pydantic import Field, ValidationError

from kubeformer.contract.base import Document
from kubeformer.contract.names import PORT_GATEWAY

PREFIX = "KUBEFORMER_GATEWAY_"


class SettingsError(Exception):
    """The settings cannot be used; the message says which variable and what to do."""


class GatewaySettings(Document):
    """KUBEFORMER_GATEWAY_LISTEN_PORT, _DRAIN_SECONDS, _QUIET_SECONDS.

    Not _PORT: Kubernetes sets that one to an address where a Service is called kubeformer-gateway.
    """

    listen_port: int = Field(default=PORT_GATEWAY, ge=0, le=65535)  # 0: any free one
    drain_seconds: float = Field(default=25, ge=0, le=3600)  # for requests under way, after SIGTERM
    quiet_seconds: float = Field(
        default=3, ge=0, le=60
    )  # between not being ready and closing: endpoints take that long


def load(environment: Mapping[str, str]) -> GatewaySettings:
    """The settings from the environment. Raises SettingsError for an unknown or ill-typed variable."""
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    # Kubernetes itself sets KUBEFORMER_GATEWAY_SERVICE_HOST and its kin where a Service is called kubeformer-gateway.
    known = {name: value for name, value in given.items() if name in GatewaySettings.model_fields}
    try:
        return GatewaySettings.model_validate(known)
    except ValidationError as error:
        wrong = error.errors()[0]
        variable = PREFIX + str(wrong["loc"][0]).upper()
        raise SettingsError(f"{variable}: {wrong['msg']}, not {wrong['input']!r}") from error
