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

from demo.console import run
from kube import Kube, Raw

UID = 10001
"""Who trainers run as: files that are loaded must be readable, folders writable, for them."""

UNPACK = (
    "import sys, tarfile; archive = tarfile.open(fileobj=sys.stdin.buffer, mode='r|'); "
    "archive.extraction_filter = getattr(tarfile, 'data_filter', None); "
    "archive.extractall(sys.argv[1])"
)
"""Python before 3.11.4 has no filters, and Debian 12 has 3.11.2: the archive is our own anyway."""


@dataclass(frozen=True)
class FilesPod:
    """A pod that has claims mounted and does nothing by itself."""

    kube: Kube
    name: str

    def run(self, *words: str, stdin: bytes | None = None) -> str:
        """Run a program in the pod and return its output."""
        where = (f"--kubeconfig={self.kube.kubeconfig}", f"-n{self.kube.namespace}")
        flags = ("-i",) if stdin is not None else ()
        command = ("kubectl", *where, "exec", *flags, self.name, "--", *words)
        return run(*command, env=self.kube.environment, stdin=stdin).decode()

    def load(self, folder: Path, target: str) -> None:
        """Copy what is in a folder, subfolders included, into `target`."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, arcname=path.name, filter=_anonymous)
        self.run("python", "-c", UNPACK, target, stdin=buffer.getvalue())


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = UID
    info.uname = info.gname = ""
    return info


@contextmanager
def files_pod(kube: Kube, image: str, claims: Mapping[str, str]) -> Iterator[FilesPod]:
    """A pod that lives as long as the block; `claims` maps mount paths to claim names."""
    name = "files"
    kube.run("delete", "pod", name, "--ignore-not-found")
    kube.create(_manifest(name, image, claims))
    kube.run("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s")
    try:
        yield FilesPod(kube, name)
    finally:
        # Not left behind: a ReadWriteOnce volume would tie all trainers to this pod's node.
        kube.run("delete", "pod", name, "--wait=false")


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
