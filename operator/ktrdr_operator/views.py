"""Views: parses raw objects into the typed values that decisions depend on. No I/O.

`store` keeps and compares pod views; `observe` builds the Snapshot from pod and job views. Foreign
text (of the scheduler, the kubelet, the trainer) is sanitized here.
"""

import logging
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from ktrdr_api import names
from ktrdr_api.run_contract import RunResult
from ktrdr_api.training_job import Condition, Progress, TrainingJobSpec, TrainingJobStatus
from ktrdr_operator.snapshot import JobView, PodView, Termination, WaitReason

log: Final = logging.getLogger(__name__)

Raw = dict[str, Any]
"""A Kubernetes object as JSON."""

TEXT_MAX_LENGTH: Final = 800
"""Leaves room for the operator's own text in a status message of 1,024 characters."""
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_POD_NAME: Final = re.compile(r"-(?P<attempt>[0-9]{1,9})-(?P<rank>[0-9]{1,4})$")
_NO_VOLUME: Final = {"persistentVolumeClaim": {"claimName": "unreadable"}}
_NO_SPEC: Final = {"strategy": {}, "data": _NO_VOLUME, "output": _NO_VOLUME}
"""Placeholder for a spec that cannot be read, so that the status can be decided."""
_INIT_WORDS: Final = frozenset({"PodInitializing", "ContainerCreating"})
"""Reasons that only say that another container or the kubelet has not finished its part."""


def sanitize(text: str) -> str:
    """Make foreign text safe for status: no control or bidi characters, bounded, its end kept."""
    kept = (" " if _is_control(c) else c for c in _ESCAPES.sub(" ", text))
    plain = "".join(kept).encode(errors="replace").decode().strip()
    return plain if len(plain) <= TEXT_MAX_LENGTH else "..." + plain[3 - TEXT_MAX_LENGTH :]


def _is_control(character: str) -> bool:
    """Whether it is a control, format (bidi override), surrogate or separator, not a newline."""
    category = unicodedata.category(character)
    return character != "\n" and (category in ("Cc", "Cf", "Cs", "Zl", "Zp"))


def training_job_owner(metadata: Raw) -> Raw | None:
    """Reference to the TrainingJob that controls an object; None for another owner's object."""
    for owner in metadata.get("ownerReferences", []):
        group = owner["apiVersion"].partition("/")[0]
        if owner.get("controller") and (group, owner["kind"]) == (names.GROUP, names.KIND):
            found: Raw = owner
            return found
    return None


def training_job_uid(metadata: Raw) -> str:
    """UID of the TrainingJob that controls an object; empty for another owner's object."""
    owner = training_job_owner(metadata)
    return str(owner["uid"]) if owner is not None else ""


def view_job(raw: Raw) -> JobView:
    """Parse a TrainingJob. Unreadable fields are left out and raise no exception.

    `unreadable` describes an unreadable spec. Every readable field of an unreadable status is kept,
    so that attempt does not decrease and terminal conditions do not revert.
    """
    metadata = raw["metadata"]
    spec, unreadable = _spec(raw.get("spec", {}))
    return JobView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        deleting="deletionTimestamp" in metadata,
        orphaning="orphan" in metadata.get("finalizers", []),
        labels=metadata.get("labels", {}),
        annotations=metadata.get("annotations", {}),
        spec=spec,
        status=_status(raw),
        resource_version=metadata["resourceVersion"],
        unreadable=unreadable,
    )


def _spec(raw: Raw) -> tuple[TrainingJobSpec, str]:
    try:
        return TrainingJobSpec.model_validate(raw), ""
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("spec", *(str(part) for part in first["loc"])))
        return _readable_spec(raw), sanitize(f"{where}: {first['msg']}")


def _readable_spec(raw: Raw) -> TrainingJobSpec:
    """Fields of an unreadable spec that a user may still change, each parsed alone."""
    spec = TrainingJobSpec.model_validate(_NO_SPEC)
    for name in ("cancel", "ttlSecondsAfterFinished"):
        try:
            one = TrainingJobSpec.model_validate({**_NO_SPEC, name: raw[name]}, strict=True)
        except (KeyError, ValidationError):
            continue
        spec = spec.model_copy(update=one.model_dump(include=one.model_fields_set - set(_NO_SPEC)))
    return spec


