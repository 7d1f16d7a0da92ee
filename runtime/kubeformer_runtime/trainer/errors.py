"""How a run ends early: by a mistake that its owner has to mend, by a wish to stop, or by a peer's fault."""

from kubeformer.contract.names import Reason


class InvalidJob(Exception):
    """The job cannot work as it is written; starting again would not help (exit code 78)."""

    def __init__(self, message: str, reason: str = Reason.SETTINGS_INVALID) -> None:
        super().__init__(message)
        self.reason = reason


class Stopped(Exception):
    """A voluntary stop: SIGTERM came, and what had to be saved is saved (exit code 143)."""


class PeerFailed(Exception):
    """Another rank gave up; this one cannot go on without it and is started again."""


class StorageLost(Exception):
    """Checkpoints cannot be written where they belong; a fault of the machine, after which ranks are started again."""
