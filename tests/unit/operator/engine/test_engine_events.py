import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_builders import JOB, NAMESPACE, Raw
from engine_world import KEY, Operator, World, live
from ktrdr_api import names
from ktrdr_client.cluster import PODS, TRAINING_JOBS
from ktrdr_operator.handlers import Handlers
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.watch_filter import WatchFilter

Event = dict[str, Any]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktrdr_operator")


class Watch:
    """What a perfect watch would have said; the test decides what of it arrives, and when."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events: list[Event] = []
        self._seen: dict[str, Raw] = {}

    def look(self) -> None:
        """Note what has changed since the last look."""
        cluster = self.world.cluster
        found = [*cluster.read_all(TRAINING_JOBS), *cluster.read_all(PODS)]
        now = {raw["metadata"]["uid"]: raw for raw in found}
        for uid, raw in now.items():
            if uid not in self._seen:
                self.events.append({"type": "ADDED", "object": raw})
            elif raw != self._seen[uid]:
                self.events.append({"type": "MODIFIED", "object": raw})
        for uid in self._seen.keys() - now.keys():
            self.events.append({"type": "DELETED", "object": self._seen[uid]})
        self._seen = now


def listen(operator: Operator) -> Handlers:
    """The operator's own event handlers."""
    metrics = Metrics()
    watch_filter = WatchFilter(
        operator.store, metrics, operator.world.monotonic, lambda _: None, asyncio.Event()
    )
    return Handlers(operator.store, operator.queue, metrics, watch_filter)


async def deliver(handlers: Handlers, event: Event) -> None:
    is_pod = "kind" not in event["object"] or event["object"]["kind"] != names.KIND
    await (handlers.on_pod if is_pod else handlers.on_job)(event)  # type: ignore[arg-type] # kopf's TypedDict


actions = st.lists(
    st.one_of(
        st.sampled_from(["work", "step", "relist", "restart", "kill pod", "cancel"]),
        st.integers(min_value=0, max_value=40),  # an event, perhaps again, perhaps out of order
    ),
    max_size=40,
)


async def survive(steps: list[str | int], script: dict[int, str]) -> World:
    """Live through the steps, then through a quiet time with full lists."""
    world = World(script)
    world.submit()
    watch, operator = Watch(world), Operator(world)
    handlers = listen(operator)
    for step in steps:
        watch.look()
        if step == "restart":
            operator = Operator(world)
            handlers = listen(operator)
        elif isinstance(step, int):
            for event in watch.events[step : step + 1]:
                await deliver(handlers, event)
        elif step == "work":
            await operator.work()
        else:
            {
                "step": world.step,
                "relist": operator.relist,
                "kill pod": world.kill_pods,
                "cancel": world.cancel,
            }[step]()
    await live(world, operator)
    return world


@settings(max_examples=120, deadline=None)
@given(actions, st.sampled_from(["succeed", "fail"]))
def test_events_lost_repeated_or_out_of_order_change_no_end(
    steps: list[str | int], first: str
) -> None:
    world = asyncio.run(survive(steps, {1: first}))
    status = world.status()
    cancelled = world.job()["spec"].get("cancel", False)
    want = ("Cancelled", "Succeeded") if cancelled else ("Succeeded",)
    assert status["phase"] in want
    assert status.get("retries", 0) <= (first == "fail")
    assert world.attempts == list(range(1, status["attempt"] + 1))
    assert world.alive() == []


async def test_events_in_order_need_no_list() -> None:
    world = World({1: "fail"})
    world.submit()
    watch, operator = Watch(world), Operator(world)
    handlers, delivered = listen(operator), 0
    for _ in range(60):
        watch.look()
        for event in watch.events[delivered:]:
            await deliver(handlers, event)
        delivered = len(watch.events)
        await operator.work()
        if world.is_finished():
            break
        world.step()
    assert world.end()[:2] == ("Succeeded", "Completed")
    assert world.attempts == [1, 2]


@pytest.mark.parametrize("cancel", [False, True])
async def test_events_of_a_dead_job_bring_it_back_until_the_next_list_at_most(cancel: bool) -> None:
    world = World({1: "stay"})
    world.submit(cancel=cancel)
    watch, operator = Watch(world), Operator(world)
    handlers = listen(operator)
    operator.relist()
    await operator.work()
    watch.look()
    world.delete_job()
    watch.look()
    for event in reversed(watch.events):
        await deliver(handlers, event)
    await operator.work()
    operator.relist()
    await operator.work()
    world.step()
    assert world.alive() == []
    assert world.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is None
    assert KEY not in operator.store.jobs
