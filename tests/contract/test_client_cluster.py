"""What the operator takes for granted of the API server, asked of a real one."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from ktrdr_client.cluster import (
    CONFIG_MAPS,
    LEASES,
    NAMESPACES,
    TRAINING_JOBS,
    AlreadyExists,
    Cluster,
    Conflict,
    Invalid,
    NotFound,
    Raw,
)
from ktrdr_operator.events import EventRecorder
from ktrdr_operator.leader import Leader
from ktrdr_operator.metrics import Metrics
from kube import Kube, training_job

IDLE: Raw = {"strategy": {"configMapKeyRef": {"name": "none", "key": "none"}}}
"""A job that an operator, should one serve this cluster, leaves waiting."""

pytestmark = pytest.mark.usefixtures("crd")


@pytest.fixture
async def client(kube: Kube) -> AsyncIterator[Cluster]:
    cluster = await Cluster.connect(kubeconfig=kube.kubeconfig)
    yield cluster
    await cluster.close()


def config_map(kube: Kube, name: str = "c", **data: str) -> Raw:
    metadata = {"namespace": kube.namespace, "name": name, "labels": {"test": "yes"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


async def test_client_reads_what_it_wrote_and_lists_it(client: Cluster, kube: Kube) -> None:
    created = await client.create(CONFIG_MAPS, config_map(kube, k="ü"))
    assert await client.get(CONFIG_MAPS, kube.namespace, "c") == created
    found, version = await client.list(CONFIG_MAPS, kube.namespace, label_selector="test")
    assert found == [created]
    assert int(version) >= int(created["metadata"]["resourceVersion"])
    with pytest.raises(AlreadyExists):
        await client.create(CONFIG_MAPS, config_map(kube))
    assert await client.get(NAMESPACES, None, kube.namespace) is not None
    assert await client.get(CONFIG_MAPS, kube.namespace, "none") is None


async def test_client_apply_repeated_leaves_resource_version(client: Cluster, kube: Kube) -> None:
    first = await client.apply(CONFIG_MAPS, config_map(kube, a="1", b="2"))
    assert await client.apply(CONFIG_MAPS, config_map(kube, a="1", b="2")) == first
    second = await client.apply(CONFIG_MAPS, config_map(kube, a="1"))
    assert second["data"] == {"a": "1"}


async def test_client_apply_with_stale_version_or_uid_conflicts(
    client: Cluster, kube: Kube
) -> None:
    first = await client.apply(CONFIG_MAPS, config_map(kube, a="1"))
    await client.apply(CONFIG_MAPS, config_map(kube, a="2"))
    for precondition in ({"resourceVersion": first["metadata"]["resourceVersion"]}, {"uid": "x"}):
        stale = config_map(kube, a="3")
        stale["metadata"].update(precondition)
        with pytest.raises(Conflict):
            await client.apply(CONFIG_MAPS, stale)


async def test_client_delete_spares_an_object_with_another_uid(client: Cluster, kube: Kube) -> None:
    created = await client.create(CONFIG_MAPS, config_map(kube))
    namespace, uid = kube.namespace, created["metadata"]["uid"]
    assert not await client.delete(CONFIG_MAPS, namespace, "c", uid=str(uuid.uuid4()))
    assert await client.delete(CONFIG_MAPS, namespace, "c", uid=uid)
    assert not await client.delete(CONFIG_MAPS, namespace, "c", uid=uid)


async def test_client_delete_of_a_changed_object_spares_it(client: Cluster, kube: Kube) -> None:
    first = await client.apply(CONFIG_MAPS, config_map(kube, a="1"))
    second = await client.apply(CONFIG_MAPS, config_map(kube, a="2"))
    uid = first["metadata"]["uid"]
    for obj, want in ((first, False), (second, True)):
        version = obj["metadata"]["resourceVersion"]
        deleted = await client.delete(
            CONFIG_MAPS, kube.namespace, "c", uid=uid, resource_version=version
        )
        assert deleted is want


async def test_client_pages_are_as_the_list(client: Cluster, kube: Kube) -> None:
    for number in range(60):  # more than the first page
        await client.create(CONFIG_MAPS, config_map(kube, name=f"c{number}"))
    found, _ = await client.list(CONFIG_MAPS, kube.namespace, label_selector="test")
    pages = [
        page async for page in client.pages(CONFIG_MAPS, kube.namespace, label_selector="test")
    ]
    assert [len(page) for page in pages] == [50, 10]
    assert [obj for page in pages for obj in page] == found
    selector = "metadata.name=c7"
    one, _ = await client.list(CONFIG_MAPS, kube.namespace, field_selector=selector)
    assert [obj["metadata"]["name"] for obj in one] == ["c7"]
    limited, _ = await client.list(CONFIG_MAPS, kube.namespace, limit=3)
    assert len(limited) == 3


async def test_client_patch_removes_a_field_that_another_manager_has_set_as_well(
    client: Cluster, kube: Kube
) -> None:
    job = kube.create(training_job(**IDLE))
    body = status(job, reportPeriodSeconds=2)
    await client.apply(TRAINING_JOBS, body, subresource="status")
    kube.run(
        "apply",
        "-f-",
        "--server-side",
        "--field-manager=x",
        "--subresource=status",
        stdin=json.dumps(body),
    )
    kept = await client.apply(TRAINING_JOBS, status(job), subresource="status")
    assert kept["status"]["reportPeriodSeconds"] == 2
    patch = {**body, "status": {"reportPeriodSeconds": None}}
    after = await client.patch(TRAINING_JOBS, patch, subresource="status")
    assert "reportPeriodSeconds" not in after["status"]
    patch["metadata"]["resourceVersion"] = job["metadata"]["resourceVersion"]
    with pytest.raises(Conflict):
        await client.patch(TRAINING_JOBS, patch, subresource="status")


def status(job: Raw, *, version: str = "", **fields: object) -> Raw:
    """A status to apply to a TrainingJob, in one version only if that is given."""
    metadata = {name: job["metadata"][name] for name in ("namespace", "name")}
    if version:
        metadata["resourceVersion"] = version
    return {
        "apiVersion": TRAINING_JOBS.api_version,
        "kind": TRAINING_JOBS.kind,
        "metadata": metadata,
        "status": {"observedGeneration": 1, **fields},
    }


async def test_client_status_apply_leaves_spec_and_metadata(client: Cluster, kube: Kube) -> None:
    before = kube.create(training_job(**IDLE))
    body = status(before, phase="Pending")
    after = await client.apply(TRAINING_JOBS, body, subresource="status")
    assert after["spec"] == before["spec"]
    assert after["status"]["phase"] == "Pending"
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    bad = status(after, observedGeneration=-2)
    with pytest.raises(Invalid, match="observedGeneration"):
        await client.apply(TRAINING_JOBS, bad, subresource="status")


async def test_client_status_of_an_older_version_is_refused(client: Cluster, kube: Kube) -> None:
    before = kube.create(training_job(**IDLE))
    old = before["metadata"]["resourceVersion"]
    await client.apply(TRAINING_JOBS, status(before, phase="Pending"), subresource="status")
    body = status(before, version=old, phase="Running")
    with pytest.raises(Conflict):
        await client.apply(TRAINING_JOBS, body, subresource="status")
    kube.run("delete", "trainingjobs.ktrdr.io", "job")
    with pytest.raises(NotFound):
        await client.apply(TRAINING_JOBS, body, subresource="status")
    kube.create(training_job(**IDLE))  # of the same name: the old job's status is not for it
    with pytest.raises(Conflict):
        await client.apply(TRAINING_JOBS, body, subresource="status")


async def test_client_creates_two_hundred_objects_cheaply(client: Cluster, kube: Kube) -> None:
    # Measured 0.7 ms of CPU each; four times that leaves room for a busy machine.
    began = time.process_time()
    await asyncio.gather(
        *(client.create(CONFIG_MAPS, config_map(kube, name=f"c{n}")) for n in range(200))
    )
    assert time.process_time() - began < 200 * 0.003


async def test_events_are_found_by_kubectl(client: Cluster, kube: Kube) -> None:
    job = kube.create(training_job(**IDLE))
    recorder = EventRecorder(client, Metrics(), lambda: datetime.now(UTC))
    task = asyncio.create_task(recorder.run())
    for message in ("first", "second"):
        recorder.record(job, "Warning", "ContractTest", message)
    lines: list[str] = []
    async with asyncio.timeout(10):
        while len(lines) < 2:
            told = await asyncio.to_thread(kube.run, "events", "--for", "trainingjobs.ktrdr.io/job")
            lines = [line for line in told.splitlines() if "ContractTest" in line]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [line.split()[-1] for line in lines] == ["first", "second"]
    assert "ContractTest" in kube.run("describe", "trainingjobs.ktrdr.io", "job")


async def test_lease_has_one_leader_and_changes_hands_on_release(
    client: Cluster, kube: Kube
) -> None:
    one, two = (
        Leader(client, kube.namespace, "lease", name, lambda: datetime.now(UTC), time.monotonic)
        for name in ("one", "two")
    )
    await one.acquire(lambda: None)
    tries = 0

    def beat() -> None:
        nonlocal tries
        tries += 1

    waiting = asyncio.create_task(two.acquire(beat))
    holding = asyncio.create_task(one.hold(lambda: None))
    await asyncio.sleep(5)
    assert not holding.done()
    assert not waiting.done()
    assert tries >= 2
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
    await one.release()
    await asyncio.wait_for(waiting, 4)
    lease = await client.get(LEASES, kube.namespace, "lease")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "two"
