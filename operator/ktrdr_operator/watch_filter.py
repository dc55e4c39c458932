"""The HTTP session under kopf: it drops watch lines that say nothing new.

kopf spends 0.9 ms of a core on every watch event, handlers or not (measured), so that a thousand
jobs that report every second would keep it from seeing a cancel. This session reads the watches
line by line and passes on only what a decision could depend on. Of a TrainingJob that is all but
mere progress (a new stage, attempt or checkpoint does pass) and the echo of our own writes; of a
pod, what `observe` sees in it. Dropped progress goes to `store.reports`, so that `observe` has the
newest. `handlers` gives the session to kopf; `health` learns from here that watches advance.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final, cast

import aiohttp
import orjson
from yarl import URL

from ktrdr_api import names
from ktrdr_client.cluster import NO_ANSWER, PODS
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.snapshot import PodView
from ktrdr_operator.store import Store
from ktrdr_operator.views import Raw, training_job_uid, view_pod

_UNSTABLE_METADATA: Final = frozenset({"resourceVersion", "managedFields"})
_TELLING_PROGRESS: Final = ("stage", "attempt", "checkpoint")
"""Fields of `status.progress` on which decisions depend."""


def essence(obj: Raw) -> object:
    """What of an object decisions depend on; compared, never read."""
    try:
        return _essence_of_job(obj) if obj.get("kind") == names.KIND else _essence_of_pod(obj)
    except (KeyError, TypeError, ValueError):
        return object()  # like no other: it passes, and its reconcile says what is wrong with it


def _essence_of_pod(obj: Raw) -> PodView:
    """A pod as decisions see it; they do not ask where it waits."""
    view = view_pod(obj)
    return view if view.started or view.ended else replace(view, node=None)


def _essence_of_job(obj: Raw) -> bytes:
    """Digest of a TrainingJob without what a mere progress report changes."""
    metadata = {k: v for k, v in obj["metadata"].items() if k not in _UNSTABLE_METADATA}
    status = dict(obj.get("status") or {})
    progress = status.get("progress") or {}
    status["progress"] = [progress.get(name) for name in _TELLING_PROGRESS]
    body = {**obj, "metadata": metadata, "status": status}
    return blake2b(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


@dataclass
class WatchFilter:
    """What has passed to kopf of every object, and hence what need not pass again."""

    store: Store
    metrics: Metrics
    clock: Callable[[], float]
    """Monotonic seconds."""
    beat: Callable[[str], None]
    """Told the URL path of a list or watch whenever it received something."""
    relisted: asyncio.Event
    """Set when kopf lists anew: what was deleted meanwhile, it will never report."""
    received: dict[str, float] = field(default_factory=dict)
    """When the latest line of an object came in, by UID."""
    _passed: dict[str, object] = field(default_factory=dict)
    """Essence of the latest line, by UID."""

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
            await self._inspect_response(request.url, response)
        return response

    async def _inspect_response(self, url: URL, response: aiohttp.ClientResponse) -> None:
        plural = url.path.rpartition("/")[2]
        if plural not in (names.PLURAL, PODS.plural):
            return  # discovery
        self.beat(url.path)
        if url.query.get("watch") == "true":
            lines = _FilteredStream(
                response.content, lambda: self.beat(url.path), self.should_forward
            )
            response.content = cast(aiohttp.StreamReader, lines)
        else:
            self.relisted.set()
            self.seed(await response.read())

    def seed(self, body: bytes) -> None:
        """Learn what kopf learns from a page of a list."""
        for item in orjson.loads(body).get("items") or ():
            self._remember_if_changed(item)

    def should_forward(self, line: bytes) -> bool:
        """Whether a line of a watch goes on to kopf."""
        event = orjson.loads(line)
        kind, obj = event["type"], event["object"]
        if kind not in ("ADDED", "MODIFIED", "DELETED"):
            return True  # a bookmark, or an error
        if kind == "DELETED":
            uid = obj["metadata"]["uid"]
            self.received[uid] = self.clock()
            self._passed.pop(uid, None)
            return True
        is_new = self._remember_if_changed(obj)
        is_job = obj["kind"] == names.KIND
        is_irrelevant = (
            self.store.take_own_write(obj) if is_job else self._has_outlived_its_job(obj)
        )
        if kind == "ADDED" or (is_new and not is_irrelevant):
            self.metrics.watch_line("passed")
            return True
        if is_job:
            self.store.put_progress(obj)  # not before: what passes is known when it is handled
        self.metrics.watch_line("dropped")
        return False

    def _has_outlived_its_job(self, pod: Raw) -> bool:
        """Whether its deletion is under way anyway."""
        return training_job_uid(pod["metadata"]) in self.store.dead

    def _remember_if_changed(self, obj: Raw) -> bool:
        """Remember what passed last; whether this is something new."""
        uid = obj["metadata"]["uid"]
        self.received[uid] = self.clock()
        before, self._passed[uid] = self._passed.get(uid), essence(obj)
        return before != self._passed[uid]

    def forget_all_but(self, uids: Collection[str]) -> None:
        """Forget objects that are gone; one forgotten too early merely passes once more."""
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


class _FilteredStream:
    """A response's content with some of its lines left out; all else is the content's own."""

    def __init__(
        self,
        content: aiohttp.StreamReader,
        on_data: Callable[[], None],
        should_forward: Callable[[bytes], bool],
    ) -> None:
        self._content = content
        self._heard = on_data
        self._keeps = should_forward

    def __getattr__(self, name: str) -> object:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Whole lines that are kept; the only way in which kopf reads a watch."""
        rest = b""
        async for data in self._content.iter_chunked(size):
            self._heard()
            *lines, rest = (rest + data).split(b"\n")
            if kept := [line for line in lines if line and self._keeps(line)]:
                yield b"\n".join(kept) + b"\n"
