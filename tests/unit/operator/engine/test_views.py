"""Raw objects as decisions see them: foreign text, wait reasons, and objects with missing parts."""

import unicodedata
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_builders import (
    JOB,
    Raw,
    ended_pod,
    job_raw,
    pod_raw,
    recorded,
    running_pod,
    snapshot,
    succeeded_pod,
    termination_message,
    unscheduled_pod,
    waiting_pod,
    with_sidecar,
)
from ktrdr_api import names
from ktrdr_api.conditions import ConditionType as C
from ktrdr_operator.snapshot import PodView, WaitReason
from ktrdr_operator.views import TEXT_MAX_LENGTH, sanitize, training_job_uid, view_job, view_pod

MISSING: Final = object()
"""A key that is left out."""


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("plain words", "plain words"),
        ("", ""),
        ("  \t\n spaces around \n ", "spaces around"),
        ("two\nlines", "two\nlines"),
        ("a\tb\rc\x00d\x7fe", "a b c d e"),
        ("\x1b[31mred\x1b[0m and \x1b[2Kcleared", "red  and  cleared"),
        ("fx\u202egnp.exe", "fx gnp.exe"),
        ("a\u200bb\u2066c\u2069d\ufeffe", "a b c d e"),
        ("line\u2028separator\u2029paragraph", "line separator paragraph"),
        ("lone \ud800 surrogate", "lone   surrogate"),
        ("Zürich 東京 \N{SNOWMAN}", "Zürich 東京 \N{SNOWMAN}"),
    ],
    ids=[
        "plain",
        "empty",
        "white space",
        "newline",
        "control characters",
        "ANSI colours",
        "right-to-left override",
        "zero-width and isolates",
        "line separators",
        "lone surrogate",
        "other scripts",
    ],
)
def test_sanitize_makes_foreign_text_safe(text: str, want: str) -> None:
    assert sanitize(text) == want


def test_sanitize_keeps_the_end_of_a_long_text() -> None:
    """The end of a log and of a Go error chain is where the cause stands."""
    found = sanitize("first " + "x" * 5000 + " cause")
    assert len(found) == TEXT_MAX_LENGTH == 800
    assert found.startswith("...x")
    assert found.endswith("x cause")
    assert sanitize("x" * TEXT_MAX_LENGTH) == "x" * TEXT_MAX_LENGTH


@given(st.text(st.characters(), max_size=2000))
def test_sanitize_of_any_text_is_bounded_encodable_and_without_control_characters(
    text: str,
) -> None:
    found = sanitize(text)
    assert len(found) <= TEXT_MAX_LENGTH
    found.encode()
    categories = {unicodedata.category(character) for character in found.replace("\n", "")}
    assert categories & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()
    assert sanitize(found) == found.strip()


def test_view_pod_bounds_all_foreign_text() -> None:
    long = "\u202e" + "x" * 5000
    pod = ended_pod(1, message=long, reason="Error")
    pod["status"].update(reason="Evicted", message=long)
    view = view_pod(pod)
    assert view.termination is not None
    assert len(view.message) <= TEXT_MAX_LENGTH
    assert len(view.termination.message) <= TEXT_MAX_LENGTH
    waiting = view_pod(waiting_pod("CreateContainerError", long)).wait_reason
    assert waiting is not None
    assert len(waiting.message) <= TEXT_MAX_LENGTH
    assert "\u202e" not in view.message + view.termination.message + waiting.message


def test_view_job_bounds_the_message_about_an_unreadable_spec() -> None:
    job = job_raw(symbols=["\u202e" + "x" * 5000])
    unreadable = view_job(job).unreadable
    assert unreadable.startswith("spec.symbols.0: ")
    assert len(unreadable) <= TEXT_MAX_LENGTH
    assert "\u202e" not in unreadable


# What holds a pod up.

SIDECAR: Final = {"name": "proxy", "restartPolicy": "Always"}
INIT: Final = {"name": "wait-for-db"}
PLAIN_WAIT: Final = {"waiting": {"reason": "PodInitializing"}}
RUNS: Final = {"running": {"startedAt": "2026-01-01T11:59:00Z"}}


