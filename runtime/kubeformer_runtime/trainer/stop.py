"""SIGTERM as a wish: noticed when it suits, which is at the end of a step."""

import signal
from types import FrameType

from kubeformer_runtime.trainer.errors import Stopped


class StopWish:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.wished = False

    def listen(self) -> None:
        """Takes SIGTERM from now on."""
        signal.signal(signal.SIGTERM, self._hear)

    def deafen(self) -> None:
        """Lets SIGTERM end the process at once: for waits that no signal handler can interrupt."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.wished:
            raise Stopped("asked to stop before training began")

    def check(self) -> None:
        """Raises Stopped where a stop was wished for and nothing has to be saved."""
        if self.wished:
            raise Stopped("asked to stop before training began")

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        self.wished = True
