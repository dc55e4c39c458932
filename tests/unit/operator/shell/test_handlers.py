import asyncio
from typing import Any

import kopf

from ktrdr_client.cluster import Raw
from ktrdr_operator.handlers import Handlers, _EveryTask, kopf_settings
from ktrdr_operator.intake import Intake
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.store import JobKey, Store

KEY = JobKey("ns", "j")


def event(kind: str | None, obj: Raw) -> kopf.RawEvent:
    return kopf.RawEvent(type=kind, object=obj)  # type: ignore[typeddict-item]


def metadata(name: str, **fields: Any) -> Raw:
    return {"namespace": "ns", "name": name, "uid": name, "resourceVersion": "1", **fields}


async def test_handlers_take_events_that_reach_kopf() -> None:
    store, queue = Store(), WorkQueue[JobKey](clock=lambda: 0.0)
    handlers = Handlers(Intake(store, queue))
    await handlers.on_job(event(None, {"metadata": metadata("j", generation=1)}))
    assert (list(store.jobs), len(queue)) == ([KEY], 1)
    await handlers.on_pod(event("ADDED", {"metadata": metadata("p", labels={"ktrdr.io/job": "j"})}))
    assert [view.name for view in store.pods_of(KEY)] == ["p"]


def test_kopf_settings_never_write_nor_scan() -> None:
    settings = kopf_settings()
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert list(settings.watching.label_selectors.values()) == ["ktrdr.io/job"]
    assert settings.watching.chunk_size == 1
    assert settings.watching.inactivity_timeout == 70


async def test_every_task_contains_a_task_that_starts_later() -> None:
    ignored = _EveryTask()
    task = asyncio.create_task(asyncio.sleep(0))
    assert task in ignored
    assert {task} <= set(ignored)
    assert len(ignored) == 2
    await task
