"""Watching: when each object was first seen to have reached a stage.

Called by `bench_apply` and `bench_scale`, which wait for stages and print how long they took.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from ktrdr_client.cluster import Cluster, Resource

Raw = dict[str, Any]
OnEvent = Callable[[str, Raw], None]
"""Called with the type of a watch event and its object."""


@dataclass
class Sightings:
    """When each object was first seen to have reached each stage, on the monotonic clock."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, name: str, *stages: str) -> None:
        """Remember the first time at which an object was seen in these stages."""
        for stage in stages:
            self.stages.setdefault(stage, {}).setdefault(name, time.monotonic())
        self._changed.set()

    async def wait_for(self, stage: str, count: int, seconds: float) -> None:
        """Wait until so many objects have reached a stage; end the benchmark if they do not."""
        deadline = time.monotonic() + seconds
        while len(self.stages.get(stage, {})) < count:
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 1.0)
            if time.monotonic() > deadline:
                seen = {name: len(found) for name, found in self.stages.items()}
                sys.exit(f'not all objects reached "{stage}" within {seconds:g} s: {seen}')

    def last(self, stage: str) -> float:
        """When the last object reached a stage."""
        return max(self.stages[stage].values())

    def median(self, stage: str) -> float:
        """When half of the objects had reached a stage."""
        times = sorted(self.stages[stage].values())
        return times[len(times) // 2]


async def _follow(cluster: Cluster, path: str, on_event: OnEvent, opened: asyncio.Event) -> None:
    """Watch a collection until cancelled; a watch that the server ends is opened again."""
    async with cluster.open_session() as session:
        collection = f"{cluster.server}{path}"
        async with session.get(f"{collection}?limit=1") as response:
            version = (await response.json())["metadata"]["resourceVersion"]
        while True:
            url = f"{collection}?watch=true&allowWatchBookmarks=true&resourceVersion={version}"
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as response:
                opened.set()
                rest = b""
                async for data in response.content.iter_any():
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            on_event(event["type"], event["object"])


@asynccontextmanager
async def watching(
    cluster: Cluster, namespace: str, handlers: Mapping[Resource, OnEvent]
) -> AsyncIterator[None]:
    """Watch resources of a namespace; what exists already is not reported."""
    opened = {resource: asyncio.Event() for resource in handlers}
    tasks = [
        asyncio.create_task(_follow(cluster, resource.path(namespace), on_event, opened[resource]))
        for resource, on_event in handlers.items()
    ]
    try:
        async with asyncio.timeout(30):
            for event in opened.values():
                await event.wait()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
