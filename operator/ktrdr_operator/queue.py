"""The work queue: any number of events about a job become one run, and cancels overtake.

Handlers and the reconciler put keys in; workers take them out, one worker a key at a time, by
lanes: ends that somebody waits for, then what may have to be done, then what only has to be told. A
failing key comes back with exponential backoff and jitter, so that one poisonous object never slows
the others.
"""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from random import Random
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BACKOFF_BASE_SECONDS: Final = 0.05
"""So short because the usual error is a conflict, which one more look settles."""
BACKOFF_CAP_SECONDS: Final = 60.0
STATUS_ONLY_EVERY: Final = 4
"""Every so many keys, one that waits to be told goes first: it is late, not forgotten."""


class Priority(IntEnum):
    """What a key waits for; in the order in which keys are taken."""

    STOP = 0
    """Somebody waits for the end of this job."""
    RECONCILE = 1
    """Something may have to be done."""
    STATUS_ONLY = 2
    """Nothing to be done, as far as one can see from outside; status has to say it."""


@dataclass
class WorkQueue(Generic[K]):
    """A set of dirty keys in lanes, with delayed keys and per-key backoff.

    Repeatable: adding a key that is already waiting changes at most its lane or its time. A key
    added while it is being worked on is worked on once more afterwards.
    """

    clock: Callable[[], float]
    """Monotonic seconds."""
    random: Random = field(default_factory=Random)
    _lanes: dict[Priority, OrderedDict[K, float]] = field(
        default_factory=lambda: {priority: OrderedDict() for priority in Priority}
    )
    """Keys, and since when they have been waiting."""
    _taken: int = 0
    _processing: dict[K, Priority | None] = field(default_factory=dict)
    """Keys in work, and the lane for those that became dirty again meanwhile."""
    _failures: dict[K, int] = field(default_factory=dict)
    _delayed: list[tuple[float, int, K]] = field(default_factory=list)
    _due: dict[K, float] = field(default_factory=dict)
    _order: Iterator[int] = field(default_factory=count)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, key: K, priority: Priority = Priority.RECONCILE) -> None:
        """Mark a key dirty; one that waits already keeps the better lane."""
        if key in self._processing:
            again = self._processing[key]
            self._processing[key] = priority if again is None else min(again, priority)
            return
        before = next((known for known, keys in self._lanes.items() if key in keys), None)
        if before is None:
            self._lanes[priority][key] = self.clock()
        elif priority < before:
            self._lanes[priority][key] = self._lanes[before].pop(key)
        self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Mark a key dirty later; an earlier appointment stays."""
        due = self.clock() + max(seconds, 0.0)
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._delayed, (due, next(self._order), key))
        self._wake.set()

    def retry(self, key: K) -> float:
        """Bring a failed key back after its backoff; returns the seconds until then."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        ceiling = min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2 ** min(failures, 16))
        delay = self.random.uniform(ceiling / 2, ceiling)
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """Reset a key's backoff after a success."""
        self._failures.pop(key, None)

    def __len__(self) -> int:
        """Keys waiting for a worker now."""
        return sum(len(keys) for keys in self._lanes.values())

    async def run(self, workers: int, work: Callable[[K, float], Awaitable[None]]) -> None:
        """Work until cancelled.

        Args:
            workers: how many keys may be in work at once.
            work: called with a key and the seconds it waited; it must not raise (it calls `retry`).
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(work))

    async def _worker(self, work: Callable[[K, float], Awaitable[None]]) -> None:
        while True:
            key, since = await self._take()
            try:
                await work(key, self.clock() - since)
            finally:
                self._done(key)

    async def _take(self) -> tuple[K, float]:
        while True:
            self._wake.clear()
            timeout = self._release_due()
            if len(self):
                key, since = self._next_lane().popitem(last=False)
                self._processing[key] = None
                self._taken += 1
                if len(self):
                    self._wake.set()
                return key, since
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
            except TimeoutError:
                continue

    def _next_lane(self) -> OrderedDict[K, float]:
        stop, act, tell = (self._lanes[priority] for priority in Priority)
        if self._taken % STATUS_ONLY_EVERY == STATUS_ONLY_EVERY - 1:
            act, tell = tell, act
        return stop or act or tell

    def _release_due(self) -> float | None:
        """Move what is due into its lane; returns the seconds until the next appointment."""
        now = self.clock()
        while self._delayed:
            due, _, key = self._delayed[0]
            if self._due.get(key) != due:  # an earlier appointment replaced this one
                heapq.heappop(self._delayed)
            elif due <= now:
                heapq.heappop(self._delayed)
                del self._due[key]
                self.add(key)
            else:
                return due - now
        return None

    def _done(self, key: K) -> None:
        again = self._processing.pop(key)
        if again is not None:
            self.add(key, again)
