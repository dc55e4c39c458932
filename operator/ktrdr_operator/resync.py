"""Resync: full lists of TrainingJobs and pods, at the start, periodically and after a broken watch.

A watch that was broken never reports what was deleted meanwhile, and any event may be lost. A list
is read page by page; each page is compared with the store and dropped before the next one is read,
and only what differs is enqueued. The first list waits until every watch has a version to begin at,
so that a watch reports whatever happens after the list; workers start after it.

Started by `__main__`; the workers of the queue go on with `reconcile`.
"""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from random import Random
from typing import Final

from ktrdr_api import names
from ktrdr_client.cluster import (
    LIST_RESTARTS,
    PODS,
    TRAINING_JOBS,
    ApiError,
    ClusterApi,
    Forbidden,
    NotFound,
)
from ktrdr_operator.intake import Cause, priority_of
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.store import JobKey, KnownJob, ResyncToken, Store, job_key
from ktrdr_operator.views import Raw
from ktrdr_operator.watches import Watches

log: Final = logging.getLogger(__name__)

JITTER: Final = 0.2
"""Fraction by which the period varies, so that several operators do not list at the same time."""
SETTLE_SECONDS: Final = 5.0
"""Pause between a list request of kopf and a resync, so that a burst of them costs one resync."""
MAX_RETRY_SECONDS: Final = 15.0
"""Maximum pause between two tries while the API server is unreachable."""
UNREADABLE: Final = (AttributeError, KeyError, TypeError, ValueError)
"""Errors of a projection for an object that lacks fields of every object."""


@dataclass
class Resync:
    """Compares the store with full lists of the API server."""

    cluster: ClusterApi
    store: Store
    queue: WorkQueue[JobKey]
    watches: Watches
    metrics: Metrics
    namespaces: tuple[str | None, ...]
    """None is all namespaces."""
    period_seconds: float
    random: Random
    now: Callable[[], datetime]
    """Wall clock, UTC; a TrainingJob's TTL is compared with it."""
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set after the first resync: the store is complete."""
    _skipped: set[str] = field(default_factory=set)
    """Namespaces that could not be read at the latest resync."""

    async def run(self) -> None:
        """Resync until cancelled."""
        await self.watches.positioned.wait()
        await self._retry(self.once, "Full list")
        # Most objects that exist now stay: the garbage collector need not traverse them again.
        gc.collect()
        gc.freeze()
        self.filled.set()
        while True:
            await self._wait_until_due()
            await self._retry(self.once, "Full list")

    async def wait_for_server(self) -> None:
        """Wait until the API server serves TrainingJobs.

        kopf must not start earlier: it exits after a minute without an answer, and never watches a
        resource type that did not exist when it started.
        """
        await self._retry(self._read_one, "First request to the API server")

    async def once(self) -> None:
        """List everything, compare it with the store, and enqueue what differs.

        Raises:
            ApiError: the list is incomplete; nothing was dropped from the store.
        """
        self.watches.relisted.clear()
        for _ in range(LIST_RESTARTS):
            try:
                await self._list_all(self.store.begin_resync())
                break
            except ApiError as error:
                if error.status != HTTPStatus.GONE:  # 410: the continue token has expired
                    raise
                expired = error
        else:
            raise expired
        self._schedule_deletions()

    async def _wait_until_due(self) -> None:
        period = self.period_seconds * self.random.uniform(1 - JITTER, 1 + JITTER)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.watches.relisted.wait(), period)
            await asyncio.sleep(SETTLE_SECONDS)

    async def _retry(self, call: Callable[[], Awaitable[None]], what: str) -> None:
        """Await a call until the API server answers as expected."""
        delay = 0.5
        while True:
            try:
                await call()
                return
            except ApiError as error:
                log.warning("%s failed, retrying in %.1f s: %s", what, delay, error)
            await asyncio.sleep(self.random.uniform(delay / 2, delay))
            delay = min(delay * 2, MAX_RETRY_SECONDS)

    async def _read_one(self) -> None:
        for namespace in self.namespaces:
            with suppress(Forbidden):  # the server answers; the watch session waits for permission
                await self.cluster.list(TRAINING_JOBS, namespace, limit=1)

    async def _list_all(self, token: ResyncToken) -> None:
        skipped: set[str] = set()
        for namespace in self.namespaces:
            try:
                await self._list_namespace(token, namespace)
            except (Forbidden, NotFound) as error:
                if namespace is None:
                    raise
                skipped.add(namespace)
                log.debug("Namespace %s skipped: %s", namespace, error)  # `watches` warns once
        for key in self.store.finish_resync(token, skipped):
            self._add(key)
        for namespace in skipped & self._skipped:  # rejected twice in a row
            self.store.forget_namespace(namespace)
        self._skipped = skipped
        self.metrics.unreadable_namespaces(len(skipped))

    async def _list_namespace(self, token: ResyncToken, namespace: str | None) -> None:
        # Jobs first: whether a finished pod is kept depends on its job.
        async for page in self.cluster.pages(TRAINING_JOBS, namespace):
            for raw in page:
                self._take_job(token, raw)
        selector = names.LABEL_JOB
        async for page in self.cluster.pages(PODS, namespace, label_selector=selector):
            for raw in page:
                self._take_pod(token, raw)

    def _take_job(self, token: ResyncToken, raw: Raw) -> None:
        try:
            if self.store.put_listed_job(token, raw):
                self._add(job_key(raw))
        except UNREADABLE:
            _log_unreadable(raw)

    def _take_pod(self, token: ResyncToken, raw: Raw) -> None:
        try:
            if (key := self.store.put_listed_pod(token, raw)) is not None:
                self._add(key)
        except UNREADABLE:
            _log_unreadable(raw)

    def _add(self, key: JobKey) -> None:
        self.queue.add(key, priority_of(Cause.LISTED, self.store.jobs.get(key)))

    def _schedule_deletions(self) -> None:
        """Enqueue finished TrainingJobs for the time when their TTL is over."""
        now = self.now()
        for key, job in self.store.jobs.items():
            if (due := _deletion_time(job)) is not None:
                self.queue.add_after(key, (due - now).total_seconds(), Priority.STATUS_ONLY)


def _deletion_time(job: KnownJob) -> datetime | None:
    if not job.is_settled or job.ttl_seconds is None:
        return None
    try:
        return datetime.fromisoformat(job.finished_time) + timedelta(seconds=job.ttl_seconds)
    except (ValueError, OverflowError):
        return None  # beyond the calendar: the TrainingJob stays


def _log_unreadable(raw: Raw) -> None:
    """Log an object that cannot be read; the list goes on with the others."""
    metadata = raw.get("metadata", {})
    where = {"namespace": metadata.get("namespace"), "job": metadata.get("name")}
    log.exception("%s not readable, skipped", raw.get("kind"), extra=where)
