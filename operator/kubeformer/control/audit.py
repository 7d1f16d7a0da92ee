"""Audit: compares what the store believes with what the API server lists, and mends the difference.

A watch that lists anew (after 410 Gone, or a restart of kopf) does not tell of deletions in the gap, and a
stream can die without a word. So every now and then uid and version of everything are listed (metadata only). What
differs, and still differs after a moment in which the watch may catch up, is read live and told as
news. In a healthy operator the count of repairs stays at zero.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from kubeformer.control.news import News
from kubeformer.control.ports import Identity, Meter, Reader
from kubeformer.control.store import Store
from kubeformer.kit.view import Key

log = logging.getLogger(__name__)


def differences(known: Mapping[Key, Identity], listed: Mapping[Key, Identity], resource_version: int) -> frozenset[Key]:
    """The keys about which `known` is behind the list that was read at the version.

    Missing and outdated objects differ; so do objects that the list lacks, unless the store knows of a version
    after the list's.
    """
    behind = {
        key
        for key, identity in listed.items()
        if key not in known or known[key].resource_version < identity.resource_version
    }
    gone = {
        key for key, identity in known.items() if key not in listed and identity.resource_version <= resource_version
    }
    return frozenset(behind | gone)


@dataclass(frozen=True, slots=True)
class Auditor:
    """See the module's docstring. `grace_seconds` is what the watch gets to catch up."""

    store: Store
    news: News
    reader: Reader
    meter: Meter
    grace_seconds: float = 5.0

    async def audit(self, kind: str) -> int:
        """One audit of a kind; returns how many objects it had to mend. Raises ReadError."""
        listed, version = await self.reader.identities(kind)
        suspects = differences(self.store.identities(kind), listed, version)
        if not suspects:
            return 0
        await asyncio.sleep(self.grace_seconds)
        repairs = 0
        for key in sorted(suspects & differences(self.store.identities(kind), listed, version), key=str):
            known = self.store.identity(key)
            body = await self.reader.read(key)
            if body is not None:
                repaired = self.news.changed(kind, body)
            else:
                repaired = known is not None and self.news.gone(key, max(known.resource_version, version))
            if repaired:
                repairs += 1
                self.meter.repaired(kind)
                log.warning("%s: the watch had not told of its last change; mended by the audit", key)
        return repairs
