"""Environment of a benchmark: programs, a namespace of its own, fake nodes, no other operator.

Called by `bench_apply`, and for the programs by `bench_scale`. Everything that is made here is
removed afterwards, also when the benchmark fails.
"""

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from cluster import settings as cluster_settings
from ktrdr_api import names

Raw = dict[str, Any]

ROOT: Final = Path(__file__).parents[2]
CLUSTER_SH: Final = ROOT / "tests/cluster/cluster.sh"
DEFAULT_KUBECONFIG: Final = "/var/tmp/ktrdr-cluster/kubeconfig"  # noqa: S108 - cluster.sh's place
OPERATOR_LABELS: Final = "app.kubernetes.io/name=ktrdr,app.kubernetes.io/component=operator"
CLAIM: Final = "market-data"
IMAGE: Final = "ktrdr.io/trainer:dev"  # never pulled: fake nodes run nothing
NODE_KEY: Final = "bench.ktrdr.io/node"
NODE_LABELS: Final = {NODE_KEY: "fake"}
PLACEMENT: Final[Raw] = {
    "nodeSelector": NODE_LABELS,
    "tolerations": [{"key": NODE_KEY, "operator": "Exists", "effect": "NoSchedule"}],
}


@dataclass(frozen=True)
class Tools:
    """Programs of the test cluster, and the cluster they speak to."""

    environment: dict[str, str]

    @property
    def kubeconfig(self) -> Path:
        """File that names the cluster."""
        return Path(self.environment["KUBECONFIG"])

    def run(self, *command: str | Path, stdin: str | None = None) -> str:
        """Run a program; its error output ends the benchmark."""
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout


def find_programs() -> Tools:
    """Programs that were built for the test cluster, first on PATH."""
    folder = Tools({**os.environ}).run(CLUSTER_SH, "bin").strip()
    return Tools({**os.environ, "PATH": os.pathsep.join([folder, os.environ["PATH"]])})


def find_tools() -> Tools:
    """The same programs, and the cluster that KTRDR_TEST_KUBECONFIG names."""
    kubeconfig = os.environ.get("KTRDR_TEST_KUBECONFIG", DEFAULT_KUBECONFIG)
    tools = Tools({**find_programs().environment, "KUBECONFIG": kubeconfig})
    tools.run("kubectl", "get", f"crd/{names.RESOURCE}")
    return tools


@contextmanager
def installed_operators_scaled_down(tools: Tools) -> Iterator[None]:
    """Scale operators of the chart to zero, so that only one acts; and back afterwards."""
    columns = "{range .items[*]}{.metadata.namespace} {.metadata.name} {.spec.replicas}{'\\n'}{end}"
    found = tools.run(
        "kubectl", "get", "deploy", "-A", f"-l{OPERATOR_LABELS}", f"-ojsonpath={columns}"
    )
    deployments = [line.split() for line in found.splitlines() if line]
    try:
        for namespace, name, _ in deployments:
            tools.run("kubectl", "scale", f"-n{namespace}", f"deploy/{name}", "--replicas=0")
            tools.run(
                "kubectl", "wait", f"-n{namespace}", "--for=delete", "pod", f"-l{OPERATOR_LABELS}"
            )
        yield
    finally:
        for namespace, name, replicas in deployments:
            tools.run(
                "kubectl", "scale", f"-n{namespace}", f"deploy/{name}", f"--replicas={replicas}"
            )


@contextmanager
def own_namespace(tools: Tools) -> Iterator[str]:
    """A fresh namespace with a bound claim; both are gone afterwards."""
    namespace = f"bench-{uuid.uuid4().hex[:6]}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tools.run("kubectl", "create", "namespace", namespace)
        try:
            claim = f"{namespace}/{CLAIM}"
            tools.run(CLUSTER_SH, "pv", namespace, folder, claim, "1Gi", "ReadWriteMany")
            yield namespace
        finally:
            tools.run("kubectl", "delete", "namespace", namespace)
            tools.run("kubectl", "delete", "pv", namespace, "--ignore-not-found")


@contextmanager
def fake_nodes(tools: Tools, count: int, pods_per_node: int) -> Iterator[None]:
    """Nodes on which a kwok process of the benchmark plays the kubelet; both are gone afterwards.

    The cluster's own kwok is not used: it completes every pod of a batch/v1 Job as soon as it runs,
    which neither a bare pod nor a TrainingJob does.
    """
    nodes = [_node(number, pods_per_node) for number in range(1, count + 1)]
    with tempfile.TemporaryDirectory() as folder:
        stages = Path(folder) / "stages.yaml"
        stages.write_text(yaml.safe_dump_all(_stages()))
        with (Path(folder) / "kwok.log").open("wb") as output:
            kwok = subprocess.Popen(
                _kwok_command(tools, stages),
                env=tools.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes})
            tools.run("kubectl", "create", "-f-", stdin=text)
            ready = ("--for=condition=Ready", "nodes", f"-l{NODE_KEY}", "--timeout=60s")
            tools.run("kubectl", "wait", *ready)
            yield
        finally:
            tools.run("kubectl", "delete", "nodes", f"-l{NODE_KEY}", "--ignore-not-found")
            kwok.terminate()
            kwok.wait()


def node_name(number: int) -> str:
    """Name of a fake node; numbers begin at 1."""
    return f"bench-{number}"


def _node(number: int, pods: int) -> Raw:
    resources = {"cpu": "640", "memory": "2560Gi", "pods": str(pods)}
    taint = {"key": NODE_KEY, "value": "fake", "effect": "NoSchedule"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node_name(number),
            "annotations": NODE_LABELS,
            "labels": {**NODE_LABELS, "kubernetes.io/hostname": node_name(number)},
        },
        "spec": {"taints": [taint]},
        "status": {"allocatable": resources, "capacity": resources},
    }


def _stages() -> list[Raw]:
    """What kwok does: the cluster's own stages without the one that completes pods of Jobs."""
    state = cluster_settings.read_settings().state
    file = state / f"kwok/clusters/{cluster_settings.NAME}/kwok.yaml"
    if not file.exists():
        sys.exit(f"{file}: not found; the benchmark needs the native cluster of tests/cluster")
    documents = yaml.safe_load_all(file.read_text())
    stages = [found for found in documents if found["kind"] == "Stage"]
    return [stage for stage in stages if stage["metadata"]["name"] != "pod-complete"]


def _kwok_command(tools: Tools, stages: Path) -> list[str]:
    return [
        "kwok",
        f"--config={stages}",
        f"--kubeconfig={tools.kubeconfig}",
        f"--manage-nodes-with-annotation-selector={NODE_KEY}=fake",
        "--manage-all-nodes=false",
        "--node-lease-duration-seconds=200",
        "--server-address=127.0.0.1:0",
    ]
