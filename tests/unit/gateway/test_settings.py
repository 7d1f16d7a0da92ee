"""The gateway is told from outside by environment variables."""

import pytest

from kubeformer.gateway.settings import GatewaySettings, SettingsError, load


def test_nothing_said_means_the_defaults_and_the_variables_of_services_are_not_ours() -> None:
    assert load({"KUBEFORMER_GATEWAY_PORT": "tcp://10.96.0.7:80", "HOME": "/"}) == GatewaySettings()


def test_what_is_said_is_read() -> None:
    assert load({"KUBEFORMER_GATEWAY_DRAIN_SECONDS": "5"}).drain_seconds == 5


def test_a_wrong_value_names_its_variable() -> None:
    with pytest.raises(SettingsError, match=r"KUBEFORMER_GATEWAY_DRAIN_SECONDS: .*not '-1'"):
        load({"KUBEFORMER_GATEWAY_DRAIN_SECONDS": "-1"})
