"""Watch stream: rewrites answers to list and watch requests while another HTTP client reads them.

kopf reads a list with `json()` and a watch with `content.iter_chunked()`; both read the response's
`content`, which is replaced here. Only public attributes of aiohttp are used. Called by the
operator's `watch_session`; `tests/contract/test_watch_filter.py` proves it with the real kopf.
"""

from collections.abc import AsyncIterator, Callable
from typing import cast

import aiohttp
import orjson


class _Content:
    """Content of a response; methods that are not replaced are those of the original."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __getattr__(self, name: str) -> object:
        return getattr(self._content, name)


class _FilteredLines(_Content):
    """Content of a watch; a filter receives every line and decides which are passed on."""

    def __init__(
        self, content: aiohttp.StreamReader, filter_lines: Callable[[list[bytes]], list[bytes]]
    ) -> None:
        super().__init__(content)
        self._filter_lines = filter_lines

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Yield complete lines that the filter passes on; kopf reads a watch only this way."""
        rest = b""
        async for data in self._content.iter_chunked(size):
            *lines, rest = (rest + data).split(b"\n")
            if passed := self._filter_lines([line for line in lines if line]):
                yield b"\n".join(passed) + b"\n"


class _Body(_Content):
    """Content with a body that replaces the original one."""

    def __init__(self, content: aiohttp.StreamReader, body: bytes) -> None:
        super().__init__(content)
        self._body = body

    async def read(self, _size: int = -1) -> bytes:
        """Return the whole body, once."""
        body, self._body = self._body, b""
        return body


def filter_watch(
    response: aiohttp.ClientResponse, filter_lines: Callable[[list[bytes]], list[bytes]]
) -> None:
    """Pass the lines of a watch through a filter.

    Args:
        response: the answer to a watch request.
        filter_lines: called with complete lines that arrived together; returns those to pass on.
    """
    lines = _FilteredLines(response.content, filter_lines)
    response.content = cast(aiohttp.StreamReader, lines)


async def empty_list(response: aiohttp.ClientResponse) -> None:
    """Remove the items of a list and its continue token; its resource version stays.

    Args:
        response: the answer to a list request, preferably with `limit=1`.
    """
    answer = orjson.loads(await response.content.read())
    version = answer["metadata"]["resourceVersion"]
    body = {**answer, "metadata": {"resourceVersion": version}, "items": []}
    response.content = cast(aiohttp.StreamReader, _Body(response.content, orjson.dumps(body)))


async def pretend_empty_list(response: aiohttp.ClientResponse) -> None:
    """Turn a rejected list into an empty one without a resource version.

    A watch without a resource version begins with all objects that exist.
    """
    await response.content.read()
    body = b'{"metadata": {}, "items": []}'
    response.content = cast(aiohttp.StreamReader, _Body(response.content, body))
    response.status = 200
