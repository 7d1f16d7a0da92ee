"""The one exception that reaches the person at the keyboard: a sentence that says what to do."""

from __future__ import annotations


class ClusterError(Exception):
    """Something the user can mend. Its text is a sentence that says what is wrong and what to do."""