def held_up(
    state: Raw | None = PLAIN_WAIT,
    *,
    init: tuple[Raw, ...] = (),
    others: tuple[Raw, ...] = (),
    conditions: tuple[Raw, ...] = (),
    specs: tuple[Raw, ...] = (INIT, SIDECAR),
) -> Raw:
    """A pod whose trainer has not started; `init` and `others` are container statuses."""
    pod = pod_raw(state=state, conditions=conditions)
    pod["spec"]["initContainers"] = list(specs)
    pod["status"]["initContainerStatuses"] = list(init)
    pod["status"]["containerStatuses"][:0] = others
    return pod


def container(name: str, state: Raw, **fields: Any) -> Raw:
    return {"name": name, "state": state, **fields}


def condition(kind: str, message: str = "", *, status: str = "False", reason: str = "") -> Raw:
    return {"type": kind, "status": status, "reason": reason, "message": message}


SCHEDULED: Final = condition("PodScheduled", status="True")
GATED: Final = condition(
    "PodScheduled",
    "Scheduling is blocked due to non-empty scheduling gates",
    reason="SchedulingGated",
)
SANDBOX: Final = condition("PodReadyToStartContainers")

HELD_UP: Final[dict[str, tuple[Raw, WaitReason | None]]] = {
    "nobody has said a word": (pod_raw(node=None), None),
    "scheduled, nothing else": (held_up(None, conditions=(SCHEDULED,)), None),
    "scheduled, with a message": (
        held_up(None, conditions=(condition("PodScheduled", "nominated", status="True"),)),
        None,
    ),
    "container is being created": (
        held_up({"waiting": {"reason": "ContainerCreating"}}),
        None,
    ),
    "pod is initializing": (held_up(PLAIN_WAIT), None),
    "waiting without a reason": (held_up({"waiting": {}}), None),
    "ContainerCreating with words": (
        held_up({"waiting": {"reason": "ContainerCreating", "message": "waiting for device"}}),
        WaitReason("ContainerCreating", "waiting for device"),
    ),
    "unschedulable": (
        unscheduled_pod("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        WaitReason("Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
    ),
    "scheduler has an error": (
        unscheduled_pod("running PreBind plugin: timed out", reason="SchedulerError"),
        WaitReason("SchedulerError", "running PreBind plugin: timed out"),
    ),
    "scheduling gate": (
        pod_raw(node=None, conditions=(GATED,)),
        WaitReason("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"),
    ),
    "image cannot be pulled": (
        held_up({"waiting": {"reason": "ErrImagePull", "message": "not found"}}),
        WaitReason("ErrImagePull", "not found"),
    ),
    "configuration error": (
        held_up(
            {
                "waiting": {
                    "reason": "CreateContainerConfigError",
                    "message": "container has runAsNonRoot and image will run as root",
                }
            }
        ),
        WaitReason(
            "CreateContainerConfigError", "container has runAsNonRoot and image will run as root"
        ),
    ),
    "container cannot be run, no message": (
        held_up({"waiting": {"reason": "RunContainerError"}}),
        WaitReason("RunContainerError", "RunContainerError"),
    ),
    "init container's image cannot be pulled": (
        held_up(
            init=(
                container(
                    "wait-for-db", {"waiting": {"reason": "ErrImagePull", "message": "denied"}}
                ),
            )
        ),
        WaitReason("ErrImagePull", 'Init container "wait-for-db": denied'),
    ),
    "init container waits its turn": (
        held_up(init=(container("wait-for-db", PLAIN_WAIT),)),
        None,
    ),
    # The kubelet says `started: true` of every container that runs and has no startup probe.
    "init container runs": (
        held_up(init=(container("wait-for-db", RUNS, started=True),)),
        WaitReason(
            "PodInitializing", 'Init container "wait-for-db": has not finished', is_progress=True
        ),
    ),
    "init container runs, old kubelet": (
        held_up(init=(container("wait-for-db", RUNS),)),
        WaitReason(
            "PodInitializing", 'Init container "wait-for-db": has not finished', is_progress=True
        ),
    ),
    "init container has finished": (
        held_up(init=(container("wait-for-db", {"terminated": {"exitCode": 0}}),)),
        None,
    ),
    "init container has failed": (
        held_up(
            init=(
                container(
                    "wait-for-db",
                    {"terminated": {"exitCode": 2, "reason": "Error", "message": "no route"}},
                ),
            )
        ),
        WaitReason("Error", 'Init container "wait-for-db": ended with exit code 2: no route'),
    ),
    "init container crashes again and again": (
        held_up(
            init=(
                container(
                    "wait-for-db",
                    {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
                ),
            )
        ),
        WaitReason("CrashLoopBackOff", 'Init container "wait-for-db": back-off 20s'),
    ),
    "sidecar runs": (held_up(init=(container("proxy", RUNS, started=True),)), None),
    "sidecar runs, startup probe pending": (
        held_up(init=(container("proxy", RUNS, started=False),)),
        WaitReason("PodInitializing", 'Init container "proxy": has not finished', is_progress=True),
    ),
    "sidecar crashes": (
        held_up(
            init=(container("proxy", {"terminated": {"exitCode": 1, "reason": "Error"}}),),
        ),
        WaitReason("Error", 'Init container "proxy": ended with exit code 1: Error'),
    ),
    "second init container after a sidecar": (
        held_up(
            init=(
                container("proxy", RUNS, started=True),
                container("wait-for-db", RUNS, started=True),
            ),
            specs=(SIDECAR, INIT),
        ),
        WaitReason(
            "PodInitializing", 'Init container "wait-for-db": has not finished', is_progress=True
        ),
    ),
    "another container cannot start": (
        held_up(
            {"waiting": {"reason": "ContainerCreating"}},
            others=(
                container("logs", {"waiting": {"reason": "ErrImagePull", "message": "denied"}}),
            ),
        ),
        WaitReason("ErrImagePull", 'Container "logs": denied'),
    ),
    "another container has crashed": (
        held_up(
            {"waiting": {"reason": "ContainerCreating"}},
            others=(container("logs", {"terminated": {"exitCode": 1, "message": "no disk"}}),),
        ),
        WaitReason("", 'Container "logs": ended with exit code 1: no disk'),
    ),
    "trainer's words go before those of another container": (
        held_up(
            {"waiting": {"reason": "ErrImagePull", "message": "not found"}},
            others=(
                container("logs", {"waiting": {"reason": "ErrImagePull", "message": "denied"}}),
            ),
        ),
        WaitReason("ErrImagePull", "not found"),
    ),
    "sandbox not ready, no words": (
        held_up(None, conditions=(SCHEDULED, SANDBOX)),
        None,
    ),
    "sandbox not ready, with words": (
        held_up(
            None,
            conditions=(
                SCHEDULED,
                condition(
                    "PodReadyToStartContainers", "cni plugin not initialized", reason="Network"
                ),
            ),
        ),
        WaitReason("Network", "PodReadyToStartContainers: cni plugin not initialized"),
    ),
    "conditions that follow from the others": (
        held_up(
            None,
            conditions=(
                condition("Initialized", "containers with incomplete status: [wait-for-db]"),
                condition("Ready", "containers with unready status: [trainer]"),
                condition("ContainersReady", "containers with unready status: [trainer]"),
            ),
        ),
        None,
    ),
    "scheduler's words go before all others": (
        pod_raw(
            node=None,
            conditions=(GATED,),
            state={"waiting": {"reason": "ErrImagePull", "message": "x"}},
        ),
        WaitReason("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"),
    ),
    "trainer runs": (running_pod(conditions=(condition("Ready", "x", reason="x"),)), None),
    "trainer has ended": (
        ended_pod(1, conditions=(condition("PodReadyToStartContainers", "x"),)),
        None,
    ),
}


@pytest.mark.parametrize(("pod", "want"), HELD_UP.values(), ids=HELD_UP)
def test_view_pod_that_has_not_started_has_the_wait_reason(
    pod: Raw, want: WaitReason | None
) -> None:
    assert view_pod(pod).wait_reason == want


# Which container, which attempt, which job.


@pytest.mark.parametrize("first", [True, False], ids=["sidecar first", "sidecar last"])
def test_view_pod_finds_the_container_by_name_not_by_position(first: bool) -> None:
    sidecar = container("proxy", {"running": {"startedAt": "2026-01-01T11:00:00Z"}})
    pod = ended_pod(3, phase="Running")
    pod["status"]["containerStatuses"].insert(0 if first else 1, sidecar)
    view = view_pod(pod)
    assert view.termination is not None
    assert (view.termination.exit_code, view.started) == (3, None)


def test_view_pod_end_of_sidecar_is_not_the_end_of_the_trainer() -> None:
    pod = running_pod()
    pod["status"]["containerStatuses"].insert(
        0, container("proxy", {"terminated": {"exitCode": 1}})
    )
    view = view_pod(pod)
    assert (view.termination, view.ended) == (None, False)
    assert view.started is not None


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("fx-1-0", (1, 0)),
        ("fx-12-3", (12, 3)),
        ("fx-7-1-0", (1, 0)),
        ("a-1-0-2-1", (2, 1)),
        ("fx", (-1, -1)),
        ("fx-1", (-1, -1)),
        ("fx-x-0", (-1, -1)),
        ("fx-1-0-debug", (-1, -1)),
        ("fx-99999999999-0", (-1, -1)),
    ],
)
def test_view_pod_has_attempt_and_rank_of_its_name_not_of_its_labels(
    name: str, want: tuple[int, int]
) -> None:
    pod = pod_raw()
    pod["metadata"]["name"] = name
    pod["metadata"]["labels"] |= {names.LABEL_ATTEMPT: "9", names.LABEL_RANK: "9"}
    view = view_pod(pod)
    assert (view.attempt, view.rank) == want
    del pod["metadata"]["labels"]
    assert replace(view_pod(pod), unlabelled=False) == view


