"""What is wrong with a model directory, in words for its owner. Standard library only."""

from kubeformer.contract.names import Reason


class ModelError(Exception):
    """A model that cannot be used as it is; starting again would not help.

    `reason` is one of `kubeformer.contract.names.Reason`; the message names the file, what was found in it
    and what to do.
    """

    def __init__(self, message: str, reason: str = Reason.MODEL_INVALID) -> None:
        super().__init__(message)
        self.reason = reason
