"""Kubernetes Events: the history of a TrainingJob, for `kubectl events` and `kubectl describe`.

`reconcile` records, a background task posts. Events never delay or fail a reconcile: what a user
must act on is also in status. They are held back for some seconds while workers are busy, so that
pods are created before Events. The one exception is `post_now`, for the last Event of a TrainingJob
that is about to be deleted. An Event that cannot be posted is counted and logged.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from hashlib import blake2b
from typing import Final, Literal, NamedTuple

from ktrdr_api import names
from ktrdr_client.cluster import EVENTS, AlreadyExists, ApiError, ClusterApi
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.views import Raw

log: Final = logging.getLogger(__name__)

QUEUE_LIMIT: Final = 5000
"""Maximum number of Events that wait: ten transitions of 500 jobs. More are dropped and counted."""
REMEMBERED: Final = 10000
"""Latest Events, so that the same one is not posted twice."""
TRIES: Final = 4
"""Requests per Event, with pauses of 1, 2 and 4 s; the API server may be restarting."""
MESSAGE_MAX_LENGTH: Final = 1024
"""Limit of the API."""
HELD_SECONDS: Final = 5.0
"""Maximum time for which an Event is held back while workers are busy."""
POLL_SECONDS: Final = 0.1
"""Time between checks whether workers are still busy."""

_LOGGED: Final = {"namespace": "namespace", "job": "name", "uid": "uid"}
"""Fields of a log line, and where they are in the involved object."""

Kind = Literal["Normal", "Warning"]


def build_event(job: Raw, kind: Kind, reason: str, message: str, *, now: datetime) -> Raw:
    """Build an Event about a TrainingJob.

    Its name follows from its content, so that the same content, even from two operators, is one
    Event. Fields are set as events.k8s.io/v1 does (eventTime, no count): microseconds keep the
    order.
    """
    metadata = job["metadata"]
    content = "\0".join((metadata["uid"], reason, message)).encode()
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {
            "namespace": metadata["namespace"],
            "name": f"{metadata['name']}.{blake2b(content, digest_size=8).hexdigest()}",
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


class _Answer(Enum):
    """Result of one request that posts an Event."""

    STORED = auto()
    REJECTED = auto()
    """The same request would be rejected again, for example in a namespace that terminates."""
    FAILED = auto()
    """A retry may help."""


class _Pending(NamedTuple):
    """An Event to post."""

    event: Raw
    recorded_at: float

    @property
    def identity(self) -> tuple[str, str]:
        """Namespace and name, which follow from the content."""
        return _identity(self.event)


def _identity(event: Raw) -> tuple[str, str]:
    return event["metadata"]["namespace"], event["metadata"]["name"]


@dataclass
class EventRecorder:
    """Takes Events immediately and posts them in the background."""

    cluster: ClusterApi
    metrics: Metrics
    now: Callable[[], datetime]
    """Wall clock, UTC."""
    is_busy: Callable[[], bool] = lambda: False
    """Whether keys wait for a worker; Events are held back meanwhile, for HELD_SECONDS at most."""
    clock: Callable[[], float] = time.monotonic
    """Monotonic seconds."""
    limit: int = QUEUE_LIMIT
    _queue: asyncio.Queue[_Pending] = field(init=False)
    _recorded: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict, init=False)
    _is_full: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._queue = asyncio.Queue(self.limit)

    def record(self, job: Raw, kind: Kind, reason: str, message: str) -> None:
        """Post an Event soon. Repeatable: the same content about the same object posts once."""
        self._enqueue(build_event(job, kind, reason, message, now=self.now()))

    async def post_now(self, job: Raw, kind: Kind, reason: str, message: str) -> bool:
        """Post an Event immediately, before its object is deleted.

        Returns:
            Whether the Event is stored. If not, because the API server is unreachable, it is posted
            in the background.
        """
        event = build_event(job, kind, reason, message, now=self.now())
        match await self._request(event):
            case _Answer.STORED:
                self._remember(_identity(event))
                return True
            case _Answer.REJECTED:
                self.metrics.event_dropped()
            case _Answer.FAILED:
                self._enqueue(event)
        return False

    def take_pending(self) -> list[Raw]:
        """Take the Events that wait to be posted, oldest first, instead of posting them."""
        return [self._queue.get_nowait().event for _ in range(self._queue.qsize())]

    async def run(self) -> None:
        """Post until cancelled; one after the other, as client-go does."""
        unposted = 0
        try:
            while True:
                pending = await self._queue.get()
                unposted = 1
                await self._wait_while_busy(pending.recorded_at + HELD_SECONDS)
                if not await self._post(pending.event):
                    self.metrics.event_dropped()
                    self._recorded.pop(pending.identity, None)
                unposted = 0
        finally:
            unposted += self._queue.qsize()
            if unposted:
                log.warning("Stopped before %d Kubernetes Events were posted", unposted)

    def _enqueue(self, event: Raw) -> None:
        pending = _Pending(event, self.clock())
        if pending.identity in self._recorded:
            return
        try:
            self._queue.put_nowait(pending)
        except asyncio.QueueFull:
            self.metrics.event_dropped()
            if not self._is_full:
                log.warning(
                    "Kubernetes Events dropped: %d are waiting to be posted already; see the metric"
                    " ktrdr_events_dropped_total",
                    self.limit,
                )
            self._is_full = True
            return
        self._is_full = False
        self._remember(pending.identity)

    def _remember(self, identity: tuple[str, str]) -> None:
        self._recorded[identity] = None
        if len(self._recorded) > REMEMBERED:
            self._recorded.popitem(last=False)

    async def _wait_while_busy(self, deadline: float) -> None:
        while self.is_busy() and self.clock() < deadline:
            await asyncio.sleep(POLL_SECONDS)

    async def _post(self, event: Raw) -> bool:
        """Post one Event; False after it was rejected, or TRIES requests have failed."""
        for failures in range(TRIES):
            if failures:
                await asyncio.sleep(2.0 ** (failures - 1))
            answer = await self._request(event)
            if answer is not _Answer.FAILED:
                return answer is _Answer.STORED
        return False

    async def _request(self, event: Raw) -> _Answer:
        try:
            await self.cluster.create(EVENTS, event)
        except AlreadyExists:
            return _Answer.STORED
        except ApiError as error:
            involved = event["involvedObject"]
            log.warning(
                "Kubernetes Event %s not posted: %s",
                event["reason"],
                error,
                extra={key: involved[field] for key, field in _LOGGED.items()},
            )
            is_rejected = 400 <= error.status < 500 and error.status != 429
            return _Answer.REJECTED if is_rejected else _Answer.FAILED
        return _Answer.STORED
