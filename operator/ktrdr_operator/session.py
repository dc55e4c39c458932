"""The HTTP session under kopf: it drops watch lines that say nothing but progress.

kopf spends 0.9 ms of a core on every watch event, handlers or not (measured), so that a thousand
jobs that report every second would keep it from seeing a cancel. This session reads the TrainingJob
watch line by line and passes on only those that change something else than `status.progress`; a new
stage, attempt or checkpoint does pass. Dropped values go to `store.reports`, so that `observe` has
the newest. `handlers` gives the session to kopf; `health` learns from here that watches advance.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, cast

import aiohttp
from yarl import URL

from ktrdr_api import names
from ktrdr_client.cluster import NO_ANSWER
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.store import Raw, Store

_UNSTABLE_METADATA: Final = frozenset({"resourceVersion", "managedFields"})
_TELLING_PROGRESS: Final = ("stage", "attempt", "checkpoint")
"""Fields of `status.progress` on which decisions depend."""


def essence(obj: Raw) -> bytes:
    """Digest of a TrainingJob without what a mere progress report changes."""
    metadata = {k: v for k, v in obj["metadata"].items() if k not in _UNSTABLE_METADATA}
    status = dict(obj.get("status") or {})
    progress = status.get("progress") or {}
    status["progress"] = [progress.get(name) for name in _TELLING_PROGRESS]
    body = {**obj, "metadata": metadata, "status": status}
    return blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).digest()


@dataclass
class WatchFilter:
    """What has passed to kopf of every TrainingJob, and hence what need not pass again."""

    store: Store
    metrics: Metrics
    clock: Callable[[], float]
    """Monotonic seconds."""
    beat: Callable[[str], None]
    """Told the URL path of a list or watch whenever it received something."""
    relisted: asyncio.Event
    """Set when kopf lists anew: what was deleted meanwhile, it will never report."""
    received: dict[str, float] = field(default_factory=dict)
    """When the latest line of a TrainingJob came in, by UID."""
    _passed: dict[str, bytes] = field(default_factory=dict)
    """Essence of the latest line that passed, by UID."""

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request of kopf's, as a client middleware, and look at the answer."""
        try:
            response = await handler(request)
        except (aiohttp.ClientError, TimeoutError):
            self.metrics.request(request.method, NO_ANSWER)
            raise
        self.metrics.request(request.method, str(response.status))
        if response.status == 200:
            await self._look(request.url, response)
        return response

    async def _look(self, url: URL, response: aiohttp.ClientResponse) -> None:
        plural = url.path.rpartition("/")[2]
        if plural not in (names.PLURAL, "pods"):
            return  # discovery
        self.beat(url.path)
        filters = plural == names.PLURAL
        if url.query.get("watch") == "true":
            lines = _Lines(response.content, lambda: self.beat(url.path))
            lines.keeps = self.keeps if filters else lines.keeps
            response.content = cast(aiohttp.StreamReader, lines)
        else:
            self.relisted.set()
            if filters:
                self.seed(await response.read())

    def seed(self, body: bytes) -> None:
        """Learn what kopf learns from a page of a list."""
        for item in json.loads(body).get("items") or ():
            self._pass(item)

    def keeps(self, line: bytes) -> bool:
        """Whether a line of the watch goes on to kopf."""
        event = json.loads(line)
        kind, obj = event["type"], event["object"]
        if kind not in ("ADDED", "MODIFIED", "DELETED"):
            return True  # a bookmark, or an error
        uid = obj["metadata"]["uid"]
        if kind == "DELETED":
            self.received[uid] = self.clock()
            self._passed.pop(uid, None)
            return True
        before, now = self._passed.get(uid), self._pass(obj)
        if kind == "ADDED" or before != now:
            self.metrics.watch_line("passed")
            return True
        self.store.note_report(obj)
        self.metrics.watch_line("dropped")
        return False

    def _pass(self, obj: Raw) -> bytes:
        uid = obj["metadata"]["uid"]
        self.received[uid] = self.clock()
        self._passed[uid] = essence(obj)
        return self._passed[uid]

    def forget_all_but(self, uids: Collection[str]) -> None:
        """Forget TrainingJobs that are gone; one forgotten too early merely passes once more."""
        self._passed = {uid: value for uid, value in self._passed.items() if uid in uids}
        self.received = {uid: value for uid, value in self.received.items() if uid in uids}

    def progress_age_seconds(self) -> float:
        """Longest silence of a running TrainingJob's watch; by our clock, never the trainer's."""
        running = (
            raw["metadata"]["uid"]
            for raw in self.store.jobs.values()
            if raw.get("status", {}).get("phase") == "Running"
        )
        now = self.clock()
        return max((now - self.received.get(uid, now) for uid in running), default=0.0)


class _Lines:
    """A response's content with some of its lines left out; all else is the content's own."""

    def __init__(self, content: aiohttp.StreamReader, heard: Callable[[], None]) -> None:
        self._content = content
        self._heard = heard
        self.keeps: Callable[[bytes], bool] = lambda _line: True

    def __getattr__(self, name: str) -> object:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Whole lines that are kept; the only way in which kopf reads a watch."""
        rest = b""
        async for data in self._content.iter_chunked(size):
            self._heard()
            *lines, rest = (rest + data).split(b"\n")
            if kept := [line for line in lines if line and self.keeps(line)]:
                yield b"\n".join(kept) + b"\n"
