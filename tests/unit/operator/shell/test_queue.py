import asyncio
import re
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import virtual_time
from ktrdr_operator.queue import Priority, WorkQueue
from virtual_time import VirtualTimeLoop, elapse, in_virtual_time

STOP, RECONCILE, STATUS_ONLY = Priority
Work = Callable[[str, float], Awaitable[None]]


def dice(seed: int = 0) -> Random:
    return Random(seed)  # noqa: S311 - the same jitter in every run


def new_queue() -> WorkQueue[str]:
    return WorkQueue(clock=asyncio.get_running_loop().time, random=dice())


class Workers:
    """Running workers that record what they get; the outcome of a key is up to the test."""

    def __init__(self, queue: WorkQueue[str], count: int = 1, work: Work | None = None) -> None:
        self.queue, self._work = queue, work
        self.got: list[tuple[str, float]] = []
        """Keys, and how long each has waited."""
        self.times: list[float] = []
        self._task = asyncio.create_task(queue.run(count, self._record))

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.got]

    async def _record(self, key: str, waited: float) -> None:
        self.got.append((key, waited))
        self.times.append(virtual_time.now())
        if self._work is not None:
            await self._work(key, waited)

    async def stop(self) -> None:
        await virtual_time.stop(self._task)


async def processed(queue: WorkQueue[str]) -> list[tuple[str, float]]:
    """What one worker gets from the keys that are waiting now."""
    workers = Workers(queue)
    await elapse(0)
    await workers.stop()
    return workers.got


async def order(queue: WorkQueue[str]) -> list[str]:
    return [key for key, _ in await processed(queue)]


@in_virtual_time
async def test_queue_of_many_events_about_one_key_works_once() -> None:
    queue = new_queue()
    queue.add("a")
    await elapse(2)
    for _ in range(100):
        queue.add("a")
    queue.add("b")
    assert (len(queue), queue.adds) == (2, 2)
    assert await processed(queue) == [("a", 2.0), ("b", 0.0)]
    assert len(queue) == 0


@in_virtual_time
async def test_queue_takes_urgent_keys_first_and_keeps_their_waiting_time() -> None:
    queue = new_queue()
    for key in ("a", "b", "c"):
        queue.add(key)
    await elapse(5)
    queue.add("c", STOP)
    queue.add("d", STOP)
    queue.add("c")
    assert await processed(queue) == [("c", 5.0), ("d", 0.0), ("a", 5.0), ("b", 5.0)]


@in_virtual_time
async def test_queue_key_that_is_added_again_keeps_its_place() -> None:
    queue = new_queue()
    for key in ("a", "b", "c"):
        queue.add(key)
    for _ in range(10):
        queue.add("a")
    assert await order(queue) == ["a", "b", "c"]


@in_virtual_time
async def test_queue_waiting_key_with_many_events_is_not_starved_by_new_keys() -> None:
    queue = new_queue()
    for key in ("a", "b", "busy"):
        queue.add(key)

    async def add_more(key: str, _: float) -> None:
        queue.add(f"{key}+")
        queue.add("busy")
        await asyncio.sleep(1)

    workers = Workers(queue, work=add_more)
    await elapse(5)
    await workers.stop()
    assert workers.keys[:4] == ["a", "b", "busy", "a+"]


@in_virtual_time
async def test_queue_status_only_key_is_delayed_but_not_starved() -> None:
    queue = new_queue()
    for number in range(5):
        queue.add(f"status-{number}", STATUS_ONLY)
        queue.add(f"act-{number}")
    queue.add("stop", STOP)
    queue.add("status-4")
    assert await order(queue) == [
        *("stop", "act-0", "act-1", "act-2", "status-0"),
        *("act-3", "act-4", "status-4", "status-1", "status-2", "status-3"),
    ]


@in_virtual_time
async def test_queue_status_only_key_is_not_starved_by_stops_at_every_fourth_turn() -> None:
    queue = new_queue()
    for number in range(30):
        queue.add(f"act-{number}")
    queue.add("status", STATUS_ONLY)
    turns = 0

    async def add_stops(_: str, __: float) -> None:
        nonlocal turns
        turns += 1
        if turns % 4 == 3:
            queue.add(f"stop-{turns}", STOP)

    workers = Workers(queue, work=add_stops)
    await elapse(0)
    await workers.stop()
    assert workers.keys.index("status") <= 5


