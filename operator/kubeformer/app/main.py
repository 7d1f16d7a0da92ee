"""The operator process: `KUBEFORMER_OPERATOR_SETTINGS=settings.json python -m kubeformer.app`.

Ends with 0 on SIGTERM or SIGINT, after the steps that have begun; with 2 when the settings or credentials cannot be
used; with 1 when something ended that should not have.
"""

import asyncio
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping

from kubeformer.app.operator import Operator
from kubeformer.app.settings import Settings, SettingsError, load
from kubeformer.cluster.credentials import CredentialsError
from kubeformer.cluster.transport import Transport
from kubeformer.control.worker import Controller
from kubeformer.kit.settings import OperatorSettings

log = logging.getLogger("kubeformer.app")

Controllers = Callable[[OperatorSettings], Mapping[str, Controller]]


def main(controllers: Controllers) -> int:
    """Runs the operator with the controllers that fit its settings; returns the exit code."""
    try:
        settings = load(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        stream=sys.stderr,
    )
    if settings.log_level != "debug":
        logging.getLogger("kopf").setLevel(logging.CRITICAL)  # what ends it is logged by the doorbell, in one line
    try:
        return asyncio.run(_run(settings, controllers, os.environ))
    except CredentialsError as error:
        print(error, file=sys.stderr)
        return 2


async def _run(settings: Settings, controllers: Controllers, environment: Mapping[str, str]) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    identity = f"{environment.get('HOSTNAME') or socket.gethostname()}_{random.SystemRandom().getrandbits(40):010x}"
    async with await Transport.from_environment(user_agent="kubeformer-operator") as transport:
        operator = Operator(settings, transport, controllers(settings.for_planners()), identity)
        try:
            await operator.run(stopping)
        except Exception:
            log.exception("the operator cannot go on")
            return 1
    log.info("stopped")
    return 0