def _status(raw: Raw) -> TrainingJobStatus:
    given = dict(raw.get("status", {}))
    progress = _progress(given.pop("progress", None), raw["metadata"])
    try:
        status = TrainingJobStatus.model_validate(given)
    except ValidationError:
        status = _readable_status(given)
    return status.model_copy(update={"progress": progress})


def _readable_status(given: Raw) -> TrainingJobStatus:
    """All fields that can be parsed alone."""
    readable: Raw = {}
    for name, value in given.items():
        kept = _readable_conditions(value) if name == "conditions" else value
        try:
            TrainingJobStatus.model_validate({name: kept})
        except ValidationError:
            continue
        readable[name] = kept
    return TrainingJobStatus.model_validate(readable)


def _readable_conditions(value: object) -> list[Raw]:
    kept = []
    for condition in value if isinstance(value, list) else []:
        try:
            Condition.model_validate(condition)
        except ValidationError:
            continue
        kept.append(condition)
    return kept


def _progress(reported: object, metadata: Raw) -> Progress | None:
    """Parse the progress; None if it is unreadable: the job's state does not depend on it."""
    if reported is None:
        return None
    try:
        return Progress.model_validate(reported)
    except ValidationError as error:
        where = {"namespace": metadata["namespace"], "job": metadata["name"]}
        log.warning("status.progress not readable, ignored: %s", sanitize(str(error)), extra=where)
        return None


def view_pod(raw: Raw, *, gone: bool = False) -> PodView:
    """Parse a pod of a TrainingJob.

    Attempt and rank are parsed from the name, which cannot change, unlike labels.
    """
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    number = _POD_NAME.search(metadata["name"])
    state = _trainer_state(status)
    termination = _termination(state.get("terminated"))
    running, created = state.get("running"), _time(metadata.get("creationTimestamp"))
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    view = PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=training_job_uid(metadata),
        attempt=int(number["attempt"]) if number else -1,
        rank=int(number["rank"]) if number else -1,
        node=spec.get("nodeName"),
        created=created,
        deletion_time=_time(metadata.get("deletionTimestamp")),
        gone=gone,
        unlabelled=names.LABEL_JOB not in metadata.get("labels", {}),
        disrupted=_disrupted(status, conditions),
        phase=status.get("phase", ""),
        message=sanitize(_pod_message(status)),
        scheduler=spec.get("schedulerName", ""),
        # A running container has started, even if its node reports no valid time.
        started=_time(running.get("startedAt")) or created if running is not None else None,
        termination=termination,
        others_alive=_others_alive(status),
        wait_reason=None,
    )
    if running is not None or view.ended:
        return view
    sidecars = _sidecars(spec)
    return replace(view, wait_reason=_wait_reason(status, conditions, state, sidecars))


def _pod_message(status: Raw) -> str:
    """Message of the pod, otherwise of the init container that made it fail."""
    reason, message = status.get("reason", ""), status.get("message", "")
    if reason and message:
        return f"{reason}: {message}"
    if reason or message or status.get("phase") != "Failed":
        return str(reason or message)
    statuses = status.get("initContainerStatuses", [])
    words = (_failure_words("Init container", container) for container in statuses)
    return next((found.message for found in words if found is not None), "")


def _sidecars(spec: Raw) -> frozenset[str]:
    """Names of the init containers that run beside the trainer."""
    containers = spec.get("initContainers", [])
    return frozenset(c["name"] for c in containers if c.get("restartPolicy") == "Always")


def _trainer_state(status: Raw) -> Raw:
    for container in status.get("containerStatuses", []):
        if container["name"] == names.TRAINER_CONTAINER:
            state: Raw = container.get("state", {})
            return state
    return {}


def _others_alive(status: Raw) -> bool:
    """Init containers do not count: the kubelet stops sidecars among them after the trainer."""
    return any(
        "terminated" not in container.get("state", {})
        for container in status.get("containerStatuses", [])
        if container["name"] != names.TRAINER_CONTAINER
    )


