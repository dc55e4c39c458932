from typing import Any

import orjson
import pytest

import engine_builders
from engine_builders import JOB, NAMESPACE, UID, Raw, ended_pod, job_raw, pod_raw, recorded
from engine_builders import progress as progress_raw
from ktrdr_api.conditions import ConditionType
from ktrdr_operator.projections import LAST_APPLIED, known_job
from ktrdr_operator.store import DELETED_PODS_PER_JOB, JobKey, Store

KEY = JobKey(NAMESPACE, JOB)
FINISHED = recorded(1, ConditionType.COMPLETE, ConditionType.FINISHED, phase="Succeeded")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(clock)


def at(version: int, raw: Raw) -> Raw:
    """An object in another version."""
    return {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(version)}}


def job(version: int = 1, uid: str = UID, **fields: Any) -> Raw:
    return at(version, job_raw(uid=uid, **fields))


def names_of(store: Store) -> list[tuple[str, bool]]:
    return [(view.name, view.gone) for view in store.pods_of(KEY)]


def test_store_returns_the_latest_version_of_what_decisions_need(
    store: Store,
) -> None:
    raw = job(7, status=recorded(progress=progress_raw()))
    full = {**raw, "metadata": {**raw["metadata"], "managedFields": [{"manager": "x" * 99}]}}
    full["metadata"]["annotations"] = {LAST_APPLIED: "{}" * 99, "a": "b"}
    store.put_job(full)
    raw["metadata"]["annotations"] = {"a": "b"}
    assert store.job_raw(KEY) == raw
    known = store.jobs[KEY]
    assert known.size_bytes == len(orjson.dumps(full))
    assert len(known.body) < known.size_bytes
    assert (known.uid, known.version, known.generation) == (UID, 7, 1)
    assert (known.phase, known.attempt, known.is_finished) == ("Starting", 1, False)
    report = job(8, status=recorded(progress=progress_raw(currentBatch=18)))
    report["metadata"]["annotations"] = {"a": "b"}
    assert not store.put_job(report)
    assert store.job_raw(KEY) == report


def test_store_finished_and_settled_job_is_kept_without_body_and_pods(store: Store) -> None:
    store.put_job(job(1, status=recorded()))
    store.put_pod(ended_pod(0))
    store.put_pod(at(2, pod_raw(2)))
    store.drop_pod(at(9, pod_raw(3)))
    assert len(names_of(store)) == 3
    store.put_own_write(job(2, status=FINISHED))
    known = store.jobs[KEY]
    assert (known.is_settled, known.body, known.progress) == (True, b"", b"")
    assert (known.phase, known.is_finished, known.finished_time) == (
        "Succeeded",
        True,
        FINISHED["conditions"][-1]["lastTransitionTime"],
    )
    assert store.job_raw(KEY) is None
    assert names_of(store) == [("fx-2-0", False)], "a pod that may run has to be deleted"
    assert not store.put_pod(at(3, ended_pod(0)))
    assert not store.put_pod(at(4, ended_pod(0)))
    assert store.put_pod(at(5, ended_pod(1, attempt=2)))
    assert names_of(store) == []


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        (job(), (False, False, False)),
        (job(cancel=True), (True, False, False)),
        (job(status=FINISHED), (False, True, True)),
        (job(status={**FINISHED, "observedGeneration": 0}), (False, True, False)),
        (job(cancel=True, status=FINISHED), (False, True, True)),
    ],
    ids=["running", "cancelled", "settled", "finished", "cancelled when finished"],
)
def test_known_job_flags(raw: Raw, want: tuple[bool, bool, bool]) -> None:
    known = known_job(raw, size_bytes=0, reported_at=0.0)
    assert (known.is_stop_requested, known.is_finished, known.is_settled) == want


def test_known_job_being_deleted_is_not_settled() -> None:
    raw = job(status=FINISHED)
    raw["metadata"]["deletionTimestamp"] = "t"
    known = known_job(raw, size_bytes=0, reported_at=0.0)
    assert (known.is_stop_requested, known.is_settled) == (False, False)
    running = {**job(), "metadata": raw["metadata"]}
    assert known_job(running, size_bytes=0, reported_at=0.0).is_stop_requested


