"""Kubernetes Events: the story of a TrainingJob, for `kubectl events` and `kubectl describe`.

`reconcile` records, a background task posts. An Event is a courtesy: it never delays or fails a
reconcile, and what a user must act on is also in status.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Final, Literal

from ktrdr_api import names
from ktrdr_client.cluster import EVENTS, AlreadyExists, ApiError, ClusterApi
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.views import Raw

log: Final = logging.getLogger(__name__)

QUEUE_LIMIT: Final = 5000
"""Events waiting; ten transitions of 500 jobs at once. More are dropped, and counted."""
REMEMBERED: Final = 10000
"""Latest events, so that the same one is not posted twice."""
TRIES: Final = 4
MESSAGE_MAX_LENGTH: Final = 1024
"""Limit of the API."""


def build_event(job: Raw, kind: str, reason: str, message: str, *, now: datetime) -> Raw:
    """Build an Event about a TrainingJob.

    Its name follows from what it says, so that the same thing said twice, even by two operators, is
    one Event. Set as events.k8s.io/v1 would (eventTime, no count): microseconds keep the order.
    """
    metadata = job["metadata"]
    said = "\0".join((metadata["uid"], reason, message)).encode()
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {
            "namespace": metadata["namespace"],
            "name": f"{metadata['name']}.{blake2b(said, digest_size=8).hexdigest()}",
        },
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": kind,
        "reason": reason,
        "message": message[:MESSAGE_MAX_LENGTH],
        "action": reason,
        "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "reportingComponent": names.OPERATOR_MANAGER,
        "reportingInstance": names.OPERATOR_MANAGER,
    }


@dataclass
class EventRecorder:
    """Takes Events at once and posts them in the background."""

    cluster: ClusterApi
    metrics: Metrics
    now: Callable[[], datetime]
    """Wall clock, UTC."""
    _queue: asyncio.Queue[Raw] = field(default_factory=lambda: asyncio.Queue(QUEUE_LIMIT))
    _recorded: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)

    def record(
        self, job: Raw, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Post an Event soon. Repeatable: the same words about the same object post once."""
        event = build_event(job, kind, reason, message, now=self.now())
        identity = (event["metadata"]["namespace"], event["metadata"]["name"])
        if identity in self._recorded:
            return
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.metrics.event_dropped()
            return
        self._recorded[identity] = None
        if len(self._recorded) > REMEMBERED:
            self._recorded.popitem(last=False)

    async def post_now(
        self, job: Raw, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> bool:
        """Post an Event before going on; False when it was given up."""
        return await self._post(build_event(job, kind, reason, message, now=self.now()))

    async def run(self) -> None:
        """Post until cancelled; one by one, as client-go does: pods come before their story."""
        while True:
            event = await self._queue.get()
            if not await self._post(event):
                self.metrics.event_dropped()

    async def _post(self, event: Raw) -> bool:
        """Post one Event; False when it was given up."""
        for attempt in range(TRIES):
            try:
                await self.cluster.create(EVENTS, event)
            except AlreadyExists:
                return True
            except ApiError as error:
                if 400 <= error.status < 500 and error.status != 429:
                    log.warning("event %s not posted: %s", event["reason"], error)
                    return False
                await asyncio.sleep(2.0**attempt)
            else:
                return True
        return False