@in_virtual_time
async def test_queue_status_only_key_waits_for_three_others_however_many_came_before() -> None:
    queue = new_queue()
    for number in range(10):
        queue.add(f"act-{number}")

    async def add_status(key: str, _: float) -> None:
        if key == "act-4":
            queue.add("status", STATUS_ONLY)

    workers = Workers(queue, work=add_status)
    await elapse(0)
    await workers.stop()
    assert workers.keys.index("status") == 8


@in_virtual_time
async def test_queue_key_added_while_in_work_runs_again_and_never_twice_concurrently() -> None:
    queue = new_queue()

    async def slow(_: str, __: float) -> None:
        await asyncio.sleep(10)

    workers = Workers(queue, 4, slow)
    queue.add("a")
    await elapse(4)
    for _ in range(3):
        queue.add("a", STOP)
    assert (workers.keys, queue.processing_seconds()) == (["a"], [4.0])
    await elapse(30)
    # The second run has waited since the event came, not since the first run ended.
    assert workers.got == [("a", 0.0), ("a", 6.0)]
    assert queue.adds == 2
    await workers.stop()


@in_virtual_time
async def test_queue_key_made_urgent_while_in_work_overtakes_when_it_comes_back() -> None:
    queue = new_queue()

    async def work(key: str, _: float) -> None:
        if key == "a" and workers.keys == ["a"]:
            queue.add("b")
            queue.add("a", STATUS_ONLY)
            queue.add("a", STOP)
            queue.add("a")

    queue.add("a")
    workers = Workers(queue, work=work)
    await elapse(0)
    await workers.stop()
    assert workers.keys == ["a", "a", "b"]


@in_virtual_time
async def test_queue_delayed_key_is_added_once_at_its_earliest_time() -> None:
    queue = new_queue()
    for seconds in (60, 10, 30):
        queue.add_after("a", seconds)
    assert len(queue) == 0
    began, workers = virtual_time.now(), Workers(queue)
    await elapse(1000)
    assert [time - began for time in workers.times] == [10]
    assert workers.got == [("a", 0.0)]
    await workers.stop()


@in_virtual_time
async def test_queue_wakes_an_idle_worker_for_a_key_delayed_less_than_those_before() -> None:
    queue = new_queue()
    began, workers = virtual_time.now(), Workers(queue, 2)
    queue.add_after("z", 3600)
    await elapse(1)
    queue.add_after("a", 2)
    await elapse(1)
    queue.add_after("b", 0.5)
    await elapse(4000)
    await workers.stop()
    assert [(key, time - began) for key, time in zip(workers.keys, workers.times, strict=True)] == [
        ("b", 2.5),
        ("a", 3),
        ("z", 3600),
    ]


@in_virtual_time
async def test_queue_time_that_was_replaced_by_an_earlier_one_does_not_count_later() -> None:
    queue = new_queue()
    began, workers = virtual_time.now(), Workers(queue)
    queue.add_after("a", 60)
    queue.add_after("a", 10)
    queue.add_after("b", 40)
    await elapse(20)
    queue.add_after("a", 300)
    await elapse(1000)
    await workers.stop()
    assert [time - began for time in workers.times] == [10, 40, 320]


@in_virtual_time
async def test_queue_takes_keys_between_two_runs_of_its_workers() -> None:
    queue = new_queue()
    await Workers(queue, 3).stop()
    workers = Workers(queue, 3)
    await elapse(1)
    await workers.stop()
    queue.add("a")
    queue.add_after("b", 1)
    await elapse(1)
    assert await order(queue) == ["a", "b"]


PLACES = {
    STOP: ["STOP", "key", "RECONCILE", "STATUS_ONLY"],
    RECONCILE: ["STOP", "RECONCILE", "key", "STATUS_ONLY"],
    STATUS_ONLY: ["STOP", "RECONCILE", "STATUS_ONLY", "key"],
}


