"""Views: raw objects as decisions see them. Pure parsing; no I/O.

`store` and `watch_filter` keep and compare pod views, `observe` builds the Snapshot from both.
Foreign text (of the scheduler, the kubelet, the trainer) is made safe here.
"""

import logging
import re
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from ktrdr_api import names
from ktrdr_api.run_contract import RunResult
from ktrdr_api.training_job import Progress, TrainingJob
from ktrdr_operator.snapshot import JobView, PodView, Termination, WaitReason

log: Final = logging.getLogger(__name__)

Raw = dict[str, Any]
"""A Kubernetes object as JSON."""

TEXT_MAX_LENGTH: Final = 900
"""Leaves room in a 1,024-character status message for our own words."""
_CONTROL: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\S\n]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def sanitize(text: str) -> str:
    """Foreign text made safe for status: no control characters, bounded, end kept."""
    plain = _CONTROL.sub(" ", text).strip()
    return plain if len(plain) <= TEXT_MAX_LENGTH else "..." + plain[3 - TEXT_MAX_LENGTH :]


def training_job_uid(metadata: Raw) -> str:
    """UID of the TrainingJob that controls an object; empty when it is somebody else's."""
    for owner in metadata.get("ownerReferences", []):
        group = owner["apiVersion"].partition("/")[0]
        if owner.get("controller") and (group, owner["kind"]) == (names.GROUP, names.KIND):
            return str(owner["uid"])
    return ""


def view_job(raw: Raw) -> JobView:
    """Parse a TrainingJob; progress that cannot be read counts as none."""
    metadata = raw["metadata"]
    status = dict(raw.get("status", {}))
    reported = status.pop("progress", None)
    parsed = TrainingJob.model_validate({"spec": raw.get("spec", {}), "status": status})
    return JobView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        deleting="deletionTimestamp" in metadata,
        labels=metadata.get("labels", {}),
        spec=parsed.spec,
        status=parsed.status.model_copy(update={"progress": _progress(reported, metadata)}),
        resource_version=metadata["resourceVersion"],
    )


def _progress(reported: Raw | None, metadata: Raw) -> Progress | None:
    """None as well where it cannot be read: it is only a trainer's word, not the job's state."""
    if reported is None:
        return None
    try:
        return Progress.model_validate(reported)
    except ValidationError as error:
        where = {"namespace": metadata["namespace"], "job": metadata["name"]}
        log.warning("status.progress ignored: %s", sanitize(str(error)), extra=where)
        return None


def view_pod(raw: Raw, *, gone: bool = False) -> PodView:
    """Parse a pod of ours."""
    metadata, status = raw["metadata"], raw.get("status", {})
    labels = metadata.get("labels", {})
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    container = _trainer_container(status)
    state = container.get("state", {})
    termination = _termination(state.get("terminated"))
    running = state.get("running")
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=training_job_uid(metadata),
        attempt=_label_number(labels, names.LABEL_ATTEMPT),
        rank=_label_number(labels, names.LABEL_RANK),
        node=raw.get("spec", {}).get("nodeName"),
        deleting="deletionTimestamp" in metadata,
        gone=gone,
        disrupted=_disrupted(status, conditions),
        failed=status.get("phase") == "Failed",
        pod_message=sanitize(status.get("message", "")),
        started=_time(running["startedAt"]) if running else None,
        termination=termination,
        wait_reason=None if running or termination else _obstacle(conditions, state),
    )


def _trainer_container(status: Raw) -> Raw:
    for container in status.get("containerStatuses", []):
        if container["name"] == names.TRAINER_CONTAINER:
            found: Raw = container
            return found
    return {}


def _label_number(labels: dict[str, str], name: str) -> int:
    value = labels.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else -1


def _disrupted(status: Raw, conditions: dict[str, Raw]) -> bool:
    target = conditions.get("DisruptionTarget", {}).get("status") == "True"
    return target or status.get("reason") in {"Evicted", "Preempting", "NodeLost", "Shutdown"}


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
    """None when the trainer was killed before its last word: then this is the end of its log.

    The trainer's image is the user's choice: what it says is foreign text, and two metrics of one
    name would make the API server refuse the status.
    """
    try:
        result = RunResult.model_validate_json(message)
    except ValidationError:
        return None
    metrics = tuple({metric.name: metric for metric in result.metrics}.values())
    return result.model_copy(update={"message": sanitize(result.message), "metrics": metrics})


def _obstacle(conditions: dict[str, Raw], state: Raw) -> WaitReason | None:
    """None as well where nobody says a word: then it takes its course."""
    scheduled = conditions.get("PodScheduled", {})
    holds = scheduled if scheduled.get("status") == "False" else state.get("waiting") or {}
    message = sanitize(holds.get("message", ""))
    return WaitReason(holds.get("reason", ""), message) if message else None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
