"""Instants: seconds since the epoch, as the operator counts, to and from the RFC 3339 text that Kubernetes writes."""

from datetime import UTC, datetime

LATEST = 253402300799.0  # the end of the year 9999: later points in time cannot be written


def rfc3339(seconds: float) -> str:
    """The point in time as Kubernetes writes it, to the second: 2026-11-25T10:00:00Z; never before 1970."""
    return datetime.fromtimestamp(int(max(0.0, min(seconds, LATEST))), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(text: object) -> float | None:
    """Seconds since the epoch of an RFC 3339 text; None for anything else, because a status may hold anything."""
    if not isinstance(text, str):
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant.timestamp() if instant.tzinfo else instant.replace(tzinfo=UTC).timestamp()