@pytest.mark.parametrize("priority", Priority)
@in_virtual_time
async def test_queue_delayed_key_comes_with_its_priority(priority: Priority) -> None:
    queue = new_queue()
    queue.add_after("key", 50, priority)
    blocked = Workers(queue, work=lambda *_: asyncio.sleep(100))
    queue.add("blocks")
    await elapse(0)
    for other in Priority:
        queue.add(other.name, other)
    await elapse(1000)
    await blocked.stop()
    assert blocked.keys[1:] == PLACES[priority]


@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize("how", ["add_rate_limited", "add_after"])
@in_virtual_time
async def test_queue_retried_key_keeps_the_priority_with_which_it_was_taken(
    priority: Priority, how: str
) -> None:
    queue = new_queue()

    async def fail_once(key: str, _: float) -> None:
        if key == "key" and workers.keys.count("key") == 1:
            if how == "add_after":
                queue.add_after("key", 0.01)
            else:
                queue.add_rate_limited("key")
        if key == "blocks":
            await asyncio.sleep(1)

    queue.add("key", priority)
    workers = Workers(queue, work=fail_once)
    await elapse(0)
    queue.add("blocks", STOP)
    await elapse(0)
    for other in Priority:
        queue.add(other.name, other)
    await elapse(10)
    await workers.stop()
    assert workers.keys[:2] == ["key", "blocks"]
    assert workers.keys[2:] == PLACES[priority]


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [
        ((5, STOP), (1, STATUS_ONLY), (1, STOP)),
        ((1, STATUS_ONLY), (5, STOP), (1, STOP)),
        ((1, STOP), (5, STATUS_ONLY), (1, STOP)),
        ((5, STATUS_ONLY), (1, None), (1, STATUS_ONLY)),
    ],
)
@in_virtual_time
async def test_queue_key_delayed_twice_gets_the_earlier_time_and_the_better_priority(
    first: tuple[float, Priority | None],
    second: tuple[float, Priority | None],
    want: tuple[float, Priority],
) -> None:
    queue = new_queue()
    for seconds, priority in (first, second):
        queue.add_after("key", seconds, priority)
    await elapse(want[0])
    for other in Priority:
        queue.add(other.name, other)
    # The delayed key is added when the first worker looks, hence behind those of its priority.
    assert await order(queue) == PLACES[want[1]]


@in_virtual_time
async def test_queue_key_delayed_while_it_waits_keeps_the_priority_with_which_it_waits() -> None:
    queue = new_queue()
    queue.add("key", STOP)
    queue.add_after("key", 5)
    assert await order(queue) == ["key"]
    await elapse(5)
    for other in Priority:
        queue.add(other.name, other)
    assert await order(queue) == PLACES[STOP]


def test_queue_backoff_doubles_to_a_cap_and_forget_resets_it() -> None:
    queue = WorkQueue[str](clock=lambda: 0.0, random=dice())
    assert queue.failures("a") == 0
    delays = [queue.add_rate_limited("a") for _ in range(40)]
    ceilings = [min(60.0, 0.05 * 2**n) for n in range(40)]
    for delay, ceiling in zip(delays, ceilings, strict=True):
        assert ceiling / 2 <= delay <= ceiling
    assert (queue.failures("a"), queue.failures("b"), queue.retries) == (40, 0, 40)
    queue.forget("a")
    assert queue.failures("a") == 0
    assert queue.add_rate_limited("a") <= 0.05


def test_queue_backoff_has_jitter_so_that_keys_failing_together_return_apart() -> None:
    queue = WorkQueue[str](clock=lambda: 0.0)
    keys = [f"job-{number}" for number in range(500)]
    for _ in range(9):
        delays = [queue.add_rate_limited(key) for key in keys]
    ceiling = 0.05 * 2**8  # 12.8 s
    quarters = [
        sum(quarter <= (delay / ceiling - 0.5) * 8 < quarter + 1 for delay in delays)
        for quarter in range(4)
    ]
    assert sum(quarters) == 500
    assert min(quarters) > 70  # of 125 expected in each quarter of the range


def test_queue_backoff_of_two_operators_differs() -> None:
    one, two = (WorkQueue[str](clock=lambda: 0.0) for _ in range(2))
    assert [one.add_rate_limited("a") for _ in range(5)] != [
        two.add_rate_limited("a") for _ in range(5)
    ]