def test_view_pod_without_its_label_is_unlabelled() -> None:
    pod = running_pod()
    assert not view_pod(pod).unlabelled
    del pod["metadata"]["labels"][names.LABEL_JOB]
    assert view_pod(pod).unlabelled


def reference(**fields: Any) -> Raw:
    owner = {"apiVersion": "ktrdr.io/v1alpha1", "kind": "TrainingJob", "uid": "u", "name": JOB}
    return {**owner, "controller": True, **fields}


@pytest.mark.parametrize(
    ("owners", "want"),
    [
        (MISSING, ""),
        ([], ""),
        ([reference()], "u"),
        ([reference(apiVersion="ktrdr.io/v1")], "u"),
        ([reference(apiVersion="batch/v1", kind="Job"), reference()], "u"),
        ([reference(controller=False)], ""),
        ([{k: v for k, v in reference().items() if k != "controller"}], ""),
        ([reference(apiVersion="kubeflow.org/v1")], ""),
        ([reference(kind="Job")], ""),
    ],
    ids=[
        "no list",
        "empty list",
        "ours",
        "another version of our API",
        "ours is the second",
        "not the controller",
        "controller not said",
        "another vendor's TrainingJob",
        "another kind of ours",
    ],
)
def test_training_job_uid_is_that_of_the_controller(owners: Any, want: str) -> None:
    metadata = {} if owners is MISSING else {"ownerReferences": owners}
    assert training_job_uid(metadata) == want


