"""Files in a PersistentVolumeClaim, by way of a pod: works on any cluster, near or far.

Used to load market data, and to look at trained models.
"""

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.console import DemoError, run
from kube import Kube, Raw, RefusedError

UID = 10001
"""Who trainers run as: files that are loaded must be readable, folders writable, for them."""

UNPACK = (
    "import sys, tarfile; archive = tarfile.open(fileobj=sys.stdin.buffer, mode='r|'); "
    "archive.extraction_filter = getattr(tarfile, 'data_filter', None); "
    "archive.extractall(sys.argv[1])"
)
"""Python before 3.11.4 has no filters, and Debian 12 has 3.11.2: the archive is our own anyway."""

EXEC_SECONDS = 90.0
"""More than any program run here takes; the longest imports torch on a busy machine."""

LOAD_SECONDS = 300.0
"""Enough for the market data, some megabytes, over a slow line."""

READY_SECONDS = 300.0
"""Enough to pull the trainer's image, over 5 GB, where no node has it yet."""


@dataclass(frozen=True)
class FilesPod:
    """A pod that has claims mounted and does nothing by itself."""

    kube: Kube
    name: str

    def run(self, *words: str, stdin: bytes | None = None, seconds: float = EXEC_SECONDS) -> str:
        """Run a program in the pod and return its output.

        Raises:
            DemoError: It failed, or nothing came back in time: `kubectl exec -i` by itself waits
                for ever when the program in the pod has crashed.
        """
        where = (f"--kubeconfig={self.kube.kubeconfig}", f"-n{self.kube.namespace}")
        flags = ("-i",) if stdin is not None else ()
        command = ("kubectl", *where, "exec", *flags, self.name, "--", *words)
        try:
            return run(*command, env=self.kube.environment, stdin=stdin, seconds=seconds).decode()
        except DemoError as error:
            where_to_look = f"kubectl -n {self.kube.namespace} describe pod {self.name}"
            raise DemoError(f"{error}\nlook at the pod: `{where_to_look}`") from error

    def load(self, folder: Path, target: str, *, seconds: float = LOAD_SECONDS) -> None:
        """Copy what is in a folder, subfolders included, into `target`."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, arcname=path.name, filter=_anonymous)
        self.run("python", "-c", UNPACK, target, stdin=buffer.getvalue(), seconds=seconds)


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = UID
    info.uname = info.gname = ""
    return info


@contextmanager
def files_pod(
    kube: Kube, image: str, claims: Mapping[str, str], *, seconds: float = READY_SECONDS
) -> Iterator[FilesPod]:
    """A pod that lives as long as the block; `claims` maps mount paths to claim names.

    Raises:
        DemoError: It was not ready within `seconds`; the message has the cluster's reason.
    """
    name = "files"
    kube.run("delete", "pod", name, "--ignore-not-found")
    kube.create(_manifest(name, image, claims))
    try:
        _wait_ready(kube, name, seconds)
        yield FilesPod(kube, name)
    finally:
        # Not left behind: a ReadWriteOnce volume would tie all trainers to this pod's node.
        kube.run("delete", "pod", name, "--wait=false")


def _wait_ready(kube: Kube, name: str, seconds: float) -> None:
    try:
        kube.run("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={seconds:g}s")
    except RefusedError as error:
        status = kube.get("pod", name)["status"]
        told = [
            *(c["state"].get("waiting", {}) for c in status.get("containerStatuses", [])),
            *(c for c in status.get("conditions", []) if c["status"] != "True"),
        ]
        # What a container waits for says more than that it is not ready.
        reasons = [entry["message"] for entry in told if entry.get("message")]
        raise DemoError(
            f"pod {name} in namespace {kube.namespace} was not ready within {seconds:g} s: "
            + (reasons or [str(error)])[0]
        ) from error


def _manifest(name: str, image: str, claims: Mapping[str, str]) -> Raw:
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - an emptyDir
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    for number, (path, claim) in enumerate(claims.items()):
        mounts.append({"name": f"claim-{number}", "mountPath": path})
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": UID,
                "runAsGroup": UID,
                "fsGroup": UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "files",
                    "image": image,
                    "command": ["python", "-c", "import signal; signal.pause()"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }
