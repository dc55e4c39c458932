"""Copies files into a PersistentVolumeClaim and runs programs on it, through a pod.

Used to load market data and to show trained models; works on any cluster.
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
"""UID of trainers: they must be able to read the files loaded, and to write to folders."""

UNPACK = (
    "import sys, tarfile; archive = tarfile.open(fileobj=sys.stdin.buffer, mode='r|'); "
    "archive.extraction_filter = getattr(tarfile, 'data_filter', None); "
    "archive.extractall(sys.argv[1])"
)
"""Python before 3.11.4 has no filters (Debian 12 has 3.11.2); the archive is written here
anyway."""

EXEC_SECONDS = 90.0
"""More than any program run here takes; the longest imports torch on a busy machine."""

LOAD_SECONDS = 300.0
"""Enough for the market data, some megabytes, over a slow connection."""

READY_SECONDS = 300.0
"""Enough to pull the trainer's image, over 5 GB, if the node does not have it."""


@dataclass(frozen=True)
class FilesPod:
    """Pod that has claims mounted and runs only the programs it is given."""

    kube: Kube
    name: str

    def run(self, *words: str, stdin: bytes | None = None, seconds: float = EXEC_SECONDS) -> str:
        """Run a program in the pod and return its output.

        Raises:
            DemoError: It failed or did not answer in time: `kubectl exec -i` waits forever when the
                program in the pod has crashed.
        """
        where = (f"--kubeconfig={self.kube.kubeconfig}", f"-n{self.kube.namespace}")
        flags = ("-i",) if stdin is not None else ()
        command = ("kubectl", *where, "exec", *flags, self.name, "--", *words)
        try:
            return run(*command, env=self.kube.environment, stdin=stdin, seconds=seconds).decode()
        except DemoError as error:
            where_to_look = f"kubectl -n {self.kube.namespace} describe pod {self.name}"
            raise DemoError(f"{error}\nsee the pod: `{where_to_look}`") from error

    def load(self, folder: Path, target: str, *, seconds: float = LOAD_SECONDS) -> None:
        """Copy the contents of a folder, including subfolders, into `target`."""
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
    """Create a pod for the duration of the block; `claims` maps mount paths to claim names.

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
        # Always deleted: with a ReadWriteOnce volume all trainers would need this pod's node.
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
        # The reason for which a container waits is more specific than "not ready".
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
