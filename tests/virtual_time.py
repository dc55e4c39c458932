"""Event loop in which sleeping takes no time: for tests of delays, deadlines and rates.

When nothing can run, the clock of the loop jumps to the next timer. A test that needs an hour of
timers takes milliseconds, and two runs are equal. Only for code without I/O and threads.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
DAY_SECONDS = 86_400.0


class _JumpingSelector(selectors.SelectSelector):
    """Advances the clock of its loop instead of waiting."""

    loop: "VirtualTimeLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("deadlock: no task can run and no timer is set")
        if not ready and timeout:
            self.loop.now += timeout
        if self.loop.now > DAY_SECONDS:
            raise RuntimeError("a day has passed: the test waits for something that never happens")
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Loop with a clock of its own, which starts at 1,000 seconds."""

    now = 1000.0
    callbacks = 0
    """Callbacks scheduled to run immediately: what the loop has had to do so far."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self.callbacks += 1
        return super().call_soon(callback, *args, context=context)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorator of an asynchronous test: run it in virtual time."""

    @wraps(test)
    def run_test(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return run_test


def now() -> float:
    """Seconds on the clock of the running loop."""
    return asyncio.get_running_loop().time()


async def elapse(seconds: float) -> None:
    """Let everything happen that is due within this time, its end included."""
    await asyncio.sleep(seconds)
    for _ in range(20):
        await asyncio.sleep(0)


async def stop(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait for them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
