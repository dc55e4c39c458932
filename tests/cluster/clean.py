"""Removes everything that `native.up` created, from what is found on the machine.

Works after a crash, after half of `up`, and when nothing exists. A process belongs to the cluster
if `up` starts its program and its command line names the state folder, if it is in the cluster's
cgroup, or if it is in the cluster's network namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from cluster.record import read_record
from cluster.settings import NAME
from cluster.shell import run, succeeds, wait_until

NODE_PROGRAMS = frozenset(
    {
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kwok",
        "containerd",
        "kubelet",
        "kube-proxy",
    }
)
CGROUPS = Path("/sys/fs/cgroup")
NETNS = Path("/run/netns")
# Files that the kubelet leaves below /var/lib/kubelet, a path that is built in.
_KUBELET_FILES = {"kubelet.sock", "kubelet_internal_checkpoint", "DEPRECATION"}
_PROGRAMS = NODE_PROGRAMS | {"kwokctl", "containerd-shim-runc-v2"}


def processes(state: Path) -> Iterator[tuple[int, str]]:
    """Running processes of the cluster: (pid, name of the program)."""
    mark = f"{state}/".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name = os.path.basename(os.readlink(entry / "exe")).removesuffix(" (deleted)")
            if name in _PROGRAMS and mark in (entry / "cmdline").read_bytes():
                yield int(entry.name), name
        except OSError:  # it has ended, or is a kernel thread
            continue


def namespace_owner() -> str | None:
    """State folder of the cluster that has the network namespace; None without one."""
    try:
        return Path(f"/sys/class/net/{NAME}-h/ifalias").read_text().strip() or None
    except OSError:
        return None


def teardown(state: Path) -> None:
    """Stop every process of the cluster in `state` and remove every trace of it."""
    record = read_record(state)
    # The kubelet first: otherwise it restarts what the next line stops.
    _kill(lambda: [pid for pid, name in processes(state) if name == "kubelet"])
    _kill(lambda: [pid for pid, _ in processes(state)])
    if namespace_owner() in (None, str(state)):
        _kill(_strays)
        _remove_network()
        _remove_cgroups()
    _unmount(state)
    _remove_sockets(state)
    _remove_log_links(state)
    if record:
        for folder in record.made_folders:
            _prune(Path(folder))
        for name, value in record.sysctls.items():
            run("sysctl", "-qw", f"{name}={value}")
    if state.exists():
        shutil.rmtree(state)


def _kill(find: Callable[[], list[int]]) -> None:
    def gone() -> bool:
        found = find()
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    wait_until("the cluster's processes end", 15, gone)


def _cgroups() -> list[Path]:
    """The cluster's cgroup in every hierarchy (v1), or in the only one (v2)."""
    return [p for p in (CGROUPS / NAME, *CGROUPS.glob(f"*/{NAME}")) if p.is_dir()]


def _strays() -> list[int]:
    """Containers without a shim, and all other processes in the node's network namespace."""
    found: set[int] = set()
    for top in _cgroups():
        for file in top.rglob("cgroup.procs"):
            found.update(map(int, file.read_text().split()))
    if (NETNS / NAME).exists():
        found.update(map(int, run("ip", "netns", "pids", NAME).split()))
    return sorted(found)


def _remove_network() -> None:
    """Remove the links and namespaces; those of pods are in the cache files of the CNI library."""
    results = Path("/var/lib/cni/results")
    for file in results.glob(f"{NAME}-*-eth0"):
        container = file.name.split("-")[1]
        (results / f"cni-loopback-{container}-lo").unlink(missing_ok=True)
        for interface in json.loads(file.read_text())["result"].get("interfaces", []):
            netns = Path(interface.get("sandbox", "")).name
            if netns and (NETNS / netns).exists():
                run("ip", "netns", "del", netns)
        file.unlink()
    succeeds("ip", "link", "del", f"{NAME}-h")  # also removes its peer and the route to the pods
    if (NETNS / NAME).exists():
        run("ip", "netns", "del", NAME)


def _remove_cgroups() -> None:
    for top in _cgroups():
        for folder, _, _ in os.walk(top, topdown=False):
            Path(folder).rmdir()


def _unmount(state: Path) -> None:
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in sorted((p for p in points if p.startswith(f"{state}/")), reverse=True):
        run("umount", point)


def _remove_sockets(state: Path) -> None:
    """Remove the shims' sockets, which are below /run/containerd for any state folder."""
    for file in (state / "ctr/state").glob("io.containerd.runtime.v2.task/*/*/address"):
        Path(file.read_text().strip().removeprefix("unix://")).unlink(missing_ok=True)


def _remove_log_links(state: Path) -> None:
    """Remove the kubelet's links to logs in /var/log/containers, a path that is built in."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and os.readlink(link).startswith(f"{state}/"):
            link.unlink()


def _prune(top: Path) -> None:
    """Remove the empty parts of a folder that `up` created, and the kubelet's sockets."""
    for folder, _, files in os.walk(top, topdown=False):
        for name in set(files) & _KUBELET_FILES:
            (Path(folder) / name).unlink()
        with suppress(OSError):  # another program uses it now
            Path(folder).rmdir()
