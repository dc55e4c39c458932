"""Configuration files of the native node, as data; JSON is YAML, so nothing is templated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.settings import API_SERVICE_IP, NAME, NODE_IP, NODE_NAME, POD_CIDR, SERVICE_CIDR

PAUSE_IMAGE = f"{NAME}.io/pause:dev"


def write_configs(state: Path, pki: Path, base_spec: dict[str, Any]) -> None:
    """Write every file that the programs of the node read."""
    files = {
        "kwok.yaml": _kwokctl(pki),
        "base-spec.json": base_spec,
        "cni/10-bridge.conflist": _cni(state),
        "kubelet.yaml": _kubelet(state, pki),
        "proxy.yaml": _proxy(state),
    }
    for name, content in files.items():
        (state / name).write_text(json.dumps(content, indent=1))
    (state / "containerd.toml").write_text(_containerd(state))


def _arguments(**values: str) -> list[dict[str, str]]:
    return [{"key": key.replace("_", "-"), "value": value} for key, value in values.items()]


def _kwokctl(pki: Path) -> dict[str, Any]:
    # Only here: on kwokctl 0.8.0's command line a value with a second "=" panics.
    apiserver = _arguments(
        advertise_address=NODE_IP,
        service_cluster_ip_range=SERVICE_CIDR,
        allow_privileged="true",
        kubelet_preferred_address_types="InternalIP",
        kubelet_client_certificate=str(pki / "admin.crt"),
        kubelet_client_key=str(pki / "admin.key"),
    )
    # kwok serves the nodes that carry the annotation; by default it would claim the real one too.
    kwok = _arguments(
        manage_all_nodes="false", manage_nodes_with_annotation_selector="kwok.x-k8s.io/node=fake"
    )
    return {
        "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
        "kind": "KwokctlConfiguration",
        "options": {
            "kubeApiserverCertSANs": [NODE_IP, API_SERVICE_IP, "kubernetes.default.svc"],
        },
        "componentsPatches": [
            {"name": "kube-apiserver", "extraArgs": apiserver},
            {"name": "kwok-controller", "extraArgs": kwok},
        ],
    }


def _cni(state: Path) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": f"{NAME}0",
        "isGateway": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(state / "ipam"),
            "ranges": [[{"subnet": POD_CIDR}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": NAME, "plugins": [bridge, portmap]}


def _kubelet(state: Path, pki: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,  # some kernels still mount the v1 controllers
        "cgroupRoot": f"/{NAME}",  # two kubelets under one root kill each other's containers
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": f"unix://{state}/ctr/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "failSwapOn": False,
        # A full disk of the host must not evict pods, nor remove images that cannot be pulled.
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "localStorageCapacityIsolation": False,
        "podLogsDir": str(state / "pod-logs"),
        # Nothing listens there: a lookup fails immediately instead of after 5 s.
        "clusterDNS": [NODE_IP],
        "clusterDomain": "cluster.local",
    }


def _proxy(state: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(state / "kubeconfig.node")},
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": NODE_NAME,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0},
    }


def _containerd(state: Path) -> str:
    # restrict_oom_score_adj: a root without CAP_SYS_RESOURCE cannot lower it, and runc would fail
    # with "can't get final child's PID".
    return f"""version = 2
root = "{state}/ctr/root"
state = "{state}/ctr/state"
[grpc]
  address = "{state}/ctr/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/ctr/opt"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE_IMAGE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{state}/base-spec.json"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{state}/ctr/runc"
"""
