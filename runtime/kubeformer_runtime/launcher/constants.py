"""What the launcher shares with the rest of Kubeformer. Standard library only, so that the launcher can be
copied into any image; a test asserts that everything here equals `kubeformer.contract`.
"""

ENV_SETTINGS = "KUBEFORMER_SETTINGS"
ENV_SOCKET = "KUBEFORMER_SOCKET"
ENV_ATTEMPT = "KUBEFORMER_ATTEMPT"
ENV_JOB_COMPLETION_INDEX = "JOB_COMPLETION_INDEX"
SETTINGS_PATH = "/etc/kubeformer/settings.json"
SCRATCH_DIRECTORY = "/scratch"
TERMINATION_MESSAGE_PATH = "/dev/termination-log"
TERMINATION_MESSAGE_BYTES = 4096
PORT_PROGRESS = 8470
PORT_RENDEZVOUS = 29400

SUCCEEDED = 0
FAULT = 1
INVALID = 78
STOPPED = 143

REASON_SETTINGS_INVALID = "SettingsInvalid"
REASON_RESTARTS_EXHAUSTED = "RestartsExhausted"

# The fields of Progress, in its order. Others are dropped, because the operator refuses unknown ones.
PROGRESS_FIELDS = (
    "phase",
    "attempt",
    "rank",
    "step",
    "totalSteps",
    "epoch",
    "totalEpochs",
    "metrics",
    "bestMetrics",
    "bestStep",
    "tokensPerSecond",
    "epochs",
    "checkpoint",
    "artifact",
    "resolved",
    "failure",
    "restarts",
    "heartbeatTime",
    "startTime",
)
PHASES = (
    "Starting",
    "Preparing",
    "Training",
    "Evaluating",
    "Checkpointing",
    "Publishing",
    "Succeeded",
    "Stopped",
    "Failed",
)
