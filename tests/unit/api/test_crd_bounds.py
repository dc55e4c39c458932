"""Bounds of spec and status, as documented in the contract: a changed limit is a changed API."""

from collections.abc import Iterator
from typing import Any

from ktrdr_api.crd import build

Bounds = tuple[int | None, int | None]
LOWER = ("minimum", "minLength", "minItems")
UPPER = ("maximum", "maxLength", "maxItems", "maxProperties")

SPEC: dict[str, Bounds] = {
    "strategy.inline": (1, 65536),
    "strategy.configMapKeyRef.name": (1, 253),
    "strategy.configMapKeyRef.key": (1, 253),
    "symbols": (1, 256),
    "symbols[]": (None, 32),
    "timeframes": (1, 8),
    "startDate": (10, 10),
    "endDate": (10, 10),
    "data.persistentVolumeClaim.claimName": (1, 253),
    "data.persistentVolumeClaim.subPath": (1, 255),
    "output.persistentVolumeClaim.claimName": (1, 253),
    "output.persistentVolumeClaim.subPath": (1, 255),
    "trainer.image": (1, 512),
    "trainer.imagePullSecrets": (None, 8),
    "trainer.imagePullSecrets[].name": (1, 253),
    "trainer.resources.requests": (None, 16),
    "trainer.resources.requests{}": (0, 32),
    "trainer.resources.limits": (None, 16),
    "trainer.resources.limits{}": (0, 32),
    "trainer.env": (None, 32),
    "trainer.env[].name": (1, 128),
    "trainer.env[].value": (None, 4096),
    "trainer.nodeSelector": (None, 16),
    "trainer.nodeSelector{}": (None, 63),
    "trainer.tolerations": (None, 16),
    "trainer.tolerations[].key": (None, 317),
    "trainer.tolerations[].value": (None, 63),
    "trainer.tolerations[].tolerationSeconds": (0, 2147483647),
    "trainer.priorityClassName": (1, 253),
    "trainer.runtimeClassName": (1, 253),
    "trainer.schedulerName": (1, 253),
    "cancellation.gracePeriodSeconds": (0, 3600),
    "backoffLimit": (0, 100),
    "disruptionLimit": (0, 10000),
    "historyLimit": (0, 100),
    "ttlSecondsAfterFinished": (0, 2147483647),
    "checkpoint.periodSeconds": (1, 86400),
    "progress.periodSeconds": (1, 60),
}
"""Smallest and largest number, or number of characters, items or entries."""

STATUS: dict[str, Bounds] = {
    "observedGeneration": (-1, None),
    "phase": (None, 32),
    "reason": (None, 64),
    "message": (None, 1024),
    "startTime": (None, 64),
    "completionTime": (None, 64),
    "attempt": (0, None),
    "retries": (0, None),
    "retryTime": (None, 64),
    "disruptions": (0, None),
    "disruptionsSinceCheckpoint": (0, None),
    "gpus": (0, None),
    "podName": (None, 253),
    "host": (None, 253),
    "reportPeriodSeconds": (1, 3600),
    "waiting.reason": (None, 64),
    "waiting.message": (None, 1024),
    "waiting.since": (None, 64),
    "waiting.retryTime": (None, 64),
    "conditions": (None, 8),
    "conditions[].type": (None, 64),
    "conditions[].reason": (1, 64),
    "conditions[].message": (None, 1024),
    "conditions[].lastTransitionTime": (None, 64),
    "conditions[].observedGeneration": (-1, None),
    "progress.attempt": (1, None),
    "progress.podUID": (None, 64),
    "progress.percentage": (0, 100),
    "progress.currentEpoch": (0, None),
    "progress.totalEpochs": (0, None),
    "progress.currentBatch": (0, None),
    "progress.totalBatches": (0, None),
    "progress.step": (0, None),
    "progress.samplesPerSecond": (0, None),
    "progress.estimatedRemainingSeconds": (0, None),
    "progress.metrics": (None, 32),
    "progress.metrics[].name": (None, 63),
    "progress.metrics[].value": (None, 32),
    "progress.message": (None, 256),
    "progress.lastUpdateTime": (None, 64),
    "progress.checkpoint.epoch": (0, None),
    "progress.checkpoint.step": (0, None),
    "progress.checkpoint.path": (None, 512),
    "progress.checkpoint.time": (None, 64),
    "progress.checkpoint.digest": (None, 71),
    "progress.display.epoch": (None, 32),
    "progress.display.batch": (None, 32),
    "progress.display.eta": (None, 32),
    "progress.display.loss": (None, 32),
    "progress.display.progress": (None, 32),
    "cancellation.requestedTime": (None, 64),
    "cancellation.acknowledgedTime": (None, 64),
    "cancellation.stoppedTime": (None, 64),
    "cancellation.epoch": (0, None),
    "cancellation.batch": (0, None),
    "cancellation.checkpoint.epoch": (0, None),
    "cancellation.checkpoint.step": (0, None),
    "cancellation.checkpoint.path": (None, 512),
    "cancellation.checkpoint.time": (None, 64),
    "cancellation.checkpoint.digest": (None, 71),
    "checkpoint.epoch": (0, None),
    "checkpoint.step": (0, None),
    "checkpoint.path": (None, 512),
    "checkpoint.time": (None, 64),
    "checkpoint.digest": (None, 71),
    "result.outcome": (None, 32),
    "result.durationSeconds": (0, None),
    "result.metrics": (None, 32),
    "result.metrics[].name": (None, 63),
    "result.metrics[].value": (None, 32),
    "result.artifact.path": (None, 512),
    "result.artifact.digest": (None, 71),
    "result.artifact.sizeBytes": (0, None),
    "result.epochsCompleted": (0, None),
    "result.bestEpoch": (0, None),
    "failure.attempt": (0, None),
    "failure.rank": (0, None),
    "failure.reason": (None, 64),
    "failure.message": (None, 1024),
    "warnings": (None, 8),
    "warnings[]": (None, 256),
}


def bounds(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Bounds]]:
    lower = [int(node[keyword]) for keyword in LOWER if keyword in node]
    upper = [int(node[keyword]) for keyword in UPPER if keyword in node]
    if lower or upper:
        yield path, (next(iter(lower), None), next(iter(upper), None))
    for name, below in node.get("properties", {}).items():
        yield from bounds(below, f"{path}.{name}" if path else name)
    for keyword, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if keyword in node:
            yield from bounds(node[keyword], path + mark)


def test_spec_bounds_are_those_of_the_contract() -> None:
    root = build()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert dict(bounds(root["properties"]["spec"])) == SPEC


def test_status_bounds_are_those_of_the_contract() -> None:
    root = build()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert dict(bounds(root["properties"]["status"])) == STATUS
