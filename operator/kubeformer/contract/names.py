"""Names, ports, paths and exit codes that more than one room relies on. Standard library only."""

from enum import IntEnum

GROUP = "kubeformer.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

# Labels on every child, and the annotation that names the settings a pod was started with.
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "kubeformer"
LABEL_COMPONENT = "app.kubernetes.io/component"  # worker | server
LABEL_TRAINING_JOB = f"{GROUP}/training-job"
LABEL_MODEL_DEPLOYMENT = f"{GROUP}/model-deployment"
LABEL_REVISION = f"{GROUP}/revision"
ANNOTATION_SETTINGS_HASH = f"{GROUP}/settings-hash"
ANNOTATION_SERVED_NAMES = f"{GROUP}/served-names"

# In the pod. The settings ConfigMap is mounted at SETTINGS_DIRECTORY; its one key is SETTINGS_KEY.
SETTINGS_DIRECTORY = "/etc/kubeformer"
SETTINGS_KEY = "settings.json"
SETTINGS_PATH = f"{SETTINGS_DIRECTORY}/{SETTINGS_KEY}"
CLAIMS_DIRECTORY = "/mnt/claims"  # pvc://NAME/PATH is CLAIMS_DIRECTORY/NAME/PATH
CONFIG_MAPS_DIRECTORY = "/mnt/configmaps"  # configmap://NAME/KEY is CONFIG_MAPS_DIRECTORY/NAME/KEY
SCRATCH_DIRECTORY = "/scratch"  # an emptyDir: the only writable place beside the claims
TERMINATION_MESSAGE_PATH = "/dev/termination-log"  # kubelet keeps 4,096 bytes of it

# Environment. Names that begin with these belong to Kubeformer and torchrun and are refused in pod.env.
ENV_PREFIX = "KUBEFORMER_"
ENV_SETTINGS = "KUBEFORMER_SETTINGS"  # path of the settings file
ENV_SOCKET = "KUBEFORMER_SOCKET"  # the launcher's Unix socket, to which ranks send their heartbeats
ENV_ATTEMPT = "KUBEFORMER_ATTEMPT"  # how often this pod has started the ranks, from 1
ENV_POD_NAME = "KUBEFORMER_POD_NAME"
ENV_JOB_COMPLETION_INDEX = "JOB_COMPLETION_INDEX"  # set by the Job controller; the node rank
RESERVED_ENV_PREFIXES = (ENV_PREFIX, "PET_", "TORCHELASTIC_")
RESERVED_ENV_NAMES = frozenset(
    {ENV_JOB_COMPLETION_INDEX, "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONSAFEPATH"}
)

# Ports.
PORT_PROGRESS = 8470  # launcher: GET /progress, /metrics, /health
PORT_RENDEZVOUS = 29400  # torchrun, on worker 0
PORT_SERVER = 8000  # the engine's OpenAI-compatible API, /health and /metrics
PORT_GATEWAY = 8080
PORT_OPERATOR_HEALTH = 8081  # /healthz, /readyz, /metrics

# A published model directory is Hugging Face's layout beside this file.
MODEL_CARD = "kubeformer.json"


class ExitCode(IntEnum):
    """Exit codes of the launcher, and so of a worker's container.

    Everything else (a signal, an out-of-memory kill, an exception of the machine) is a fault: it counts
    against recovery.maxRestarts, and the worker is started again.
    """

    SUCCEEDED = 0
    INVALID = 78  # EX_CONFIG: settings, data or model cannot work; starting again would not help
    STOPPED = 143  # a voluntary stop (SIGTERM) after a checkpoint; never counted as a fault


RESTARTS_EXHAUSTED = "RestartsExhausted"
"""The launcher's reason where a pod has used up recovery.maxRestarts by itself; conditions say MaxRestartsExceeded."""


class Reason:
    """Reasons that the runtime gives for INVALID; the operator copies them into conditions."""

    DATA_NOT_FOUND = "DataNotFound"
    DATA_INVALID = "DataInvalid"
    FIELD_NOT_FOUND = "FieldNotFound"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_INVALID = "ModelInvalid"
    SETTINGS_INVALID = "SettingsInvalid"
    TRAINING_DIVERGED = "TrainingDiverged"
    STORAGE_FULL = "StorageFull"  # no space for checkpoints
    STORAGE_LOST = "StorageLost"  # checkpoints cannot be written for another cause: a fault, never INVALID
