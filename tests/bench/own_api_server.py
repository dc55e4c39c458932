"""An API server of the benchmark's own: etcd and kube-apiserver, and nothing else.

Called by `bench_scale`. No controller, scheduler or kubelet takes CPU from what is measured, no
cluster has to be up, and what was created is gone with the processes. Objects can be put into etcd
directly: 10,000 TrainingJobs and their pods take seconds instead of minutes.
"""

import asyncio
import base64
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import yaml

from bench.accounting import API_SERVER, ETCD, ControlPlane
from bench.environment import ROOT, Raw, Tools
from ktrdr_api.crd import CRD_FILE

START_SECONDS: Final = 60.0
PUTS_IN_FLIGHT: Final = 32
_P256_KEY_HEAD: Final = bytes.fromhex("30310201010420")
_P256_KEY_TAIL: Final = bytes.fromhex("a00a06082a8648ce3d030107")


@dataclass(frozen=True)
class Etcd:
    """etcd's HTTP gateway."""

    url: str

    async def get(self, key: str) -> str:
        """Text of one key."""
        async with aiohttp.ClientSession() as session:
            answer = await self._post(session, "range", {"key": _base64(key)})
        return base64.b64decode(answer["kvs"][0]["value"]).decode()

    async def put_all(self, pairs: Iterator[tuple[str, str]]) -> None:
        """Write texts by key, each as a revision of its own, as the API server would."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:

            async def work() -> None:
                for key, text in pairs:
                    await self._post(session, "put", {"key": _base64(key), "value": _base64(text)})

            for _ in range(PUTS_IN_FLIGHT):
                tasks.create_task(work())

    async def _post(self, session: aiohttp.ClientSession, method: str, body: Raw) -> Raw:
        async with session.post(f"{self.url}/v3/kv/{method}", json=body) as response:
            response.raise_for_status()
            answer: Raw = await response.json()
            return answer


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@dataclass(frozen=True)
class OwnApiServer:
    """What is running."""

    tools: Tools
    """kubectl and the operator find the API server by this environment."""
    plane: ControlPlane
    etcd: Etcd


@contextmanager
def own_api_server(programs: Tools) -> Iterator[OwnApiServer]:
    """Start etcd and an API server with stock settings and this checkout's CRD; stop them after.

    Built-in objects are stored as JSON instead of protobuf, so that they can be copied as text.
    """
    path = programs.environment["PATH"]
    for name in ("etcd", "kube-apiserver"):
        if shutil.which(name, path=path) is None:
            sys.exit(f"{name}: not found; it is built for the native cluster (`cluster.sh tools`)")
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        folder = Path(name)
        ports = _free_ports(3)
        etcd = _start("etcd", _etcd_flags(folder, ports), folder, programs)
        server = _start("kube-apiserver", _server_flags(folder, ports), folder, programs)
        try:
            environment = {**programs.environment, "KUBECONFIG": str(_kubeconfig(folder, ports))}
            tools = Tools(environment)
            _wait_until_ready(tools, server, folder)
            _install_crd(tools)
            plane = ControlPlane({etcd.pid: ETCD, server.pid: API_SERVER})
            yield OwnApiServer(tools, plane, Etcd(f"http://127.0.0.1:{ports[0]}"))
        finally:
            for process in (server, etcd):
                process.kill()
                process.wait()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _start(
    program: str, flags: list[str], folder: Path, programs: Tools
) -> subprocess.Popen[bytes]:
    with (folder / f"{program}.log").open("wb") as output:
        return subprocess.Popen(
            [program, *flags], env=programs.environment, stdout=output, stderr=subprocess.STDOUT
        )


def _etcd_flags(folder: Path, ports: list[int]) -> list[str]:
    client, peer = (f"http://127.0.0.1:{port}" for port in ports[:2])
    return [
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--quota-backend-bytes=8589934592",
    ]


def _server_flags(folder: Path, ports: list[int]) -> list[str]:
    key = folder / "accounts.key"
    key.write_text(_private_key())
    (folder / "tokens.csv").write_text(f"{_token(folder)},admin,admin,system:masters\n")
    return [
        f"--etcd-servers=http://127.0.0.1:{ports[0]}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--secure-port={ports[2]}",
        f"--cert-dir={folder}/pki",
        "--authorization-mode=RBAC",
        f"--token-auth-file={folder}/tokens.csv",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={key}",
        f"--service-account-key-file={key}",
        "--storage-media-type=application/json",
    ]


def _private_key() -> str:
    """A P-256 key that signs ServiceAccount tokens (RFC 5915 without the optional public key)."""
    der = _P256_KEY_HEAD + secrets.token_bytes(32) + _P256_KEY_TAIL
    text = base64.b64encode(der).decode()
    return f"-----BEGIN EC PRIVATE KEY-----\n{text}\n-----END EC PRIVATE KEY-----\n"


def _token(folder: Path) -> str:
    file = folder / "token"
    if not file.exists():
        file.write_text(secrets.token_hex(16))
    return file.read_text()


def _kubeconfig(folder: Path, ports: list[int]) -> Path:
    cluster = {"server": f"https://127.0.0.1:{ports[2]}", "insecure-skip-tls-verify": True}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": _token(folder)}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "admin"}}],
    }
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(content))
    return file


def _wait_until_ready(tools: Tools, server: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        asked = ["kubectl", "get", "--raw=/readyz", "--request-timeout=2s"]
        done = subprocess.run(asked, env=tools.environment, capture_output=True, check=False)
        if done.returncode == 0:
            return
        if server.poll() is not None or time.monotonic() > deadline:
            log = (folder / "kube-apiserver.log").read_text()
            sys.exit(f"the API server did not start:\n{log[-2000:]}")
        time.sleep(0.2)


def _install_crd(tools: Tools) -> None:
    crd = ROOT / CRD_FILE
    tools.run("kubectl", "create", f"-f{crd}")
    tools.run("kubectl", "wait", "--for=condition=Established", f"-f{crd}", "--timeout=30s")
