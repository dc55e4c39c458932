"""Objects that a cluster administrator creates for tests: fake nodes, volumes, resources."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import native

# Runs kubectl with these arguments and this text on stdin, and returns its stdout.
Kubectl = Callable[..., str]
FAKE_LABEL = "type=kwok"


def fake_nodes(kubectl: Kubectl, count: int, gpus: int) -> None:
    """Set the number of nodes that only kwok serves: their pods run nothing.

    The API server ignores the status of a node that exists, so previous ones are deleted first.
    """
    kubectl("delete", "nodes", "-l", FAKE_LABEL, "--ignore-not-found")
    if count:
        nodes = [_fake_node(number, gpus) for number in range(1, count + 1)]
        kubectl("create", "-f", "-", stdin=json.dumps(_list(nodes)))


def _list(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _fake_node(number: int, gpus: int) -> dict[str, Any]:
    resources = {"cpu": "64", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    name = f"fake-{number}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"type": "kwok", "kubernetes.io/hostname": name},
        },
        "spec": {
            "taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]
        },
        "status": {"allocatable": resources, "capacity": resources},
    }


def extended_resource(kubectl: Kubectl, node: str, name: str, count: int) -> None:
    """Give a real node `count` of a resource that it does not have; 0 removes it."""
    value = {name: str(count) if count else None}
    patch = json.dumps({"status": {"capacity": value, "allocatable": value}})
    kubectl("patch", "node", node, "--subresource=status", "--type=merge", f"--patch={patch}")


@dataclass(frozen=True)
class Volume:
    """A claim `namespace/claim` and the volume `name` behind it.

    Attributes:
        size: A Kubernetes quantity, such as 1Gi; nothing enforces it on a hostPath.
        mode: ReadWriteOnce, ReadOnlyMany, ReadWriteMany or ReadWriteOncePod.
    """

    name: str
    namespace: str
    claim: str
    size: str
    mode: str

    def manifest_of_volume(self, folder: Path) -> dict[str, Any]:
        """The hostPath volume, reserved for the claim."""
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": self.name},
            "spec": {
                "capacity": {"storage": self.size},
                "accessModes": [self.mode],
                "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(folder), "type": "Directory"},
                "claimRef": {"namespace": self.namespace, "name": self.claim},
            },
        }

    def manifest_of_claim(self, bound: bool) -> dict[str, Any]:
        """The claim: of that volume if `bound`, else of the default storage class."""
        fixed = {"storageClassName": "", "volumeName": self.name} if bound else {}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": self.claim, "namespace": self.namespace},
            "spec": {
                "accessModes": [self.mode],
                "resources": {"requests": {"storage": self.size}},
                **fixed,
            },
        }


def make_volume(kubectl: Kubectl, volume: Volume, folder: Path | None) -> None:
    """Create a claim; with `folder`, also the hostPath volume that it is bound to."""
    claim = json.dumps(volume.manifest_of_claim(bound=folder is not None))
    if folder is None:
        kubectl("apply", "-f", "-", stdin=claim)
        return
    native.prepare_volume(folder)
    # A volume stays bound to the UID of its deleted claim forever: create it again.
    phase = "jsonpath={.status.phase}"
    if kubectl("get", "pv", volume.name, "--ignore-not-found", "-o", phase) == "Released":
        kubectl("delete", "pv", volume.name)
    kubectl("apply", "-f", "-", stdin=json.dumps(volume.manifest_of_volume(folder)))
    kubectl("apply", "-f", "-", stdin=claim)
    where = (f"pvc/{volume.claim}", f"--namespace={volume.namespace}")
    kubectl("wait", f"--for={phase}=Bound", *where, "--timeout=30s")