def test_current_is_only_the_pod_with_the_recorded_name() -> None:
    """Anybody may create a pod with our label, and name our TrainingJob as its controller."""
    forged = succeeded_pod(uid="forged")
    forged["metadata"]["name"] = "a-1-0"
    found = snapshot(job_raw(status=recorded(1)), forged, running_pod()).current()
    assert found is not None
    assert found.name == "fx-1-0"
    assert snapshot(job_raw(status=recorded(1)), forged).current() is None


# Times, ends.

EPOCH: Final = "1970-01-01T00:00:00Z"


@pytest.mark.parametrize("started", [EPOCH, None, MISSING], ids=["1970", "null", "left out"])
def test_view_pod_trainer_that_never_started_has_no_start_time(started: Any) -> None:
    pod = ended_pod(128, reason="StartError")
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    if started is MISSING:
        del terminated["startedAt"]
    else:
        terminated["startedAt"] = started
    view = view_pod(pod)
    assert view.termination is not None
    assert view.termination.started is None
    assert view.never_started


@pytest.mark.parametrize("started", [EPOCH, None, MISSING], ids=["1970", "null", "left out"])
def test_view_pod_that_runs_has_started_even_without_a_valid_time(started: Any) -> None:
    pod = running_pod()
    pod["metadata"]["creationTimestamp"] = "2026-01-01T11:58:00Z"
    running = pod["status"]["containerStatuses"][0]["state"]["running"]
    if started is MISSING:
        del running["startedAt"]
    else:
        running["startedAt"] = started
    view = view_pod(pod)
    assert view.started == view.created
    assert view.started is not None


REJECTIONS: Final = (
    "UnexpectedAdmissionError",
    "OutOfcpu",
    "OutOfmemory",
    "OutOfpods",
    "OutOfnvidia.com/gpu",
    "NodeAffinity",
    "NodeName",
    "NodePorts",
    "AppArmor",
    "TopologyAffinityError",
    "NodeShutdown",
    "Evicted",
    "PodOSSelectorNodeLabelDoesNotMatch",
    "InvalidNodeInfo",
    "SomethingNew",
)
"""Source: pkg/kubelet/lifecycle/predicate.go and the admit handlers of the kubelet."""


