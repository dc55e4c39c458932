"""One-layer OCI image archives, written without a build tool."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
MEDIA = "application/vnd.oci.image."


@dataclass(frozen=True)
class Image:
    """What goes into an archive: one layer and the parts of the config that we use."""

    name: str
    folders: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    user: str = ""


def _add(tar: tarfile.TarFile, name: str, data: bytes = b"", mode: int = 0o755) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.size = mode, len(data)
    tar.addfile(info, io.BytesIO(data))


def _layer(image: Image) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in image.folders:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name, target in image.links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, data in image.files.items():
            _add(tar, name, data)
    return buffer.getvalue()


def _config(image: Image, layer_digest: str) -> dict[str, object]:
    return {
        "architecture": MACHINES[platform.machine()],
        "os": "linux",
        "config": {
            "Env": [f"{key}={value}" for key, value in image.environment.items()],
            "Entrypoint": list(image.entrypoint),
            "User": image.user,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }


def write_archive(image: Image, target: Path) -> None:
    """Write `image` to `target`.

    Source: github.com/opencontainers/image-spec, image-layout.md; the annotation is containerd's.
    """
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": MEDIA + kind, "digest": f"sha256:{digest}", "size": len(data)}

    layer = blob("layer.v1.tar", _layer(image))
    config = blob("config.v1+json", json.dumps(_config(image, str(layer["digest"]))).encode())
    body = {"schemaVersion": 2, "mediaType": MEDIA + "manifest.v1+json"}
    manifest = blob(
        "manifest.v1+json", json.dumps({**body, "config": config, "layers": [layer]}).encode()
    )
    manifest["annotations"] = {"io.containerd.image.name": image.name}
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(
            archive,
            "index.json",
            json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode(),
        )
        for path, data in blobs.items():
            _add(archive, path, data)
