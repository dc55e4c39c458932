"""State of the watches: which are open, which lost their place, which are forbidden.

`watch_session` reports what happens to kopf's requests; `resync` waits here until a full list is
due, and `health` learns that the watches are alive.
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
    """Called with the path whenever a watch received something, or was answered."""
    unpositioned: set[str] = field(default_factory=set)
    """Paths whose position in the stream of events kopf has never learned."""
    forbidden: set[str] = field(default_factory=set)
    """Paths that the API server refuses to serve."""
    relisted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a watch began at a new place: what was deleted meanwhile, it will never report."""
    positioned: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once every watch has a place to begin at, or is forbidden."""

    def on_data(self, path: str) -> None:
        """Note that a watch has received something."""
        self.heartbeat(path)

    def on_list(self, path: str) -> None:
        """Note that kopf has learned from a list where its watch begins."""
        self.heartbeat(path)
        self._settle(path)
        self.relisted.set()

    def on_open(self, path: str) -> None:
        """Note that a watch is open."""
        self.heartbeat(path)
        if path in self.forbidden:
            self.forbidden.discard(path)
            log.info("%s is readable again", path)
            self.relisted.set()

    def on_forbidden(self, path: str, status: int) -> None:
        """Note that the API server refused a list or a watch; logged once until it is allowed."""
        self.heartbeat(path)
        if path not in self.forbidden:
            self.forbidden.add(path)
            log.warning(
                "%s is not readable (HTTP %d) and is skipped until it is; check that the namespace "
                "exists and that the operator's RoleBinding is in it",
                path,
                status,
            )
        self._settle(path)

    def _settle(self, path: str) -> None:
        self.unpositioned.discard(path)
        if not self.unpositioned:
            self.positioned.set()
