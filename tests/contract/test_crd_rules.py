"""Every rule of the TrainingJob's schema, on a real API server, with the words a user reads."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from ktrdr_api.crd import build
from ktrdr_api.training_job import Progress
from kube import Kube, Raw, RefusedError
from kube import training_job as smallest_job

DRY_RUN = "--dry-run=server"
STATUS = "--subresource=status"
TIME = "2026-01-01T00:00:00Z"
GROUP = "rules.ktrdr.io"
RESOURCE = f"trainingjobs.{GROUP}"


@pytest.fixture(scope="module", autouse=True)
def crd_without_operator(cluster: Kube) -> Iterator[None]:
    """The CRD of this checkout under another API group, so that no operator writes the status."""
    crd = build()
    crd["metadata"]["name"] = RESOURCE
    crd["spec"]["group"] = GROUP
    crd["spec"]["names"] |= {"shortNames": [], "categories": []}
    cluster.apply(crd, "--server-side")
    cluster.run("wait", "--for=condition=Established", f"crd/{RESOURCE}", "--timeout=10s")
    yield
    cluster.run("delete", "crd", RESOURCE, "--wait=false")


def training_job(name: str = "job", **spec: Any) -> Raw:
    """The smallest valid TrainingJob, in the API group of this module."""
    return {**smallest_job(name, **spec), "apiVersion": f"{GROUP}/v1alpha1"}


def resources(**resources: Any) -> Raw:
    return {"trainer": {"resources": resources}}


def env(*names: str) -> Raw:
    return {"trainer": {"env": [{"name": name, "value": "x"} for name in names]}}


def claim(**claim: Any) -> Raw:
    return {"data": {"persistentVolumeClaim": {"claimName": "market-data", **claim}}}


VALID: dict[str, Raw] = {
    "smallest": {},
    "strategy from a ConfigMap": {
        "strategy": {"configMapKeyRef": {"name": "strategies", "key": "a.yaml"}}
    },
    "one day": {"startDate": "2018-01-01", "endDate": "2018-01-01"},
    "born cancelled": {"cancel": True},
    "folder": claim(subPath="a/b..c/d"),
    "GPUs in limits": resources(limits={"nvidia.com/gpu": 2, "memory": "4Gi", "cpu": "500m"}),
    "GPUs in both": resources(limits={"amd.com/gpu": "1"}, requests={"amd.com/gpu": 1, "cpu": 2}),
    "variables": env("PYTHONHASHSEED", "OMP_NUM_THREADS"),
    "strategy of 64 KiB": {"strategy": {"inline": "x" * 65536}},
    "MIG": resources(limits={"nvidia.com/mig-1g.5gb": 1}),
}


@pytest.mark.parametrize("spec", VALID.values(), ids=VALID.keys())
def test_spec_valid_is_taken(cluster: Kube, spec: Raw) -> None:
    cluster.create(training_job(**spec), DRY_RUN)


INVALID: dict[str, tuple[Raw, str]] = {
    "no strategy": ({"strategy": {}}, "exactly one of inline and configMapKeyRef must be given"),
    "two strategies": (
        {"strategy": {"inline": "a", "configMapKeyRef": {"name": "a", "key": "b"}}},
        "exactly one of inline and configMapKeyRef must be given",
    ),
    "dates reversed": (
        {"startDate": "2018-01-02", "endDate": "2018-01-01"},
        "spec.startDate: Invalid value: startDate must not be after endDate",
    ),
    "no such day": ({"endDate": "2019-02-30"}, "must be of type date"),
    "no such year": ({"endDate": "0019-02-03"}, "spec.endDate in body should match"),
    "symbol that is a path": ({"symbols": [".."]}, "spec.symbols[0] in body should match"),
    "strategy of more than 64 KiB": (
        {"strategy": {"inline": "ü" * 32769}},
        "spec.strategy.inline: Invalid value: inline must have at most 65536 bytes",
    ),
    "variable twice": (env("A", "B", "A"), 'spec.trainer.env[2]: Duplicate value: {"name":"A"}'),
    "symbol twice": ({"symbols": ["BTC", "BTC"]}, 'spec.symbols[1]: Duplicate value: "BTC"'),
    "no such timeframe": ({"timeframes": ["2h"]}, "spec.timeframes[0]: Unsupported value"),
    "path up": (claim(subPath="a/../b"), 'subPath: Invalid value: "a/../b": must be a path rel'),
    "path up at the end": (claim(subPath="a/.."), "such as models/a, without '..'"),
    "path absolute": (claim(subPath="/etc"), "must be a path relative to the volume"),
    "reserved variable": (env("KTRDR_POD_UID"), "names with the prefix KTRDR_ are reserved"),
    "half a GPU": (resources(limits={"nvidia.com/gpu": "500m"}), "GPUs are whole numbers"),
    "more GPUs than numbers": (
        resources(limits={"nvidia.com/gpu": "9" * 32}),
        "GPUs are whole numbers below 10000",
    ),
    "two families": (
        resources(limits={"nvidia.com/gpu": 1, "amd.com/gpu": 1}),
        "GPUs must be of one family",
    ),
    "slices and whole": (
        resources(limits={"nvidia.com/gpu": 1, "nvidia.com/mig-1g.5gb": 1}),
        "GPUs must be of one family",
    ),
    "GPUs requested only": (
        resources(requests={"nvidia.com/gpu": 1}),
        "requests of GPUs, other resources with a domain and huge pages must be omitted or equal",
    ),
    "GPUs unequal": (
        resources(requests={"nvidia.com/gpu": 1}, limits={"nvidia.com/gpu": 2}),
        "requests of GPUs, other resources with a domain and huge pages must be omitted or equal",
    ),
    "not a quantity": (resources(limits={"memory": "much"}), "limits.memory in body should match"),
    "negative": (resources(limits={"cpu": -1}), "should be greater than or equal to 0"),
    "long key": (resources(limits={"x" * 318: 1}), "keys must have at most 317 characters"),
    "period 0": ({"progress": {"periodSeconds": 0}}, "spec.progress.periodSeconds"),
}


@pytest.mark.parametrize(("spec", "message"), INVALID.values(), ids=INVALID.keys())
def test_spec_invalid_is_refused_with_its_reason(cluster: Kube, spec: Raw, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        cluster.create(training_job(**spec), DRY_RUN)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "spec",
    [{"hostNetwork": True}, {"trainer": {"command": ["sh"]}}, {"trainer": {"privileged": True}}],
    ids=["host network", "command", "privileged"],
)
def test_spec_unknown_field_is_refused(cluster: Kube, spec: Raw) -> None:
    with pytest.raises(RefusedError, match="unknown field"):
        cluster.create(training_job(**spec), DRY_RUN)


@pytest.mark.parametrize("name", ["a" * 52, "a-1"])
def test_name_valid_is_taken(cluster: Kube, name: str) -> None:
    cluster.create(training_job(name), DRY_RUN)


@pytest.mark.parametrize("name", ["a" * 53, "1a", "a.b"])
def test_name_invalid_is_refused(cluster: Kube, name: str) -> None:
    with pytest.raises(RefusedError, match="must be an RFC 1035 label"):
        cluster.create(training_job(name), DRY_RUN)


def test_status_of_a_fresh_object_is_not_current(cluster: Kube) -> None:
    created = cluster.create(training_job(), DRY_RUN)
    assert created["status"] == {"observedGeneration": -1}


def test_status_given_at_creation_is_ignored(cluster: Kube) -> None:
    created = cluster.create({**training_job(), "status": {"phase": "Succeeded"}}, DRY_RUN)
    assert created["status"] == {"observedGeneration": -1}


def test_spec_after_creation_is_immutable_but_for_cancel(kube: Kube) -> None:
    kube.create(
        training_job(symbols=["BTC", "ETH"], timeframes=["1h", "1d"], trainer={"image": "a"})
    )
    changes: list[Raw] = [
        {"strategy": {"inline": "name: other"}},
        {"symbols": ["LTC"]},
        {"symbols": ["ETH", "BTC"]},  # the order of rows and features decides the model
        {"symbols": None},
        {"timeframes": ["1d", "1h"]},
        {"timeframes": None},
        {"startDate": "2018-01-01"},
        {"endDate": "2018-01-01"},
        claim(subPath="other"),
        {"output": {"persistentVolumeClaim": {"claimName": "other"}}},
        {"trainer": {"image": "b"}},
        {"trainer": None},
        {"cancellation": {"gracePeriodSeconds": 1}},
        {"backoffLimit": 9},
        {"checkpoint": {"periodSeconds": 1}},
        {"progress": {"periodSeconds": 1}},
    ]
    for change in changes:
        with pytest.raises(RefusedError) as refused:
            kube.patch(RESOURCE, "job", {"spec": change}, DRY_RUN)
        [field] = change
        assert f"spec.{field} is immutable after creation" in str(refused.value)


def test_cancel_is_one_way(kube: Kube) -> None:
    kube.create(training_job())
    patched = kube.patch(RESOURCE, "job", {"spec": {"cancel": True}})
    assert patched["spec"]["cancel"] is True
    for value in (False, None):
        with pytest.raises(
            RefusedError,
            match=r"spec\.cancel: Forbidden: cancel cannot be reset to false; create a new",
        ):
            kube.patch(RESOURCE, "job", {"spec": {"cancel": value}})


def progress(**progress: Any) -> Raw:
    fixed = {"podUID": "uid", "stage": "Training", "lastUpdateTime": TIME}
    return {"status": {"progress": {**fixed, **progress}}}


def test_progress_never_goes_backwards(kube: Kube) -> None:
    kube.create(training_job())
    kube.patch(RESOURCE, "job", {"status": {"attempt": 3}}, STATUS)
    kube.patch(RESOURCE, "job", progress(attempt=2, step=10), STATUS)
    refusals: dict[str, Raw] = {
        "progress.step must not decrease within one attempt of the same pod": progress(
            attempt=2, step=9
        ),
        "progress.attempt must not decrease: a newer attempt has already reported": progress(
            attempt=1, step=99
        ),
        "progress must not be removed": {"status": {"progress": None}},
        "Too long: may not be more than 256": progress(attempt=2, step=10, message="x" * 257),
        "progress.step in body must be of type integer": progress(attempt=2, step=1e30),
    }
    for message, patch in refusals.items():
        with pytest.raises(RefusedError) as refused:
            kube.patch(RESOURCE, "job", patch, STATUS)
        assert message in str(refused.value)
    kube.patch(RESOURCE, "job", progress(attempt=2, step=10), STATUS)
    # A new attempt goes on from its checkpoint, which may lie before the last report.
    kube.patch(RESOURCE, "job", progress(attempt=3, step=4), STATUS)
    # What an earlier job's pod has said too late does not bar this job's own.
    own = progress(attempt=3, step=1, podUID="another")
    kube.patch(RESOURCE, "job", own, STATUS)


def test_status_attempt_of_an_outdated_writer_is_refused(kube: Kube) -> None:
    kube.create(training_job())
    kube.patch(RESOURCE, "job", {"status": {"attempt": 2}}, STATUS)
    with pytest.raises(
        RefusedError, match=r"status\.attempt must not decrease: the writer has read an outdated"
    ):
        kube.patch(RESOURCE, "job", {"status": {"attempt": 1}}, STATUS)


def conditions(**status_by_type: str) -> Raw:
    fixed = {"reason": "Any", "message": "", "lastTransitionTime": TIME, "observedGeneration": 1}
    listed = [{"type": name, "status": status, **fixed} for name, status in status_by_type.items()]
    return {"status": {"conditions": listed}}


@pytest.mark.parametrize("terminal", ["Complete", "Failed", "Cancelled", "Finished"])
def test_terminal_condition_never_reverts(kube: Kube, terminal: str) -> None:
    kube.create(training_job())
    done = conditions(Complete="False", Failed="False", Cancelled="False", Finished="False")
    for condition in done["status"]["conditions"]:
        condition["status"] = "True" if condition["type"] == terminal else "False"
    kube.patch(RESOURCE, "job", done, STATUS)
    for undone in (conditions(**{terminal: "False"}), conditions(Running="False")):
        with pytest.raises(RefusedError, match="Finished must stay True once they are True"):
            kube.patch(RESOURCE, "job", undone, STATUS)


def test_schema_is_explained_by_kubectl(cluster: Kube) -> None:
    text = cluster.run("explain", f"{RESOURCE}.spec.cancellation")
    assert "Seconds from the cancel request until the trainer" in text


def test_printer_columns_show_progress_and_the_message(kube: Kube) -> None:
    kube.create(training_job())
    display = {"epoch": "3/50", "eta": "4m20s", "loss": "0.25", "batch": "120/640"}
    body = progress(attempt=1, percentage=7, display={**display, "progress": "7%"})
    body["status"] |= {"phase": "Running", "reason": "Running", "message": "Trainer is running"}
    kube.patch(RESOURCE, "job", body, STATUS)
    narrow = kube.run("get", RESOURCE, "job").splitlines()
    wide = kube.run("get", RESOURCE, "job", "-owide").splitlines()
    head = ["NAME", "PHASE", "PROGRESS", "EPOCH", "ETA", "GPUS", "RETRIES", "AGE"]
    assert narrow[0].split() == head
    assert wide[0].split() == [*head, "LOSS", "BATCH", "HOST", "CHECKPOINT", "REASON", "MESSAGE"]
    assert narrow[1].split()[:5] == ["job", "Running", "7%", "3/50", "4m20s"]
    assert {"0.25", "120/640"} <= set(wide[1].split())
    assert wide[1].endswith("Trainer is running")

    # The operator empties these texts once the job has failed, so that it does not look alive.
    body["status"]["progress"]["display"] = {"epoch": "3/50"}
    kube.apply(
        {**training_job(), "status": {"progress": body["status"]["progress"]}},
        "--server-side",
        "--force-conflicts",
        STATUS,
    )
    assert kube.run("get", RESOURCE, "job").splitlines()[1].split()[:3] == [
        "job",
        "Running",
        "3/50",
    ]


def apply_status(kube: Kube, manager: str, status: Raw) -> Raw:
    """Server-side apply of a part of status, as operator and trainer do it."""
    body = {**training_job(), "status": status}
    del body["spec"]
    return kube.apply(
        body, "--server-side", "--force-conflicts", f"--field-manager={manager}", STATUS
    )


def managed_status_fields(kube: Kube) -> dict[str, Raw]:
    """What each field manager owns of status."""
    job = json.loads(kube.run("get", RESOURCE, "job", "-ojson", "--show-managed-fields"))
    return {
        entry["manager"]: entry["fieldsV1"]["f:status"]
        for entry in job["metadata"]["managedFields"]
        if "f:status" in entry["fieldsV1"]
    }


def test_status_applied_by_two_managers_neither_removes_the_part_of_the_other(kube: Kube) -> None:
    kube.create(training_job())
    waiting = {"reason": "Unschedulable", "message": "", "since": TIME}
    operator: Raw = {"observedGeneration": 1, "attempt": 1, "waiting": waiting}
    operator |= conditions(Running="False", Finished="False")["status"]
    trainer: Raw = progress(attempt=1, step=1, message="first", samplesPerSecond=9)["status"]
    apply_status(kube, "ktrdr-operator", operator)
    both = apply_status(kube, "ktrdr-trainer", trainer)
    assert both["status"] == {**operator, **trainer}

    # What a manager leaves out of its next apply is removed, inside its objects as well.
    del operator["waiting"]
    operator |= conditions(Running="True")["status"]
    both = apply_status(kube, "ktrdr-operator", operator)
    assert both["status"] == {**operator, **trainer}
    trainer = progress(attempt=1, step=2)["status"]
    both = apply_status(kube, "ktrdr-trainer", trainer)
    assert both["status"] == {**operator, **trainer}

    # Once over, the operator may take the progress and write it anew.
    trainer["progress"]["display"] = {"eta": ""}
    both = apply_status(kube, "ktrdr-operator", {**operator, **trainer})
    assert both["status"] == {**operator, **trainer}
    owned = managed_status_fields(kube)
    assert "f:progress" in owned["ktrdr-operator"]
    assert "ktrdr-trainer" not in owned


def test_managed_fields_have_one_entry_for_each_part(kube: Kube) -> None:
    kube.create(training_job())
    status = {**progress(attempt=1)["status"], **conditions(Running="True")["status"]}
    apply_status(kube, "any", status)
    assert managed_status_fields(kube)["any"] == {"f:progress": {}, "f:conditions": {}}


def test_spec_applied_again_by_its_owner_is_unchanged(kube: Kube) -> None:
    # An atomic object is replaced whole: the defaults inside it must come back, or the immutability
    # rules would reject what a GitOps tool applies every few minutes.
    job = training_job(cancellation={"gracePeriodSeconds": 5}, trainer={"env": []})
    server_side = ("--server-side", "--field-manager=gitops")
    # The second apply of any object is written, even if it changes nothing (Kubernetes 1.36).
    _, second, third = (kube.apply(job, *server_side) for _ in range(3))
    assert third["spec"]["cancellation"] == {"gracePeriodSeconds": 5, "checkpoint": "BestEffort"}
    assert third["metadata"] == second["metadata"]
    assert third["metadata"]["generation"] == 1
    job["spec"]["cancel"] = True
    assert kube.apply(job, *server_side)["spec"]["cancel"] is True
    client_side = training_job("other", cancellation={"gracePeriodSeconds": 5})
    kube.apply(client_side)
    client_side["spec"]["cancel"] = True
    assert kube.apply(client_side)["spec"]["cancel"] is True


ATTEMPTS: dict[str, tuple[int | None, int, bool]] = {
    "attempt 1, before it is on record": (None, 1, True),
    "attempt 1, on record as 0": (0, 1, True),
    "attempt on record": (2, 2, True),
    "earlier attempt": (3, 2, True),
    "next attempt": (2, 3, False),
    "attempt 2 before any is on record": (None, 2, False),
    "attempt far ahead": (1, 999, False),
}


@pytest.mark.parametrize(
    ("on_record", "reported", "accepted"), ATTEMPTS.values(), ids=ATTEMPTS.keys()
)
def test_progress_of_an_attempt_that_is_not_on_record_is_refused(
    kube: Kube, on_record: int | None, reported: int, *, accepted: bool
) -> None:
    kube.create(training_job())
    kube.patch(RESOURCE, "job", {"status": {"attempt": on_record}}, STATUS)
    report = progress(attempt=reported)
    if accepted:
        kube.patch(RESOURCE, "job", report, STATUS)
        return
    with pytest.raises(RefusedError) as refused:
        kube.patch(RESOURCE, "job", report, STATUS)
    assert (
        "status.progress.attempt: Invalid value: progress.attempt must not be above status.attempt:"
        " that attempt has not started"
    ) in str(refused.value)


@pytest.mark.parametrize(
    ("status", "accepted"),
    [
        ({"attempt": 1, "attemptState": "Ended", "retryTime": TIME}, True),
        ({"attempt": 1, "attemptState": "Running", "retryTime": TIME}, False),
        ({"attempt": 1, "retryTime": TIME}, False),
    ],
    ids=["ended", "running", "no state"],
)
def test_retry_time_of_an_attempt_that_has_not_ended_is_refused(
    kube: Kube, status: Raw, *, accepted: bool
) -> None:
    kube.create(training_job())
    if accepted:
        kube.patch(RESOURCE, "job", {"status": status}, STATUS)
        return
    with pytest.raises(RefusedError, match="requires attemptState Ended"):
        kube.patch(RESOURCE, "job", {"status": status}, STATUS)


TIMES = {
    "2026-01-31T08:30:00Z": True,
    "2026-01-31T08:30:00.123456789+05:30": True,
    "2026-02-30T08:30:00Z": False,
    "2026-01-31T24:00:00Z": False,
    "2026-12-31T23:59:60Z": False,
    "2026-01-31T08:30:00x5Z": False,
    "2026-01-31t08:30:00z": False,
    "0000-01-01T00:00:00Z": False,
    "9999-12-31T23:59:59-01:00": False,
    "\u0662026-01-31T08:30:00Z": False,
}


def test_time_is_accepted_by_the_server_and_by_the_models_alike(kube: Kube) -> None:
    # A time that only the server accepts would make the status unreadable for the operator; one
    # that only the models accept would make each of its status updates fail.
    kube.create(training_job())
    by_model, by_server = {}, {}
    for time in TIMES:
        report = progress(attempt=1, lastUpdateTime=time)
        try:
            Progress.model_validate(report["status"]["progress"])
            by_model[time] = True
        except ValidationError:
            by_model[time] = False
        try:
            kube.patch(RESOURCE, "job", report, STATUS, DRY_RUN)
            by_server[time] = True
        except RefusedError:
            by_server[time] = False
    assert by_model == TIMES
    assert by_server == TIMES
