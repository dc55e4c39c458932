"""Native cluster: a control plane and one real node in a network namespace, without Docker.

kwokctl starts etcd, the API server, the controller manager, the scheduler and kwok; containerd, the
kubelet and kube-proxy make the node. Everything is started by `up` and undone by `clean.teardown`.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from cluster import clean, oci, specs, tools
from cluster.record import Checkout, Record, read_record, write_record
from cluster.settings import (
    HOST_IP,
    NAME,
    NODE_IP,
    NODE_NAME,
    POD_CIDR,
    POD_UID,
    ClusterError,
    Settings,
)
from cluster.shell import run, say, start, succeeds, wait_until

NETNS = clean.NETNS / NAME
HOST_LINK, NODE_LINK = f"{NAME}-h", f"{NAME}-n"
SYSCTLS = ("vm.overcommit_memory", "kernel.panic", "kernel.panic_on_oops")
SHARED_FOLDERS = (
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
)


def up(settings: Settings, checkout: Checkout) -> None:
    """Start the cluster, or leave a healthy one for the same checkout as it is."""
    began = time.monotonic()
    state = settings.state
    mounts = _mounts(checkout)
    old = read_record(state)
    if old and old.checkout == checkout and old.mounts == mounts and healthy(settings):
        say(f"cluster: already up, KUBECONFIG={state / 'kubeconfig'}")
        return
    _refuse_foreign_namespace(state)
    if old or NETNS.exists():
        say("cluster: removing the present cluster: " + _why_not(old, checkout))
        clean.teardown(state)
    made = [folder for folder in SHARED_FOLDERS if not Path(folder).exists()]
    sysctls = {name: run("sysctl", "-n", name).strip() for name in SYSCTLS}
    write_record(state, Record("native", checkout, mounts, made, sysctls))
    say(f"cluster: network namespace {NAME} ({NODE_IP})")
    _make_network(state)
    _make_cgroups()
    say("cluster: control plane (etcd, API server, controllers, scheduler, kwok)")
    _start_control_plane(settings, mounts)
    say(f"cluster: node {NODE_NAME} (containerd, kubelet, kube-proxy)")
    _start_node(settings, checkout)
    _wait_ready(settings)
    say(f"cluster: up in {time.monotonic() - began:.0f} s, KUBECONFIG={state / 'kubeconfig'}")


def _why_not(old: Record | None, checkout: Checkout) -> str:
    if old and old.checkout != checkout:
        return f"it runs {old.checkout.source} with {old.checkout.venv}"
    return "it is not healthy, or its interpreter moved"


def healthy(settings: Settings) -> bool:
    """Whether every process runs, the API answers and the node is Ready."""
    if not {name for _, name in clean.processes(settings.state)} >= clean.NODE_PROGRAMS:
        return False
    return succeeds(
        *_kubectl(settings, "wait", "--for=condition=Ready", f"node/{NODE_NAME}", "--timeout=2s")
    )


def _kubectl(settings: Settings, *words: str) -> list[str | Path]:
    kubectl = tools.bin_folder(settings) / "kubectl"
    where = (f"--kubeconfig={settings.state}/kubeconfig", f"--cache-dir={settings.cache}/kubectl")
    return [kubectl, *where, "--request-timeout=5s", *words]


def _mounts(checkout: Checkout) -> list[str]:
    """Folders that a container needs to run this checkout: interpreter, packages, code."""
    python = Path(checkout.venv) / "bin" / "python"
    if not python.exists():
        raise ClusterError(f"{python}: no interpreter there; create the environment or use --venv")
    prefix = Path(run(python, "-c", "import sys; print(sys.base_prefix, end='')"))
    # A venv's interpreter may be a link through another name of the same installation.
    wanted = {"/usr", str(prefix), str(prefix.resolve()), checkout.venv, checkout.source}
    return sorted(p for p in wanted if not any(Path(o) in Path(p).parents for o in wanted))


def inside(path: str) -> str:
    """Path at which a container sees a folder of the host: the same, except below /tmp.

    Pods mount an empty folder over /tmp, which would hide a checkout below it.
    """
    return f"/host{path}" if path.startswith("/tmp/") else path  # noqa: S108 (a comparison)


def _image_environment(checkout: Checkout) -> dict[str, str]:
    found = {"PATH": f"{inside(checkout.venv)}/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    source = inside(checkout.source)
    if source != checkout.source:  # the editable install points to where it is on the host
        found["PYTHONPATH"] = f"{source}/operator:{source}/trainer_image"
    return found


def _refuse_foreign_namespace(state: Path) -> None:
    """Fail if the network namespace belongs to another state folder, which its link names."""
    owner = clean.namespace_owner()
    if owner and owner != str(state):
        raise ClusterError(
            f"network namespace {NAME} belongs to the cluster in {owner}; only one can run. "
            f"Take it down first: KTRDR_CLUSTER_DIR={owner} cluster.sh down"
        )


def _make_network(state: Path) -> None:
    run("ip", "netns", "add", NAME)
    run("ip", "link", "add", HOST_LINK, "type", "veth", "peer", "name", NODE_LINK, "netns", NAME)
    run("ip", "link", "set", HOST_LINK, "alias", str(state))
    run("ip", "addr", "add", f"{HOST_IP}/30", "dev", HOST_LINK)
    run("ip", "link", "set", HOST_LINK, "up")
    run("ip", "-n", NAME, "addr", "add", f"{NODE_IP}/30", "dev", NODE_LINK)
    run("ip", "-n", NAME, "link", "set", NODE_LINK, "up")
    run("ip", "-n", NAME, "link", "set", "lo", "up")
    run("ip", "-n", NAME, "route", "add", "default", "via", HOST_IP)
    run(*_in_namespace("sysctl", "-qw", "net.ipv4.ip_forward=1"))
    # The host reaches pods too: tests read a pod's /metrics without a port-forward.
    run("ip", "route", "add", POD_CIDR, "via", NODE_IP)


def _in_namespace(*words: str | Path) -> tuple[str | Path, ...]:
    """Run in the network namespace; `ip netns exec` would hide the cgroups from the kubelet."""
    return ("nsenter", f"--net={NETNS}", *words)


def _make_cgroups() -> None:
    if (clean.CGROUPS / "cgroup.controllers").exists():  # cgroup v2
        available = (clean.CGROUPS / "cgroup.controllers").read_text().split()
        for name in {"cpuset", "cpu", "memory", "pids", "hugetlb"}.intersection(available):
            (clean.CGROUPS / "cgroup.subtree_control").write_text(f"+{name}")
        (clean.CGROUPS / NAME).mkdir(exist_ok=True)
        return
    for controller in clean.CGROUPS.iterdir():
        if (controller / "cgroup.procs").exists():
            (controller / NAME).mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):  # a new v1 cpuset is empty and accepts no process
        inherited = (clean.CGROUPS / "cpuset" / name).read_text()
        (clean.CGROUPS / "cpuset" / NAME / name).write_text(inherited)


def _start_control_plane(settings: Settings, mounts: list[str]) -> None:
    state, programs = settings.state, tools.bin_folder(settings)
    for folder in ("log", "cni", "ctr", "kubelet", "pod-logs", "images"):
        (state / folder).mkdir()
    spec = json.loads(run("ctr", "oci", "spec"))
    spec["mounts"] += [
        {"destination": inside(p), "type": "bind", "source": p, "options": ["rbind", "ro"]}
        for p in mounts
    ]
    specs.write_configs(state, state / f"kwok/clusters/{NAME}/pki", spec)
    env = {
        **tools.environment(settings),
        "KWOK_WORKDIR": str(state / "kwok"),
        "KWOK_KUBE_VERSION": tools.KUBERNETES,
    }
    binaries = [
        f"--{name}-binary={programs / file}"
        for name, file in (
            ("etcd", "etcd"),
            ("kube-apiserver", "kube-apiserver"),
            ("kube-controller-manager", "kube-controller-manager"),
            ("kube-scheduler", "kube-scheduler"),
            ("kwok-controller", "kwok"),
        )
    ]
    create = ("-c", state / "kwok.yaml", "create", "cluster", "--name", NAME)
    where = (
        "--runtime=binary",
        "--kube-apiserver-port=6443",
        f"--kubeconfig={state}/kubeconfig.node",
    )
    run(*_in_namespace(programs / "kwokctl", *create, *where, *binaries, "--wait=60s"), env=env)
    inner = (state / "kubeconfig.node").read_text()
    outside = re.sub("server: .*", f"server: https://{NODE_IP}:6443", inner)
    (state / "kubeconfig").touch(mode=0o600)
    (state / "kubeconfig").write_text(outside)


def _start_node(settings: Settings, checkout: Checkout) -> None:
    state, programs, env = settings.state, tools.bin_folder(settings), tools.environment(settings)
    containerd = _in_namespace("containerd", "-c", state / "containerd.toml")
    start(*containerd, log=state / "log/containerd", env=env)
    wait_until("containerd answers", 20, lambda: succeeds(*_ctr(state, "version"), env=env))
    pause = (programs / "pause").read_bytes()
    archive = state / "images" / "pause.tar"
    oci.write_archive(
        oci.Image(specs.PAUSE_IMAGE, files={"pause": pause}, entrypoint=["/pause"]), archive
    )
    load(settings, archive)
    load_dev_images(settings, checkout)
    kubelet = (
        *_in_namespace(programs / "kubelet", "--config", state / "kubelet.yaml"),
        *("--kubeconfig", state / "kubeconfig.node", "--root-dir", state / "kubelet"),
        *("--hostname-override", NODE_NAME, "--node-ip", NODE_IP),
        *("--cert-dir", state / "kubelet-pki"),
    )
    start(*kubelet, log=state / "log/kubelet", env=env)
    proxy = _in_namespace(programs / "kube-proxy", "--config", state / "proxy.yaml")
    start(*proxy, log=state / "log/kube-proxy", env=env)


def _wait_ready(settings: Settings) -> None:
    for what, words in {
        "node registered": ("get", "node", NODE_NAME),
        "node Ready": ("wait", "--for=condition=Ready", f"node/{NODE_NAME}", "--timeout=1s"),
        "default ServiceAccount": ("get", "serviceaccount", "default"),
        "admission policy API": ("get", "validatingadmissionpolicies"),
    }.items():
        try:
            wait_until(what, 60, lambda: succeeds(*_kubectl(settings, *words)))  # noqa: B023 (called before the next turn)
        except ClusterError as error:
            raise ClusterError(f"{error}; see {settings.state}/log/kubelet") from error


def _ctr(state: Path, *words: str | Path) -> list[str | Path]:
    return ["ctr", "-a", state / "ctr/containerd.sock", "-n", "k8s.io", *words]


def load(settings: Settings, archive: Path) -> None:
    """Import an OCI or docker archive into the node."""
    run(*_ctr(settings.state, "images", "import", archive), env=settings.environment)


def load_dev_images(settings: Settings, checkout: Checkout) -> None:
    """Load empty images: every container sees the checkout through `_mounts`.

    So pods run the operator and the trainer without an image of several gigabytes.
    """
    record = read_record(settings.state)
    if record is None or record.checkout != checkout:
        raise ClusterError(
            f"the cluster does not show {checkout.source} and {checkout.venv} to its containers, "
            "and that is fixed when it starts; run `cluster.sh up` with the same options"
        )
    for part in ("operator", "trainer"):
        image = oci.Image(
            f"{NAME}.io/{part}:dev",
            folders=("tmp", "usr", "etc"),
            links={"lib": "usr/lib", "lib64": "usr/lib64", "bin": "usr/bin", "sbin": "usr/sbin"},
            files={"etc/passwd": f"{NAME}:x:{POD_UID}:{POD_UID}::/tmp:/bin/sh\n".encode()},
            environment=_image_environment(checkout),
            user=f"{POD_UID}:{POD_UID}",
        )
        archive = settings.state / "images" / f"{part}.tar"
        oci.write_archive(image, archive)
        load(settings, archive)


def prepare_volume(folder: Path) -> None:
    """Create a folder of the host that pods can write to; fsGroup has no effect on hostPath."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, POD_UID, POD_UID)
    folder.chmod(0o2775)
