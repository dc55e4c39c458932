"""Watch filter: takes object events out of a watch before they reach kopf.

kopf spends 0.9 ms of a core on every watch event, with or without handlers (measured), so a
thousand jobs that report every second would delay every cancel request. Therefore `intake` receives
each event of a TrainingJob or pod as soon as its line is read, in the order in which the API server
sent it. kopf keeps the watch open and receives only what it needs for that: bookmarks, errors, and
instead of the events taken a bookmark with the version of the last one, from which it reconnects.

`watch_session` calls the filter with the lines of each watch.
"""

import logging
from dataclasses import dataclass
from time import monotonic
from typing import Final

import orjson

from ktrdr_api import names
from ktrdr_operator.intake import Intake
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.views import Raw

log: Final = logging.getLogger(__name__)

_OBJECT_EVENTS: Final = frozenset({"ADDED", "MODIFIED", "DELETED"})
_ENVELOPE_BYTES: Final = len(b'{"type":"MODIFIED","object":}')
"""Bytes of a line that are not the object."""


@dataclass(frozen=True)
class WatchFilter:
    """Distributes the lines of a watch between `intake` and kopf."""

    intake: Intake
    metrics: Metrics

    def filter_lines(self, lines: list[bytes]) -> list[bytes]:
        """Take the object events; returns the lines for kopf."""
        passed: list[bytes] = []
        taken: str | None = None
        received = monotonic()
        for line in lines:
            event = orjson.loads(line)
            if self._take(event, len(line) - _ENVELOPE_BYTES):
                self.metrics.handler_lag(monotonic() - received)
                taken = event["object"].get("metadata", {}).get("resourceVersion")
            else:
                passed.append(line)
                taken = None
        return passed if taken is None else [*passed, _bookmark(taken)]

    def _take(self, event: Raw, size_bytes: int) -> bool:
        """Take an event; returns False for an event that goes to kopf."""
        kind, obj = event["type"], event["object"]
        if kind not in _OBJECT_EVENTS:
            return False
        is_job = isinstance(obj, dict) and obj.get("kind") == names.KIND
        try:
            if is_job:
                is_enqueued = self.intake.take_job(kind, obj, size_bytes)
            else:
                is_enqueued = self.intake.take_pod(kind, obj)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # One unreadable object must not end the watch of all others.
            metadata = obj.get("metadata", {})
            where = {"namespace": metadata.get("namespace"), "job": metadata.get("name")}
            log.exception("Watch event not readable, skipped: %r", error, extra=where)
            is_enqueued = False
        self.metrics.watch_event(
            "TrainingJob" if is_job else "Pod", "passed" if is_enqueued else "dropped"
        )
        return True


def _bookmark(version: str) -> bytes:
    """Build a bookmark with the version of an event that kopf does not receive."""
    return orjson.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}})
