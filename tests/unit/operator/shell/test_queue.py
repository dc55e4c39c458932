import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_operator.queue import Priority, WorkQueue


class Clock:
    """Monotonic seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def dice() -> Random:
    return Random(0)  # noqa: S311 - the same jitter in every run


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock=clock, random=dice())


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def drained(queue: WorkQueue[str], *, workers: int = 1) -> list[tuple[str, float]]:
    """What the workers get when they run until nothing is left for now."""
    got: list[tuple[str, float]] = []

    async def work(key: str, waited: float) -> None:
        got.append((key, waited))

    await run_until_idle(queue, work, workers=workers)
    return got


async def run_until_idle(
    queue: WorkQueue[str], work: Callable[[str, float], Awaitable[None]], *, workers: int = 1
) -> None:
    task = asyncio.create_task(queue.run(workers, work))
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_queue_of_many_events_about_one_key_works_once(
    queue: WorkQueue[str], clock: Clock
) -> None:
    queue.add("a")
    clock.now += 2
    for _ in range(100):
        queue.add("a")
    queue.add("b")
    assert len(queue) == 2
    assert await drained(queue) == [("a", 2.0), ("b", 0.0)]
    assert len(queue) == 0


async def test_queue_takes_urgent_keys_first_and_keeps_their_waiting_time(
    queue: WorkQueue[str], clock: Clock
) -> None:
    for key in ("a", "b", "c"):
        queue.add(key)
    clock.now += 5
    queue.add("c", Priority.STOP)
    queue.add("d", Priority.STOP)
    queue.add("c")
    assert await drained(queue) == [("c", 5.0), ("d", 0.0), ("a", 5.0), ("b", 5.0)]


async def test_queue_tells_after_it_has_acted_but_does_not_forget(queue: WorkQueue[str]) -> None:
    for number in range(4):
        queue.add(f"tell-{number}", Priority.STATUS_ONLY)
        queue.add(f"act-{number}")
    queue.add("stop", Priority.STOP)
    queue.add("tell-3")
    got = [key for key, _ in await drained(queue)]
    assert got[:4] == ["stop", "act-0", "act-1", "tell-0"]
    assert got[4:] == ["act-2", "act-3", "tell-3", "tell-1", "tell-2"]


async def test_queue_key_added_while_in_work_runs_again_and_never_twice_at_once(
    queue: WorkQueue[str],
) -> None:
    running: set[str] = set()
    runs: list[str] = []
    release = asyncio.Event()

    async def work(key: str, _: float) -> None:
        assert key not in running
        running.add(key)
        runs.append(key)
        await release.wait()
        running.remove(key)

    task = asyncio.create_task(queue.run(4, work))
    queue.add("a")
    await settle()
    for _ in range(3):
        queue.add("a", Priority.STOP)
    await settle()
    assert runs == ["a"]
    release.set()
    await settle()
    assert runs == ["a", "a"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_queue_key_made_urgent_while_in_work_overtakes_when_it_comes_back(
    queue: WorkQueue[str],
) -> None:
    got: list[str] = []

    async def work(key: str, _: float) -> None:
        got.append(key)
        if got == ["a"]:
            queue.add("b")
            queue.add("a", Priority.STOP)

    queue.add("a")
    await run_until_idle(queue, work)
    assert got == ["a", "a", "b"]


async def test_queue_delayed_key_comes_when_due_and_earlier_appointment_wins(
    queue: WorkQueue[str], clock: Clock
) -> None:
    queue.add_after("a", 60)
    queue.add_after("a", 10)
    queue.add_after("a", 30)
    assert await drained(queue) == []
    clock.now += 10
    assert [key for key, _ in await drained(queue)] == ["a"]
    clock.now += 100
    assert await drained(queue) == []


async def test_queue_wakes_a_sleeping_worker_for_a_delayed_key() -> None:
    queue = WorkQueue[str](clock=asyncio.get_running_loop().time)
    done = asyncio.Event()

    async def work(key: str, _: float) -> None:
        assert key == "a"
        done.set()

    task = asyncio.create_task(queue.run(2, work))
    queue.add_after("z", 3600)
    await settle()
    queue.add_after("a", 0.02)
    await asyncio.wait_for(done.wait(), 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_queue_retry_backs_off_to_a_cap_and_forget_resets(queue: WorkQueue[str]) -> None:
    delays = [queue.retry("a") for _ in range(40)]
    ceilings = [min(60.0, 0.05 * 2**n) for n in range(40)]
    for delay, ceiling in zip(delays, ceilings, strict=True):
        assert ceiling / 2 <= delay <= ceiling
    queue.forget("a")
    assert queue.retry("a") <= 0.05


async def test_queue_failing_key_does_not_delay_others(queue: WorkQueue[str], clock: Clock) -> None:
    got: list[str] = []

    async def work(key: str, _: float) -> None:
        got.append(key)
        if key == "bad":
            queue.retry(key)

    queue.add("bad")
    queue.add("good")
    await run_until_idle(queue, work)
    assert got == ["bad", "good"]
    clock.now += 1
    await run_until_idle(queue, work)
    assert got == ["bad", "good", "bad"]


actions = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([*Priority.__members__, "after", "retry"])),
    max_size=30,
)


@given(actions)
def test_queue_whatever_is_added_is_worked_on_once_at_the_latest_due_time(
    steps: list[tuple[str, str]],
) -> None:
    clock = Clock()
    queue = WorkQueue[str](clock=clock, random=dice())
    for key, action in steps:
        match action:
            case "STOP" | "RECONCILE" | "STATUS_ONLY":
                queue.add(key, Priority[action])
            case "after":
                queue.add_after(key, 5)
            case "retry":
                queue.retry(key)
    clock.now += 1000
    got = [key for key, _ in asyncio.run(drained(queue, workers=2))]
    assert set(got) == {key for key, _ in steps}
    assert all(got.count(key) <= 2 for key in got)
    assert asyncio.run(drained(queue)) == []