@pytest.mark.parametrize("reason", REJECTIONS)
@pytest.mark.parametrize("node", ["node-1", None])
def test_view_pod_rejected_by_the_kubelet_never_started(reason: str, node: str | None) -> None:
    pod = pod_raw(phase="Failed", reason=reason, message="Pod was rejected", node=node)
    view = view_pod(pod)
    assert (view.never_started, view.ended, view.wait_reason) == (True, True, None)
    assert view.message == f"{reason}: Pod was rejected"


@pytest.mark.parametrize(
    ("pod", "want"),
    [
        (pod_raw(), False),
        (running_pod(), False),
        (ended_pod(1), False),
        (ended_pod(137, reason="OOMKilled"), False),
        (succeeded_pod(), False),
        (pod_raw(phase="Succeeded"), False),
        (waiting_pod("ErrImagePull", "x", phase="Failed"), True),
    ],
    ids=["pending", "runs", "failed", "OOM", "succeeded", "succeeded, no container", "deadline"],
)
def test_view_pod_never_started_is_about_failed_pods_without_a_start(pod: Raw, want: bool) -> None:
    assert view_pod(pod).never_started == want


def test_view_pod_failed_in_an_init_container_names_it_and_the_cause() -> None:
    """The pod's own message is empty then, and its container statuses are the only source."""
    failed = {"terminated": {"exitCode": 2, "reason": "Error", "message": "no route to db"}}
    pod = held_up(init=(container("wait-for-db", failed),))
    pod["status"]["phase"] = "Failed"
    view = view_pod(pod)
    assert view.never_started
    assert view.message == 'Init container "wait-for-db": ended with exit code 2: no route to db'


@pytest.mark.parametrize(
    ("pod", "gone", "want"),
    [
        (with_sidecar(succeeded_pod(phase="Running")), False, True),
        (with_sidecar(ended_pod(1, phase="Running")), False, True),
        (with_sidecar(ended_pod(1, phase="Pending"), "waiting"), False, True),
        (succeeded_pod(phase="Running"), False, False),
        (succeeded_pod(), False, False),
        (ended_pod(1), False, False),
        (with_sidecar(ended_pod(1, phase="Running", deleting=10)), False, False),
        (with_sidecar(ended_pod(1, phase="Running")), True, False),
        (running_pod(), False, False),
    ],
    ids=[
        "completed beside a sidecar",
        "failed beside a sidecar",
        "failed while another starts",
        "completed, and the kubelet has not said Succeeded yet",
        "succeeded",
        "failed",
        "is being deleted",
        "is deleted",
        "runs",
    ],
)
def test_view_pod_lingers_while_another_container_outlives_the_trainer(
    pod: Raw, gone: bool, want: bool
) -> None:
    view = view_pod(pod, gone=gone)
    assert view.lingers == want
    assert view.ended == (view.termination is not None)


@pytest.mark.parametrize(
    ("status", "want"),
    [
        ({}, False),
        ({"reason": "Evicted"}, True),
        ({"reason": "Preempting"}, True),
        ({"reason": "NodeLost"}, True),
        ({"reason": "NodeShutdown"}, True),
        ({"reason": "Shutdown"}, True),
        ({"reason": "Terminated"}, True),
        ({"reason": "DeadlineExceeded"}, False),
        ({"conditions": [condition("DisruptionTarget", status="True")]}, True),
        ({"conditions": [condition("DisruptionTarget", status="False")]}, False),
    ],
)
def test_view_pod_disrupted_by_reason_or_condition(status: Raw, want: bool) -> None:
    pod = ended_pod(1)
    pod["status"].update(status)
    assert view_pod(pod).disrupted == want


def test_view_pod_run_result_is_sanitized_and_has_each_metric_once() -> None:
    metrics = [
        {"name": "loss", "value": "1"},
        {"name": "acc", "value": "2"},
        {"name": "loss", "value": "3"},
    ]
    word = termination_message(metrics=metrics, message="\u202edone\x1b[0m")
    termination = view_pod(ended_pod(0, message=word)).termination
    assert termination is not None
    assert termination.result is not None
    assert [(m.name, m.value) for m in termination.result.metrics] == [("loss", "3"), ("acc", "2")]
    assert termination.result.message == "done"


