"""DataError: why data cannot be trained on, in words for its owner, and the reason for the job's condition."""


class DataError(Exception):
    """Data that starting again would not mend. The trainer turns it into exit code 78 (INVALID).

    `reason` is one of `kubeformer.contract.names.Reason`; the message names the file, line and field, what
    was found there and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
