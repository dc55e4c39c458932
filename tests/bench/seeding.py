"""Seeding: thousands of TrainingJobs and pods, as a cluster has them after a while.

Called by `bench_scale`. The real operator first takes one job to its end and two to Running, while
this module plays scheduler, kubelet and trainer; then all three and their pods are copied in etcd.
So a seeded object is what this version of the operator and the API server have written, and a
restarted operator finds nothing to correct.
"""

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from bench.environment import CLAIM, PLACEMENT, ROOT
from bench.own_api_server import Etcd
from bench.writes import USER, Raw, Writer
from ktrdr_api import names
from ktrdr_api.run_contract import ArtifactRef, CheckpointRef, Metric, Outcome, RunResult, Stage
from ktrdr_api.training_job import STRATEGY_MAX_BYTES, Progress
from ktrdr_client.cluster import PODS, TRAINING_JOBS, Resource

RUNNING_EVERY: Final = 10
"""One TrainingJob of ten runs, the others have finished."""
LARGE_EVERY: Final = 10
"""One running TrainingJob of ten has the largest inline strategy."""
STATE_LABEL: Final = "bench.ktrdr.io/state"
RUNNING: Final = "running"
FINISHED: Final = "finished"
TEMPLATE_SECONDS: Final = 60.0
SERVED_SECONDS: Final = 120.0
NODE: Final = "bench-1"
"""Node of every pod; only its name is needed."""
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
STRATEGY_FILE: Final = ROOT / "strategies/neuro_mean_reversion.yaml"
_DIGEST: Final = "sha256:" + "0" * 64
_CHECKPOINT: Final = CheckpointRef(
    epoch=16,
    step=10240,
    path="checkpoints/x/16-10240",
    time="2026-01-01T12:00:00Z",
    digest=_DIGEST,
)
"""The same in every report: between two checkpoints, 5 minutes by default, it does not change."""


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def job_body(namespace: str, name: str, state: str, *, large: bool = False) -> Raw:
    """A TrainingJob as `kubectl apply` sends it, the copy of itself included."""
    claim = {"persistentVolumeClaim": {"claimName": CLAIM}}
    strategy = STRATEGY_FILE.read_text(encoding="utf-8")
    if large:
        strategy += "# padding\n" * ((STRATEGY_MAX_BYTES - len(strategy.encode())) // 10)
    body: Raw = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace, "labels": {STATE_LABEL: state}},
        "spec": {
            "strategy": {"inline": strategy},
            "data": claim,
            "output": claim,
            "trainer": PLACEMENT,
        },
    }
    body["metadata"]["annotations"] = {LAST_APPLIED: json.dumps(body)}
    return body


def progress(pod_uid: str, step: int = 1) -> Raw:
    """`status.progress` as a trainer reports it in the middle of training."""
    values = {"train_loss": 0.4321, "train_accuracy": 0.81, "val_loss": 0.5, "val_accuracy": 0.79}
    body = {
        "attempt": 1,
        "podUID": pod_uid,
        "stage": Stage.TRAINING,
        "percentage": 37,
        "currentEpoch": 17,
        "totalEpochs": 50,
        "currentBatch": step % 640,
        "totalBatches": 640,
        "step": step,
        "samplesPerSecond": 123456,
        "estimatedRemainingSeconds": 260,
        "metrics": [{"name": name, "value": f"{value:.6g}"} for name, value in values.items()],
        "message": f"Epoch 17/50 · Batch {step % 640}/640",
        "lastUpdateTime": now(),
        "checkpoint": _CHECKPOINT.model_dump(by_alias=True),
        "display": {
            "epoch": "17/50",
            "batch": f"{step % 640}/640",
            "eta": "4m20s",
            "loss": "0.4321",
            "progress": "37%",
        },
    }
    model = Progress.model_validate(body)
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def run_result(job_uid: str) -> RunResult:
    """The termination message of a trainer that has stored a model."""
    return RunResult(
        job_uid=job_uid,
        attempt=1,
        outcome=Outcome.SUCCEEDED,
        exit_code=0,
        reason="Succeeded",
        message="Model stored",
        epoch=50,
        step=32000,
        epochs_completed=50,
        best_epoch=42,
        duration_seconds=1234,
        metrics=tuple(Metric(name=f"test_metric_{n}", value="0.5") for n in range(8)),
        checkpoint=_CHECKPOINT,
        artifact=ArtifactRef(path="models/x", digest=_DIGEST, size_bytes=123456),
    )


def pod_status(before: Raw, job_uid: str, *, finished: bool) -> Raw:
    """What a kubelet writes for a pod that runs, or that has succeeded."""
    state: Raw = {"running": {"startedAt": now()}}
    if finished:
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}
        state = {"terminated": {**ended, "message": run_result(job_uid).termination_message()}}
    container = before["spec"]["containers"][0]
    kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    not_ready = {"ContainersReady", "Ready"} if finished else set()
    return {
        "phase": "Succeeded" if finished else "Running",
        "startTime": now(),
        "hostIP": "10.0.0.1",
        "podIP": "10.0.0.2",
        "podIPs": [{"ip": "10.0.0.2"}],
        "conditions": [
            {
                "type": kind,
                "status": "False" if kind in not_ready else "True",
                "lastTransitionTime": now(),
            }
            for kind in kinds
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": not finished,
                "started": not finished,
                "restartCount": 0,
                "state": state,
            }
        ],
    }


