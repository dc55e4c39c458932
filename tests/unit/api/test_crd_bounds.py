"""Bounds of the spec, as documented in the contract: a changed limit is a changed API."""

from collections.abc import Iterator
from typing import Any

from ktrdr_api.crd import build

Bounds = tuple[int | None, int | None]
LOWER = ("minimum", "minLength", "minItems")
UPPER = ("maximum", "maxLength", "maxItems", "maxProperties")

WANT: dict[str, Bounds] = {
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
    assert dict(bounds(root["properties"]["spec"])) == WANT
