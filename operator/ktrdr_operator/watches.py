"""State of the watches: open, without a start version yet, or forbidden.

`watch_session` reports the answers to kopf's requests. `resync` waits here until a full list is
due, and `health` receives the heartbeats of the watches.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

log: Final = logging.getLogger(__name__)


@dataclass
class Watches:
    """One entry for each resource and namespace, by the URL path of its collection."""

    heartbeat: Callable[[str], None]
    """Called with the path whenever a request was answered or a watch received data."""
    unpositioned: set[str] = field(default_factory=set)
    """Paths for which kopf has no version yet at which its watch begins."""
    forbidden: set[str] = field(default_factory=set)
    """Paths that the API server rejects (403 or 404)."""
    relisted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a watch began at a new version: it will never report earlier deletions."""
    positioned: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once every watch has a version to begin at, or is forbidden."""

    def on_data(self, path: str) -> None:
        """Note that a watch has received data."""
        self.heartbeat(path)

    def on_list(self, path: str) -> None:
        """Note that kopf has received the version at which its watch begins."""
        self.heartbeat(path)
        self._settle(path)
        self.relisted.set()

    def on_open(self, path: str) -> None:
        """Note that a watch is open."""
        self.heartbeat(path)
        if path in self.forbidden:
            self.forbidden.discard(path)
            log.info("Watch allowed again: %s", path)
            self.relisted.set()

    def on_forbidden(self, path: str, status: int) -> None:
        """Note that the API server rejected a list or watch; logged once until it is allowed."""
        self.heartbeat(path)
        if path not in self.forbidden:
            self.forbidden.add(path)
            log.warning(
                "Watch rejected: %s (HTTP %d), skipped until it is allowed; check that the "
                "namespace exists and contains the operator's RoleBinding",
                path,
                status,
            )
        self._settle(path)

    def _settle(self, path: str) -> None:
        self.unpositioned.discard(path)
        if not self.unpositioned:
            self.positioned.set()