def test_store_report_age_ignores_own_writes(store: Store, clock: Clock) -> None:
    assert store.seconds_since_report(KEY) is None
    store.put_job(job(1, status=recorded(phase="Running")))
    clock.now = 10
    store.put_own_write(job(2, status=recorded(phase="Running", reason="x")))
    assert store.seconds_since_report(KEY) == store.progress_age_seconds() == 10
    store.put_job(job(3, status=recorded(phase="Running", progress=progress_raw())))
    assert store.seconds_since_report(KEY) == 0
    clock.now = 20
    store.put_job(job(4, uid="new"))
    assert store.seconds_since_report(KEY) == 0
    assert store.progress_age_seconds() == 0, "it does not run"


def test_store_late_events_of_previous_job_change_nothing(store: Store) -> None:
    store.put_job(job(5, uid="u2"))
    assert not store.put_job(job(3, uid="u1"))
    store.drop_job(KEY, "u1", 4)
    assert store.jobs[KEY].uid == "u2"


def test_store_late_live_get_keeps_the_successor(store: Store) -> None:
    before = store.jobs.get(KEY)
    store.put_job(job(5, uid="u2"))
    store.put_live_job(KEY, None, before)
    assert store.jobs[KEY].uid == "u2"
    assert not store.is_deleted("u2")
    assert store.put_job(job(6, uid="u2", cancel=True))


def test_store_live_get_lowers_the_version_after_a_restore(store: Store) -> None:
    store.put_job(job(1000, status=recorded()))
    store.put_live_job(KEY, job(10), store.jobs[KEY])
    raw = store.job_raw(KEY)
    assert raw is not None
    assert raw["metadata"]["resourceVersion"] == "10"


def test_store_body_of_a_settled_job_that_was_read_live_is_kept_until_the_next_list(
    store: Store,
) -> None:
    settled = job(1, status={**FINISHED, "progress": progress_raw()})
    store.put_job(settled)
    assert store.job_raw(KEY) is None
    store.put_live_job(KEY, settled, store.jobs[KEY])
    assert store.job_raw(KEY) == settled
    assert store.jobs[KEY].is_settled
    assert not store.put_job(settled)
    assert store.replace([settled], []) == set()
    assert (store.job_raw(KEY), store.jobs[KEY].is_settled) == (None, True)


def test_store_list_restores_a_job_that_seemed_deleted(store: Store) -> None:
    store.put_job(job(5))
    store.drop_job(KEY, UID)
    assert store.is_deleted(UID)
    assert store.replace([job(5)], []) == {KEY}
    assert not store.is_deleted(UID)
    assert store.replace([job(5)], []) == set()
    assert store.replace([], []) == {KEY}


def test_store_deleted_pod_of_the_current_attempt_is_remembered_until_the_next(
    store: Store,
) -> None:
    store.put_job(job(1, status=recorded(2)))
    for attempt in (1, 2):
        store.put_pod(ended_pod(1, attempt=attempt))
        assert store.drop_pod(at(10 + attempt, ended_pod(1, attempt=attempt)))
    assert names_of(store) == [("fx-2-0", True)]
    assert store.pods_of(KEY)[0].termination is not None
    assert not store.put_pod(at(9, pod_raw(2))), "a deleted pod does not come back by an event"
    store.put_job(job(2, status=recorded(3)))
    assert names_of(store) == []


def test_store_remembers_a_bounded_number_of_deleted_pods(store: Store) -> None:
    store.put_job(job(1, status=recorded(1)))
    for attempt in range(1, 100):
        store.drop_pod(at(attempt, pod_raw(attempt)))
        store.drop_pod(at(attempt, pod_raw(attempt, owner="somebody else", uid=f"x{attempt}")))
    assert len(store.pods_of(KEY)) == DELETED_PODS_PER_JOB
    assert [view.uid for view in store.pods_of(KEY)][-1] == "pod-99"


def test_store_pod_missing_from_list_or_get_is_remembered_as_deleted(store: Store) -> None:
    store.put_job(job(1, status=recorded(1)))
    for remove in (
        lambda: store.replace([job(1, status=recorded(1))], []),
        lambda: store.put_live_pod(KEY, "fx-1-0", None, store.pod(KEY, "fx-1-0")),
    ):
        store.put_live_pod(KEY, "fx-1-0", pod_raw(), None)
        assert names_of(store) == [("fx-1-0", False)]
        remove()
        assert names_of(store) == [("fx-1-0", True)]


