from unittest.mock import ANY

import pytest

from ktrdr_client.cluster import (
    CONFIG_MAPS,
    EVENTS,
    PODS,
    TRAINING_JOBS,
    AlreadyExists,
    Conflict,
    Invalid,
    NotFound,
    Raw,
    Unreachable,
)
from ktrdr_client.testing import FakeCluster, Request

LOST = Unreachable(0, "ClientOSError", "reset")


def job(**fields: object) -> Raw:
    return {"metadata": {"namespace": "ns", "name": "j"}, "spec": {"a": 1}, **fields}


def status(**fields: object) -> Raw:
    return {"metadata": {"namespace": "ns", "name": "j"}, "status": fields}


async def test_fake_apply_of_same_object_twice_keeps_resource_version() -> None:
    cluster = FakeCluster()
    first = await cluster.apply(TRAINING_JOBS, job())
    assert await cluster.apply(TRAINING_JOBS, job()) == first
    changed = await cluster.apply(TRAINING_JOBS, job(spec={"a": 2}))
    assert changed["metadata"]["generation"] == 2
    assert changed["metadata"]["uid"] == first["metadata"]["uid"]
    assert changed["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]


async def test_fake_status_apply_keeps_fields_of_others_and_removes_own_previous_ones() -> None:
    cluster = FakeCluster()
    cluster.put(TRAINING_JOBS, job(status={"progress": {"step": 1}}))
    await cluster.apply(TRAINING_JOBS, status(phase="Pending", waiting={}), subresource="status")
    await cluster.apply(TRAINING_JOBS, status(phase="Running"), subresource="status")
    found = await cluster.get(TRAINING_JOBS, "ns", "j")
    assert found is not None
    assert found["status"] == {"progress": {"step": 1}, "phase": "Running"}
    assert found["spec"] == {"a": 1}
    assert found["metadata"]["generation"] == 1


async def test_fake_status_apply_to_missing_object_is_not_found() -> None:
    with pytest.raises(NotFound):
        await FakeCluster().apply(TRAINING_JOBS, status(phase="x"), subresource="status")


@pytest.mark.parametrize("precondition", ["uid", "resourceVersion"])
async def test_fake_apply_with_outdated_precondition_conflicts(precondition: str) -> None:
    cluster = FakeCluster()
    await cluster.create(TRAINING_JOBS, job())
    stale = job()
    stale["metadata"][precondition] = "other"
    with pytest.raises(Conflict):
        await cluster.apply(TRAINING_JOBS, stale)


async def test_fake_create_with_taken_name_raises_already_exists() -> None:
    cluster = FakeCluster()
    await cluster.create(PODS, job())
    with pytest.raises(AlreadyExists):
        await cluster.create(PODS, job())


async def test_fake_immutable_config_map_rejects_new_data() -> None:
    cluster = FakeCluster()
    await cluster.create(CONFIG_MAPS, job(data={"k": "1"}, immutable=True))
    with pytest.raises(Invalid):
        await cluster.apply(CONFIG_MAPS, job(data={"k": "2"}, immutable=True))


async def test_fake_delete_keeps_other_uid_and_waits_for_the_kubelet() -> None:
    cluster = FakeCluster()
    waiting = await cluster.create(PODS, job())
    uid = waiting["metadata"]["uid"]
    assert not await cluster.delete(PODS, "ns", "j", uid="other")
    cluster.put(PODS, {**waiting, "spec": {"nodeName": "n"}})
    assert await cluster.delete(PODS, "ns", "j", uid=uid)
    running = cluster.read(PODS, "ns", "j")
    assert running is not None
    assert "deletionTimestamp" in running["metadata"]
    cluster.remove(PODS, "ns", "j")
    assert not await cluster.delete(PODS, "ns", "j", uid=uid)


async def test_fake_delete_of_pod_without_node_removes_it() -> None:
    cluster = FakeCluster()
    pod = await cluster.create(PODS, job())
    assert await cluster.delete(PODS, "ns", "j", uid=pod["metadata"]["uid"])
    assert cluster.read_all(PODS) == []


async def test_fake_list_selects_by_namespace_and_label() -> None:
    cluster = FakeCluster()
    for namespace, labels in (("a", {"k": "1"}), ("a", {}), ("b", {"k": "1"})):
        name = f"{namespace}{len(labels)}"
        metadata = {"namespace": namespace, "name": name, "labels": labels}
        cluster.put(PODS, {"metadata": metadata})
    found, _ = await cluster.list(PODS, None, label_selector="k")
    assert [pod["metadata"]["name"] for pod in found] == ["a1", "b1"]
    found, _ = await cluster.list(PODS, "a", label_selector="k=1")
    assert [pod["metadata"]["name"] for pod in found] == ["a1"]


async def test_fake_list_selects_by_field_and_limits() -> None:
    cluster = FakeCluster()
    for name, uid in (("e1", "a"), ("e2", "b"), ("e3", "a")):
        metadata = {"namespace": "ns", "name": name}
        cluster.put(EVENTS, {"metadata": metadata, "involvedObject": {"uid": uid}})
    selector = "involvedObject.uid=a,metadata.namespace=ns"
    found, _ = await cluster.list(EVENTS, "ns", field_selector=selector)
    assert [event["metadata"]["name"] for event in found] == ["e1", "e3"]
    found, _ = await cluster.list(EVENTS, "ns", field_selector=selector, limit=1)
    assert [event["metadata"]["name"] for event in found] == ["e1"]
    assert await cluster.list(EVENTS, "ns", field_selector="reason=x") == ([], ANY)


async def test_fake_pages_have_the_state_at_the_first_request() -> None:
    cluster = FakeCluster(page_size=2)
    for name in "abc":
        cluster.put(PODS, {"metadata": {"namespace": "ns", "name": name}})
    seen: list[list[str]] = []
    async for page in cluster.pages(PODS, None):
        cluster.put(PODS, {"metadata": {"namespace": "ns", "name": "d"}})
        seen.append([pod["metadata"]["name"] for pod in page])
    assert seen == [["a", "b"], ["c"]]
    assert [request.method for request in cluster.requests] == ["list", "list"]
    cluster.fail_next("list", LOST, nth=2)
    with pytest.raises(Unreachable):
        assert [page async for page in cluster.pages(PODS, None)]
    assert [page async for page in cluster.pages(CONFIG_MAPS, None)] == [[]]


async def test_fake_patch_merges_and_removes_within_its_subresource() -> None:
    cluster = FakeCluster()
    first = cluster.put(TRAINING_JOBS, job(status={"a": {"x": 1, "y": 2}, "b": 3}))
    patch = status(a={"x": None}, b=None, c=4)
    after = await cluster.patch(TRAINING_JOBS, patch, subresource="status")
    assert after["status"] == {"a": {"y": 2}, "c": 4}
    assert after["spec"] == first["spec"]
    spec = {**status(ignored=True), "spec": {"a": None, "b": 1}}
    after = await cluster.patch(TRAINING_JOBS, spec)
    assert (after["spec"], after["metadata"]["generation"]) == ({"b": 1}, 2)
    assert after["status"] == {"a": {"y": 2}, "c": 4}
    patch["metadata"]["resourceVersion"] = first["metadata"]["resourceVersion"]
    with pytest.raises(Conflict):
        await cluster.patch(TRAINING_JOBS, patch, subresource="status")
    with pytest.raises(NotFound):
        await cluster.patch(PODS, patch)


async def test_fake_delete_with_other_version_keeps_the_object() -> None:
    cluster = FakeCluster()
    obj = await cluster.create(TRAINING_JOBS, job())
    uid, version = obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]
    assert not await cluster.delete(TRAINING_JOBS, "ns", "j", uid=uid, resource_version="0")
    assert await cluster.delete(TRAINING_JOBS, "ns", "j", uid=uid, resource_version=version)


@pytest.mark.parametrize(("after_effect", "want"), [(False, 0), (True, 1)])
async def test_fake_fault_fails_nth_call_before_or_after_its_effect(
    after_effect: bool, want: int
) -> None:
    cluster = FakeCluster()
    cluster.fail_next("create", LOST, resource=PODS, after_effect=after_effect, nth=2)
    await cluster.create(CONFIG_MAPS, job())
    first = job()
    first["metadata"]["name"] = "first"
    await cluster.create(PODS, first)
    with pytest.raises(Unreachable):
        await cluster.create(PODS, job())
    assert len(cluster.read_all(PODS)) == 1 + want
    assert cluster.requests[-1] == Request("create", "Pod", "j")
    assert len(cluster.requests) == 3
