"""Programs of the cluster: Debian packages, Go, and programs that Go builds.

Kubernetes and etcd are pinned by go/go.mod and go/go.sum; the other Go programs by a version whose
hash Go checks against its public checksum database. Built once into a folder named by a hash of all
that, so that a second checkout finds them and a changed pin builds anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.settings import ClusterError, Settings
from cluster.shell import run, say, succeeds

MODULE = Path(__file__).parent / "go"


def _pin(pattern: str) -> str:
    """Read a version from go/go.mod, the only file that has it."""
    found = re.search(pattern, (MODULE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ClusterError(f"{MODULE / 'go.mod'}: no line matches {pattern}; restore the file")
    return found[1]


KUBERNETES = _pin(r"^\s*k8s\.io/kubernetes (v\S+)")
GO = "go" + _pin(r"^go (\S+)")

_VERSION = "k8s.io/component-base/version"
# Without these three, clients choke on "v0.0.0-master+$Format".
_STAMPS = {"gitVersion": KUBERNETES, "gitMajor": "1", "gitMinor": KUBERNETES.split(".")[1]}
_LDFLAGS = " ".join(["-s -w", *(f"-X {_VERSION}.{key}={value}" for key, value in _STAMPS.items())])
_FLAGS = ("-trimpath", "-ldflags", _LDFLAGS)

# program > package of go/go.mod, or package@version
CLIENTS = {
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "helm": "helm.sh/helm/v4/cmd/helm@v4.3.1",
}
KIND = {"kind": "sigs.k8s.io/kind@v0.33.0"}
NATIVE = {
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "etcd": "go.etcd.io/etcd/server/v3",
    "pause": "./pause",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok@v0.8.0",
    "kwokctl": "sigs.k8s.io/kwok/cmd/kwokctl@v0.8.0",
}
PROGRAMS = {"kind": {**CLIENTS, **KIND}, "native": {**CLIENTS, **NATIVE}, "given": CLIENTS}


@dataclass(frozen=True)
class DebianPackage:
    """A package, a file that shows it is there (PATH or absolute), and why it is needed."""

    name: str
    proof: str
    why: str


PACKAGES = (
    DebianPackage("containerd", "containerd", "runs the node's containers"),
    DebianPackage("runc", "runc", "starts each container"),
    DebianPackage("containernetworking-plugins", "/usr/lib/cni/bridge", "gives pods their network"),
    DebianPackage("iproute2", "ip", "makes the node's network namespace and links"),
    DebianPackage("nftables", "nft", "kube-proxy writes service addresses with it"),
    DebianPackage("iptables", "iptables", "the CNI port mapping and the kubelet call it"),
    DebianPackage("conntrack", "conntrack", "kube-proxy drops stale connections with it"),
    DebianPackage("util-linux", "nsenter", "enters the node's network namespace"),
    DebianPackage("procps", "sysctl", "lets the node forward packets"),
    DebianPackage("mount", "umount", "removes what pods had mounted"),
    DebianPackage("ca-certificates", "/etc/ssl/certs/ca-certificates.crt", "Go downloads by HTTPS"),
)


def bin_folder(settings: Settings) -> Path:
    """Folder of the built programs; its name changes with any pinned version or flag."""
    key = hashlib.sha256()
    for name in ("go.mod", "go.sum", "pause/main.go"):
        key.update((MODULE / name).read_bytes())
    key.update(repr((sorted(PROGRAMS.items()), _FLAGS)).encode())
    return settings.cache / f"bin-{key.hexdigest()[:12]}"


def environment(settings: Settings) -> dict[str, str]:
    """The environment with the built programs first on PATH."""
    path = f"{bin_folder(settings)}:{settings.environment['PATH']}"
    return {**settings.environment, "PATH": path}


def install(settings: Settings, provider: str) -> None:
    """Install and build what `provider` needs and is missing; one printed line each."""
    if provider == "native":
        _install_packages(settings, [p for p in PACKAGES if not _present(p, settings)])
    folder = bin_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in PROGRAMS[provider] if not (folder / name).exists()]
    if not missing:
        return
    go = _go(settings)
    long = ", about 9 min on 2 cores" if len(missing) == len(PROGRAMS["native"]) else ""
    say(f"tools: building {len(missing)} programs into {folder} (once{long})")
    for position, name in enumerate(missing, start=1):
        began = time.monotonic()
        _build(settings, go, name, PROGRAMS[provider][name])
        say(f"tools: {position}/{len(missing)} {name} built in {time.monotonic() - began:.0f} s")


def _present(package: DebianPackage, settings: Settings) -> bool:
    path = settings.environment["PATH"]
    return shutil.which(package.proof, path=path) is not None or Path(package.proof).exists()


def _install_packages(settings: Settings, packages: list[DebianPackage]) -> None:
    if not packages:
        return
    names = [package.name for package in packages]
    if os.geteuid() != 0 or not shutil.which("apt-get", path=settings.environment["PATH"]):
        wanted = ", ".join(f"{p.name} ({p.why})" for p in packages)
        raise ClusterError(f"missing: {wanted}. Install them, or run this as root on Debian/Ubuntu")
    for package in packages:
        say(f"tools: installing {package.name}: {package.why}")
    env = {**settings.environment, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", env=env)
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *names, env=env)


def _build(settings: Settings, go: Path, name: str, package: str) -> None:
    """Build one program, under a temporary name first, so that an existing one is complete."""
    folder = bin_folder(settings)
    env = {**_go_environment(settings), "PATH": f"{go.parent}:{settings.environment['PATH']}"}
    scratch = folder / f".building-{os.getpid()}"
    scratch.mkdir()
    try:
        if "@" in package:
            env["GOBIN"] = str(scratch)
            run(go, "install", "-trimpath", "-ldflags", "-s -w", package, env=env)
        else:
            run(go, "build", *_FLAGS, "-o", scratch / name, package, cwd=MODULE, env=env)
        (scratch / name).rename(folder / name)
    finally:
        shutil.rmtree(scratch)


def _go_environment(settings: Settings) -> Mapping[str, str]:
    return {**settings.environment, "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto", "GOWORK": "off"}


def _go(settings: Settings) -> Path:
    """A Go that can build go/go.mod: the one on PATH if 1.21+ (it fetches a newer one itself)."""
    found = shutil.which("go", path=settings.environment["PATH"])
    if found is None:
        package = DebianPackage("golang-go", "go", "builds Kubernetes, etcd, kwok and helm")
        _install_packages(settings, [package])
        found = shutil.which("go", path=settings.environment["PATH"])
    if found is None:
        raise ClusterError(f"go: not found; install {GO} or newer from https://go.dev/dl")
    version = re.search(r"go(\d+)\.(\d+)", run(found, "version", env=settings.environment))
    if version and (int(version[1]), int(version[2])) >= (1, 21):
        return Path(found)
    return _go_by_module(settings, found)


def _go_by_module(settings: Settings, old: str) -> Path:
    """Fetch Go as the module golang.org/toolchain with a Go too old to do that by itself.

    Debian 12 has Go 1.19. A module's files are read-only, not executable, and its go.mod files are
    renamed; Go 1.21+ undoes that on first use, so we do the same.
    Source: go/src/cmd/go/internal/toolchain/select.go, Exec.
    """
    folder = settings.cache / GO
    program = folder / "bin" / "go"
    if program.exists():
        return program
    say(f"tools: fetching {GO}: {old} is older than 1.21 and cannot fetch it by itself")
    machine = run(old, "env", "GOOS", "GOARCH", env=settings.environment).split()
    module = f"golang.org/toolchain@v0.0.1-{GO}.{machine[0]}-{machine[1]}"
    answer = run(old, "mod", "download", "-json", module, env=settings.environment)
    scratch = settings.cache / f".{GO}-{os.getpid()}"
    run("cp", "-r", "--no-preserve=mode", json.loads(answer)["Dir"], scratch)
    for name in scratch.rglob("_go.mod"):
        name.rename(name.with_name("go.mod"))
    for file in (*scratch.glob("bin/*"), *scratch.glob("pkg/tool/*/*")):
        file.chmod(0o755)
    scratch.rename(folder)
    return program


def docker_works(settings: Settings) -> bool:
    """Whether a Docker engine answers; the client alone is not enough."""
    return succeeds("docker", "info", "--format", "{{.ServerVersion}}", env=settings.environment)