def test_store_live_pod_that_has_lost_its_label_is_kept(store: Store) -> None:
    store.put_job(job(1, status=recorded(1)))
    store.put_pod(at(3, pod_raw()))
    store.drop_pod(at(4, pod_raw()))
    unlabelled = at(4, pod_raw())
    unlabelled["metadata"]["labels"] = {}
    store.put_live_pod(KEY, "fx-1-0", unlabelled, store.pod(KEY, "fx-1-0"))
    assert names_of(store) == [("fx-1-0", False)]
    assert store.replace([job(1, status=recorded(1))], []) == {KEY}, "it has to be asked again"
    store.put_live_pod(KEY, "fx-1-0", unlabelled, None)
    assert names_of(store) == [("fx-1-0", False)]


def test_store_created_pod_and_its_event_are_one(store: Store) -> None:
    store.put_job(job(1))
    store.put_created_pod(KEY, at(3, pod_raw()))
    assert not store.put_pod(at(3, pod_raw()))
    assert not store.put_pod(at(4, pod_raw(node="node-2"))), "no decision asks where it waits"
    known = store.pod(KEY, "fx-1-0")
    assert known is not None
    assert (known.version, known.view.node) == (4, "node-2")


def test_store_pod_created_again_under_its_name_hides_the_deleted_one(store: Store) -> None:
    store.put_job(job(1))
    store.put_pod(at(3, pod_raw()))
    store.drop_pod(at(4, pod_raw()))
    store.put_pod(at(5, pod_raw(uid="new")))
    assert names_of(store) == [("fx-1-0", False)]
    store.drop_pod(at(4, pod_raw()))
    assert [view.uid for view in store.pods_of(KEY)] == ["new"]


def test_store_remembers_the_latest_of_two_deleted_pods_of_one_name(store: Store) -> None:
    store.put_job(job(1))
    store.put_pod(at(3, pod_raw()))
    store.drop_pod(at(8, pod_raw(uid="second")))
    store.drop_pod(at(4, pod_raw()))
    assert [view.uid for view in store.pods_of(KEY)] == ["second"]


def test_store_live_finished_pod_of_settled_job_is_not_kept(store: Store) -> None:
    store.put_job(job(1, status=FINISHED))
    store.put_pod(pod_raw())
    store.put_live_pod(KEY, "fx-1-0", at(2, ended_pod(0)), store.pod(KEY, "fx-1-0"))
    assert names_of(store) == []


def test_store_finished_pod_of_settled_job_is_ignored(store: Store) -> None:
    listed = [job(1, status=FINISHED)], [ended_pod(0)]
    assert store.replace(*listed) == set()
    assert store.replace(*listed) == set()
    assert names_of(store) == []


def test_store_deletion_of_a_pod_matters_only_to_a_job_that_is_not_settled(store: Store) -> None:
    assert not store.drop_pod(at(4, pod_raw()))
    store.put_job(job(1, status=FINISHED))
    assert not store.drop_pod(at(5, pod_raw(2)))
    assert names_of(store) == []


def test_store_deleted_job_takes_its_finished_pods_along(store: Store) -> None:
    store.put_job(job(1))
    store.put_pod(ended_pod(0))
    store.put_pod(pod_raw(2))
    store.drop_job(KEY, UID, 5)
    assert names_of(store) == [("fx-2-0", False)]


def test_store_forgotten_namespace_is_new_at_its_next_event(store: Store) -> None:
    store.put_job(job(1))
    store.put_pod(pod_raw())
    store.forget_namespace("other")
    assert KEY in store.jobs
    store.forget_namespace(NAMESPACE)
    assert (store.jobs, names_of(store)) == ({}, [])
    assert store.put_job(job(1))
    assert store.put_pod(pod_raw())


def test_store_skipped_namespace_stays_as_it_is(store: Store) -> None:
    store.put_job(job(1))
    store.put_pod(pod_raw())
    assert store.finish_resync(store.begin_resync(), {NAMESPACE}) == set()
    assert (KEY in store.jobs, names_of(store)) == (True, [("fx-1-0", False)])


def test_store_counts_jobs_without_a_written_status() -> None:
    store, jobs = Store(), [engine_builders.job_raw(f"job-{n}", uid=f"uid-{n}") for n in range(3)]
    store.replace(jobs, [])
    assert store.unwritten_jobs == 3
    started = {**jobs[0], "status": {"phase": "Running"}}
    started["metadata"] = {**jobs[0]["metadata"], "resourceVersion": "9"}
    store.put_own_write(started)
    store.drop_job(JobKey(engine_builders.NAMESPACE, "job-1"), "uid-1")
    assert store.unwritten_jobs == 1
