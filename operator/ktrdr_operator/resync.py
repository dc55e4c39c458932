"""Resync: the whole truth by LIST, at the start, now and then, and whenever kopf lost its place.

kopf never reports what was deleted while a watch was broken, and any event may be lost. A full list
replaces the store and makes every TrainingJob run once. Started by `__main__`; the queue's workers
go on.
"""

import asyncio
import gc
import logging
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Final

from ktrdr_api import names
from ktrdr_client.cluster import PODS, TRAINING_JOBS, ApiError, ClusterApi, Resource
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.views import Raw
from ktrdr_operator.watch_filter import WatchFilter

log: Final = logging.getLogger(__name__)

JITTER: Final = 0.2
"""Share by which the period varies, so that replicas and operators do not list in step."""
SETTLE_SECONDS: Final = 5.0
"""Between a new list of kopf's and ours, so that a burst of them costs one."""


def merge(before: list[Raw], now: list[Raw], listed: list[Raw]) -> list[Raw]:
    """Correct a list by what the watches have said while it was being made.

    Args:
        before: the store when the list began.
        now: the store when the list ended; an object that is not the same one as before has been
            heard of since, one that is missing has been deleted since.
        listed: the list.
    """
    old = {raw["metadata"]["uid"]: raw for raw in before}
    new = {raw["metadata"]["uid"]: raw for raw in now}
    on_data = {uid: raw for uid, raw in new.items() if old.get(uid) is not raw}
    settled = on_data.keys() | (old.keys() - new.keys())
    return [*on_data.values(), *(raw for raw in listed if raw["metadata"]["uid"] not in settled)]


@dataclass
class Resync:
    """Lists everything and puts it into the store and the queue."""

    cluster: ClusterApi
    store: Store
    queue: WorkQueue[JobKey]
    watch_filter: WatchFilter
    namespaces: tuple[str | None, ...]
    period_seconds: float
    random: Random

    async def run(self) -> None:
        """Resync for ever; a failed one is tried again at the next turn."""
        while True:
            period = self.period_seconds * self.random.uniform(1 - JITTER, 1 + JITTER)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.watch_filter.relisted.wait(), period)
                await asyncio.sleep(SETTLE_SECONDS)
            self.watch_filter.relisted.clear()
            try:
                await self.once()
            except ApiError as error:
                log.warning("resync failed, the watches go on: %s", error)

    async def first(self) -> None:
        """Fill the store before any worker starts; the API server is awaited for ever."""
        delay = 0.5
        while True:
            try:
                await self.once()
                break
            except ApiError as error:
                log.warning("first listing failed, next try in %.1f s: %s", delay, error)
            await asyncio.sleep(self.random.uniform(delay / 2, delay))
            delay = min(delay * 2, 15.0)
        # What is there now mostly stays: the garbage collector need not walk it again and again.
        gc.collect()
        gc.freeze()

    async def once(self) -> None:
        """List, replace, enqueue.

        Raises:
            ApiError: the store is as it was.
        """
        jobs_before, pods_before = self._jobs(), self._pods()
        jobs = await self._list(TRAINING_JOBS, "")
        pods = await self._list(PODS, names.LABEL_JOB)
        jobs = merge(jobs_before, self._jobs(), jobs)
        pods = merge(pods_before, self._pods(), pods)
        touched = self.store.replace(jobs, pods)
        self.watch_filter.forget_all_but({raw["metadata"]["uid"] for raw in (*jobs, *pods)})
        for key in touched:
            self.queue.add(key)
        log.debug("resync: %d TrainingJobs, %d pods", len(jobs), len(pods))

    def _jobs(self) -> list[Raw]:
        return list(self.store.jobs.values())

    def _pods(self) -> list[Raw]:
        return [pod for pods in self.store.pods.values() for pod in pods.values()]

    async def _list(self, resource: Resource, label_selector: str) -> list[Raw]:
        found: list[Raw] = []
        for namespace in self.namespaces:
            objects, _ = await self.cluster.list(resource, namespace, label_selector=label_selector)
            for raw in objects:
                raw["metadata"].pop("managedFields", None)  # half of the memory, and never read
            found += objects
        return found
