"""What this container may use: CPUs, memory, a network interface. All of it read, none of it assumed."""

import fcntl
import os
import socket
import struct
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
SIOCGIFADDR = 0x8915  # Linux: ask an interface for its IPv4 address


def cpus(root: Path = CGROUP) -> float:
    """CPUs that the container may use: its cgroup's quota (version 2 or 1), at most those it may run on."""
    present = float(len(os.sched_getaffinity(0)))
    quota, period = _words(root / "cpu.max", 2) or (
        *(_words(root / "cpu" / "cpu.cfs_quota_us", 1) or ("-1",)),
        *(_words(root / "cpu" / "cpu.cfs_period_us", 1) or ("100000",)),
    )
    if quota == "max" or int(quota) <= 0:
        return present
    return min(present, int(quota) / int(period))


def threads(processes: int, root: Path = CGROUP) -> int:
    """Threads for one of `processes` ranks in this container: whole CPUs, at least one."""
    return max(1, int(cpus(root) / processes))


def memory_bytes(root: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that the container may use: its cgroup's limit, at most what the machine has."""
    total = next(
        int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemTotal")
    )
    words = _words(root / "memory.max", 1) or _words(root / "memory" / "memory.limit_in_bytes", 1) or ("max",)
    return total if words[0] == "max" else min(total, int(words[0]))


def interface_towards(host: str, port: int) -> str | None:
    """Name of the network interface from which `host` is reached ("lo", "eth0"), None where that is unclear.

    Gloo would otherwise look up this machine's own name, which need not lead to an address that peers reach.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # a datagram socket sends nothing by connecting
            address = probe.getsockname()[0]
            if address.startswith("127."):
                return "lo"
            for _, name in socket.if_nameindex():
                if _address(probe, name) == address:
                    return name
    except OSError:
        return None
    return None


def _address(probe: socket.socket, interface: str) -> str | None:
    try:
        answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
    except OSError:
        return None  # an interface without an IPv4 address
    return socket.inet_ntoa(answer[20:24])


def _words(path: Path, count: int) -> tuple[str, ...] | None:
    try:
        words = tuple(path.read_text().split())
    except OSError:
        return None
    return words if len(words) == count else None
