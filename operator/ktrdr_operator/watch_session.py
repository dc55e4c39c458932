"""Watch session: client middleware of kopf's HTTP session that rewrites lists and watches.

kopf receives no list: it needs 3 ms per object (measured), so that with 2,500 TrainingJobs its
watches opened after more than a minute. Its list requests are answered with no items, at the
resource version of a real request for one object. The watch opens immediately from there and
reports every later change; `resync` reads the full lists.

A collection that the operator is not allowed to read (403: its namespace or RoleBinding was
deleted) is hidden from kopf, which would end the process: the watch request waits here until it is
allowed.

`handlers` passes the session to kopf; the lines of a watch go on to `watch_filter`.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

import aiohttp

from ktrdr_client.cluster import PODS, TRAINING_JOBS
from ktrdr_client.watch_stream import empty_list, filter_watch, pretend_empty_list
from ktrdr_operator.watch_filter import WatchFilter
from ktrdr_operator.watches import Watches

FORBIDDEN_RETRY_SECONDS: Final = 10.0
"""Pause between two requests for a watch that is rejected. kopf gives up its own request after 70 s
without a bookmark and sends the next one immediately: at most 8 requests per minute."""
_REFUSED: Final = frozenset({403, 404})
_PLURALS: Final = frozenset({TRAINING_JOBS.plural, PODS.plural})


@dataclass(frozen=True)
class WatchSession:
    """Middleware that every request of kopf passes through."""

    watch_filter: WatchFilter
    watches: Watches

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request, and rewrite the answer to a list or a watch."""
        path = request.url.path
        if path.rpartition("/")[2] not in _PLURALS:
            return await handler(request)  # discovery
        if request.url.query.get("watch") == "true":
            return await self._watch(request, handler, path)
        return await self._list(request, handler, path)

    async def _list(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType, path: str
    ) -> aiohttp.ClientResponse:
        response = await handler(request)
        if response.status in _REFUSED:
            self.watches.on_forbidden(path, response.status)
            await pretend_empty_list(response)
        elif response.status == 200:
            await empty_list(response)
            self.watches.on_list(path)
        return response

    async def _watch(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType, path: str
    ) -> aiohttp.ClientResponse:
        while (response := await handler(request)).status in _REFUSED:
            self.watches.on_forbidden(path, response.status)
            response.close()
            await asyncio.sleep(FORBIDDEN_RETRY_SECONDS)
        if response.status == 200:
            self.watches.on_open(path)
            filter_watch(response, lambda lines: self._filter(path, lines))
        return response

    def _filter(self, path: str, lines: list[bytes]) -> list[bytes]:
        self.watches.on_data(path)
        return self.watch_filter.filter_lines(lines)