@in_virtual_time
async def test_queue_failing_key_does_not_delay_others() -> None:
    queue = new_queue()

    async def work(key: str, _: float) -> None:
        if key == "bad":
            queue.add_rate_limited(key)

    queue.add("bad")
    queue.add("good")
    workers = Workers(queue, work=work)
    await elapse(0)
    assert workers.keys == ["bad", "good"]
    await elapse(600)
    await workers.stop()
    # 0.05 s doubled to 60 s: 11 tries in the first minute, then one or two per minute.
    assert 15 <= workers.keys.count("bad") <= 33


def callbacks_per_key(workers: int, keys: int = 50) -> float:
    async def count() -> float:
        queue = new_queue()
        running = Workers(queue, workers)
        await elapse(0)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        before = loop.callbacks
        for number in range(keys):
            queue.add(str(number))
            while len(running.got) <= number:
                await asyncio.sleep(0)
        cost = (loop.callbacks - before) / keys
        await running.stop()
        return cost

    return virtual_time.run(count())


def test_queue_key_wakes_one_worker_however_many_are_idle() -> None:
    assert callbacks_per_key(128) <= callbacks_per_key(2) + 0.5


@in_virtual_time
async def test_queue_uses_all_workers() -> None:
    queue = new_queue()
    workers = Workers(queue, 24, lambda *_: asyncio.sleep(1))
    await elapse(1)
    for number in range(48):
        queue.add(str(number))
    began = virtual_time.now()
    await elapse(5)
    await workers.stop()
    assert [time - began for time in workers.times] == [0] * 24 + [1] * 24


actions = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([*Priority, "after", "retry", "forget"]),
        st.sampled_from([0, 0.5, 3]),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(actions, st.integers(1, 3), st.integers(0, 5))
def test_queue_every_key_is_processed_after_its_latest_event_and_never_twice_concurrently(
    steps: list[tuple[str, Priority | str, float]], workers: int, failures: int
) -> None:
    async def story() -> None:
        queue = new_queue()
        in_work: set[str] = set()
        started: dict[str, float] = {}
        left = dict.fromkeys("abc", failures)

        async def work(key: str, waited: float) -> None:
            assert key not in in_work
            assert waited >= 0
            in_work.add(key)
            started[key] = virtual_time.now()
            await asyncio.sleep(0.7)
            in_work.discard(key)
            left[key] -= 1
            if left[key] >= 0:
                queue.add_rate_limited(key)
            else:
                queue.forget(key)

        task = asyncio.create_task(queue.run(workers, work))
        latest: dict[str, float] = {}
        for key, action, pause in steps:
            latest[key] = virtual_time.now()
            match action:
                case Priority():
                    queue.add(key, action)
                case "after":
                    queue.add_after(key, 5)
                case "retry":
                    queue.add_rate_limited(key)
                case _:
                    queue.forget(key)
                    del latest[key]
            await asyncio.sleep(pause)
        await elapse(1000)
        assert not task.done()
        assert (len(queue), queue.processing_seconds()) == (0, [])
        assert all(started[key] >= time for key, time in latest.items())
        await virtual_time.stop(task)

    virtual_time.run(story())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(Priority)), max_size=40))
def test_queue_order_follows_priority_then_arrival(adds: list[tuple[int, Priority]]) -> None:
    async def story() -> None:
        queue = new_queue()
        best: dict[str, Priority] = {}
        for number, priority in adds:
            key = str(number)
            queue.add(key, priority)
            if key not in best or priority < best[key]:
                best.pop(key, None)  # a better priority: behind those that have it already
                best[key] = priority
        got = await order(queue)
        for priority in Priority:
            of_priority = [key for key in got if best[key] == priority]
            assert of_priority == [key for key, value in best.items() if value == priority]
        stops = sum(priority == STOP for priority in best.values())
        assert all(best[key] == STOP for key in got[:stops])
        # Of the rest, at most three RECONCILE keys come before a waiting STATUS_ONLY key.
        rest = "".join(str(best[key].value) for key in got[stops:])
        assert not re.search("1111.*2", rest)

    virtual_time.run(story())
