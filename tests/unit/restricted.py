"""Pod Security's level `restricted`, as far as it concerns what we render, written down from the standard itself."""

from typing import Any

ALLOWED_VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)


def violations(pod: dict[str, Any]) -> list[str]:
    """What the level would refuse about a pod's spec; beyond it, that nothing is writable and no token is there."""
    found = []
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) == 0:
        found.append("runs as root")
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("no seccomp profile")
    if any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("shares the host's namespaces")
    if pod.get("automountServiceAccountToken") is not False:
        found.append("gets an API token")
    for volume in pod.get("volumes", []):
        found += [f"volume {kind}" for kind in volume if kind != "name" and kind not in ALLOWED_VOLUMES]
    names = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        its = container.get("securityContext", {})
        if its.get("allowPrivilegeEscalation") is not False:
            found.append("may escalate")
        if "ALL" not in its.get("capabilities", {}).get("drop", []) or its.get("capabilities", {}).get("add"):
            found.append("keeps capabilities")
        if its.get("readOnlyRootFilesystem") is not True:
            found.append("can write to its image")
        if its.get("privileged") or any(port.get("hostPort") for port in container.get("ports", [])):
            found.append("is privileged")
        found += [
            f"mounts {m['name']}, which is not there" for m in container["volumeMounts"] if m["name"] not in names
        ]
    return found