# Objects with missing parts. The API server checks its schema, but any client may write statuses.

PARTS: Final = (
    ("spec",),
    ("status",),
    ("metadata", "labels"),
    ("metadata", "ownerReferences"),
    ("metadata", "creationTimestamp"),
    ("spec", "nodeName"),
    ("spec", "initContainers"),
    ("status", "phase"),
    ("status", "conditions"),
    ("status", "containerStatuses"),
    ("status", "initContainerStatuses"),
    ("status", "conditions", 0, "status"),
    ("status", "conditions", 0, "message"),
    ("status", "containerStatuses", 0, "state"),
    ("status", "initContainerStatuses", 0, "state"),
)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: ".".join(map(str, part)))
@pytest.mark.parametrize("pod", [held_up, running_pod, succeeded_pod], ids=lambda f: f.__name__)
def test_view_pod_with_a_part_missing_does_not_raise(pod: Any, part: Any) -> None:
    raw = pod()
    raw["status"].setdefault("conditions", []).insert(0, condition("PodScheduled", "x"))
    raw["status"].setdefault("initContainerStatuses", []).append(container("wait-for-db", RUNS))
    target: Any = raw
    for name in part[:-1]:
        target = target[name]
    target.pop(part[-1], None)
    assert isinstance(view_pod(raw), PodView)


@pytest.mark.parametrize("part", ["labels", "annotations", "finalizers"])
@pytest.mark.parametrize("value", [MISSING, {}], ids=["left out", "empty"])
def test_view_job_with_a_part_missing_does_not_raise(part: str, value: Any) -> None:
    raw = job_raw()
    if value is not MISSING:
        raw["metadata"][part] = value
    view = view_job(raw)
    assert (view.labels, view.annotations, view.orphaning) == ({}, {}, False)


@pytest.mark.parametrize("part", ["spec", "status"])
@pytest.mark.parametrize("value", [MISSING, {}], ids=["left out", "empty"])
def test_view_job_without_spec_or_status_does_not_raise(part: str, value: Any) -> None:
    raw = job_raw()
    if value is MISSING:
        del raw[part]
    else:
        raw[part] = value
    view = view_job(raw)
    assert bool(view.unreadable) == (part == "spec")
    assert view.status.attempt == 0


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({"cancel": True}, (True, None)),
        ({"cancel": "yes"}, (False, None)),
        ({"ttlSecondsAfterFinished": 5}, (False, 5)),
        ({"ttlSecondsAfterFinished": -5}, (False, None)),
        ({"ttlSecondsAfterFinished": "5"}, (False, None)),
        ({"ttlSecondsAfterFinished": 2**40}, (False, None)),
        ({"cancel": True, "ttlSecondsAfterFinished": 0}, (True, 0)),
    ],
)
def test_view_job_unreadable_spec_keeps_cancel_and_time_to_live(
    spec: Raw, want: tuple[bool, int | None]
) -> None:
    view = view_job(job_raw(trainer={"imagePullPolicy": "Sometimes"}, **spec))
    assert view.unreadable
    assert (view.spec.cancel, view.spec.ttl_seconds_after_finished) == want


HOSTILE: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    2**64,
    1.5,
    "",
    "x" * 5000,
    "\ud800",
    [],
    [{}],
    [None],
    {},
    {"a": 1},
)


@pytest.mark.parametrize("field", [*recorded(1), "progress", "checkpoint", "waiting", "result"])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:12])
def test_view_job_of_any_status_keeps_what_can_be_read(field: str, value: Any) -> None:
    """An exception here would retry this TrainingJob for ever, and say so nowhere."""
    status = {**recorded(3, C.FINISHED), "retries": 2, field: value}
    found = view_job(job_raw(status=status)).status
    assert (found.attempt, found.retries) == (3 if field != "attempt" else found.attempt, 2)
    finished = {c.type for c in found.conditions if c.status == "True"}
    assert finished == ({C.FINISHED} if field != "conditions" else set())


def test_view_job_invalid_times_are_left_out() -> None:
    times = dict.fromkeys(("retryTime", "startTime", "completionTime"), "2026-02-30T99:00:00Z")
    view = view_job(job_raw(status=recorded(3, **times)))
    assert view.status.attempt == 3
    found = (view.status.retry_time, view.status.start_time, view.status.completion_time)
    assert found == (None, None, None)