def _disrupted(status: Raw, conditions: dict[str, Raw]) -> bool:
    target = conditions.get("DisruptionTarget", {}).get("status") == "True"
    return target or status.get("reason") in {
        "Evicted",
        "Preempting",
        "NodeLost",
        "NodeShutdown",
        "Shutdown",
        "Terminated",
    }


def _termination(terminated: Raw | None) -> Termination | None:
    if terminated is None:
        return None
    message = terminated.get("message", "")
    return Termination(
        exit_code=terminated["exitCode"],
        reason=terminated.get("reason", ""),
        message=sanitize(message),
        started=_time(terminated.get("startedAt")),
        finished=_time(terminated.get("finishedAt")),
        result=_result(message),
    )


def _result(message: str) -> RunResult | None:
    """Parse a run result; None if the trainer was killed before it wrote one.

    The message is the end of the log then. The user chooses the trainer's image, so its result is
    foreign text, and two metrics of the same name would make the API server reject the status.
    """
    try:
        result = RunResult.model_validate_json(message)
    except ValidationError:
        return None
    metrics = tuple({metric.name: metric for metric in result.metrics}.values())
    return result.model_copy(update={"message": sanitize(result.message), "metrics": metrics})


def _wait_reason(
    status: Raw, conditions: dict[str, Raw], state: Raw, sidecars: frozenset[str]
) -> WaitReason | None:
    """Most specific reason in the pod's status; None if it contains none.

    In this order: the scheduler, init containers and sidecars (they start before the trainer), the
    trainer container, other containers, conditions such as a failed sandbox.
    """
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("message"):
        return WaitReason(scheduled.get("reason", ""), sanitize(scheduled["message"]))
    others = [c for c in status.get("containerStatuses", []) if c.get("state") is not state]
    for words in (
        *_init_words(status.get("initContainerStatuses", []), sidecars),
        _waiting_words("", state.get("waiting")),
        *_container_words("Container", others),
        *_condition_words(conditions.values()),
    ):
        if words is not None:
            return words
    return None


def _init_words(containers: Iterable[Raw], sidecars: frozenset[str]) -> Iterable[WaitReason | None]:
    """Reasons of init containers, which run one after the other until each has ended.

    A sidecar counts until it has started. The kubelet also reports `started` for an ordinary init
    container as soon as it runs.
    """
    for container in containers:
        yield from _container_words("Init container", (container,))
        is_over = container["name"] in sidecars and container.get("started")
        if container.get("state", {}).get("running") is not None and not is_over:
            text = f'Init container "{container["name"]}": has not finished'
            yield WaitReason("PodInitializing", text, is_progress=True)


def _container_words(what: str, containers: Iterable[Raw]) -> Iterable[WaitReason | None]:
    for container in containers:
        prefix = f'{what} "{container["name"]}": '
        yield _waiting_words(prefix, container.get("state", {}).get("waiting"))
        yield _failure_words(what, container)


def _failure_words(what: str, container: Raw) -> WaitReason | None:
    ended = container.get("state", {}).get("terminated") or {}
    if not ended.get("exitCode"):
        return None
    reason = ended.get("reason", "")
    words = ended.get("message") or reason
    text = f'{what} "{container["name"]}": ended with exit code {ended["exitCode"]}: {words}'
    return WaitReason(reason, sanitize(text))


def _waiting_words(prefix: str, waiting: Raw | None) -> WaitReason | None:
    reason, message = (waiting or {}).get("reason", ""), (waiting or {}).get("message", "")
    if not message and reason in ("", *_INIT_WORDS):
        return None
    return WaitReason(reason, sanitize(prefix + (message or reason)))


def _condition_words(conditions: Iterable[Raw]) -> Iterable[WaitReason | None]:
    for condition in conditions:
        telling = condition["type"] not in ("Ready", "ContainersReady", "Initialized")
        if telling and condition.get("status") == "False" and condition.get("message"):
            text = f"{condition['type']}: {condition['message']}"
            yield WaitReason(condition.get("reason", ""), sanitize(text))


def _time(text: str | None) -> datetime | None:
    """Parse a time; None for 1970, the kubelet's value for a container that never started."""
    moment = datetime.fromisoformat(text) if text else None
    return moment if moment is None or moment.year > 1970 else None