@dataclass(frozen=True)
class Template:
    """A TrainingJob and its pod as etcd stores them, in whose text names and UIDs are replaced."""

    job: str
    pod: str
    name: str
    job_uid: str
    pod_uid: str

    def copy(self, namespace: str, name: str) -> dict[str, str]:
        """Keys and texts of another TrainingJob and its pod."""
        job_uid, pod_uid = str(uuid.uuid4()), str(uuid.uuid4())
        job, pod = (
            text.replace(self.name, name)
            .replace(self.job_uid, job_uid)
            .replace(self.pod_uid, pod_uid)
            for text in (self.job, self.pod)
        )
        pod_name = names.pod_name(name, 1)
        return {_job_key(namespace, name): job, _pod_key(namespace, pod_name): pod}


def _job_key(namespace: str, name: str) -> str:
    return f"/registry/{names.GROUP}/{names.PLURAL}/{namespace}/{name}"


def _pod_key(namespace: str, name: str) -> str:
    return f"/registry/pods/{namespace}/{name}"


@dataclass(frozen=True)
class Templates:
    """What is copied."""

    finished: Template
    running: Template
    running_large: Template

    def of(self, number: int) -> Template:
        """The template of one TrainingJob."""
        if number % RUNNING_EVERY:
            return self.finished
        return self.running if number % (RUNNING_EVERY * LARGE_EVERY) else self.running_large


@dataclass
class Seeder:
    """Creates TrainingJobs and pods in one namespace."""

    writer: Writer
    etcd: Etcd
    namespace: str

    async def make_templates(self) -> Templates:
        """Take one job to its end and two to Running; the operator must be at work."""
        return Templates(
            await self._make("template-finished", finished=True),
            await self._make("template-running", finished=False),
            await self._make("template-large", finished=False, large=True),
        )

    async def _make(self, name: str, *, finished: bool, large: bool = False) -> Template:
        state = FINISHED if finished else RUNNING
        body = job_body(self.namespace, name, state, large=large)
        job = await self.writer.create(TRAINING_JOBS, body, manager=USER)
        job_uid, pod_name = job["metadata"]["uid"], names.pod_name(name, 1)
        pod = await self._wait_for(PODS, pod_name, lambda _: True)
        pod_uid = pod["metadata"]["uid"]
        await self.writer.bind(self.namespace, pod_name, NODE)
        await self._play_kubelet(pod, job_uid, finished=False)
        await self._wait_for(TRAINING_JOBS, name, lambda raw: _phase(raw) == "Running")
        reported = {"progress": progress(pod_uid)}
        await self.writer.apply_status(
            self.namespace, name, reported, manager=names.TRAINER_MANAGER
        )
        if finished:
            await self._play_kubelet(pod, job_uid, finished=True)
            await self._wait_for(TRAINING_JOBS, name, _is_finished)
        return await self._stored(name, job_uid, pod_uid)

    async def _stored(self, name: str, job_uid: str, pod_uid: str) -> Template:
        pod_name = names.pod_name(name, 1)
        job = await self.etcd.get(_job_key(self.namespace, name))
        pod = await self.etcd.get(_pod_key(self.namespace, pod_name))
        return Template(job, pod, name, job_uid, pod_uid)

    async def _play_kubelet(self, pod: Raw, job_uid: str, *, finished: bool) -> None:
        status = pod_status(pod, job_uid, finished=finished)
        await self.writer.patch_pod_status(self.namespace, pod["metadata"]["name"], status)

    async def _wait_for(self, resource: Resource, name: str, reached: Callable[[Raw], bool]) -> Raw:
        deadline = time.monotonic() + TEMPLATE_SECONDS
        while True:
            raw = await self.writer.cluster.get(resource, self.namespace, name)
            if raw is not None and reached(raw):
                return raw
            if time.monotonic() > deadline:
                status = raw and raw.get("status")
                sys.exit(f'{resource.kind} "{name}" is not as expected, its status: {status}')
            await asyncio.sleep(0.1)

    async def remove_templates(self, templates: Templates) -> None:
        """Delete what was copied; no operator may be at work."""
        for template in (templates.finished, templates.running, templates.running_large):
            pod_name = names.pod_name(template.name, 1)
            await self.writer.delete_now(PODS, self.namespace, pod_name)
            await self.writer.delete_now(TRAINING_JOBS, self.namespace, template.name)

    async def seed(self, templates: Templates, first: int, end: int) -> None:
        """Create TrainingJobs number `first` to `end` - 1 with their pods."""
        pairs = (
            pair
            for number in range(first, end)
            for pair in templates.of(number).copy(self.namespace, f"seed-{number:05}").items()
        )
        await self.etcd.put_all(pairs)
        for resource in (TRAINING_JOBS, PODS):
            await self._wait_until_served(resource, end)

    async def _wait_until_served(self, resource: Resource, count: int) -> None:
        """The API server follows etcd in its own time; until then its lists fail or are short."""
        async with asyncio.timeout(SERVED_SECONDS):
            while await self.writer.count(resource, self.namespace) < count:
                await asyncio.sleep(0.5)


def _phase(raw: Raw) -> str:
    return str(raw.get("status", {}).get("phase", ""))


def _is_finished(raw: Raw) -> bool:
    conditions = raw.get("status", {}).get("conditions", [])
    return any(c["type"] == "Finished" and c["status"] == "True" for c in conditions)
