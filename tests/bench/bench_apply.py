"""500 TrainingJobs beside 500 bare pods, on fake nodes: until all run, and until all are gone.

`make bench-apply`. Both kinds are created and deleted one by one by the same client, in the same
run, against the stock limits of the API server, the scheduler and the controllers. An operator of
this checkout works on one fresh namespace; an installed one is scaled to zero meanwhile. Prints one
table and one summary line; exits 1 beyond `LIMIT` times the bare pods.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from ktrdr_api import names
from ktrdr_client.cluster import PODS, TRAINING_JOBS, Cluster, Resource

Raw = dict[str, Any]
Metrics = Counter[tuple[str, ...]]

ROOT: Final = Path(__file__).parents[2]
CLUSTER_SH: Final = ROOT / "tests/cluster/cluster.sh"
DEFAULT_KUBECONFIG: Final = "/var/tmp/ktrdr-cluster/kubeconfig"  # noqa: S108 - cluster.sh's place
OPERATOR_LABELS: Final = "app.kubernetes.io/name=ktrdr,app.kubernetes.io/component=operator"
FAKE_NODES: Final = 50
GOAL: Final = 1.5
LIMIT: Final = 3.0
DEADLINE_SECONDS: Final = 300.0
SETTLE_SECONDS: Final = 5.0
"""Before each round: the schedulers' and controllers' rate limiters are full again."""
CLAIM: Final = "market-data"
IMAGE: Final = "ktrdr.io/trainer:dev"  # never pulled: nodes that kwok serves run nothing
PLACEMENT: Final[Raw] = {
    "nodeSelector": {"type": "kwok"},
    "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}],
}
COMING: Final = (
    "client done",
    "TrainingJobs exist",
    "TrainingJobs recorded",
    "pods exist",
    "pods scheduled",
    "pods running",
    "TrainingJobs say Running",
)
GOING: Final = ("client done", "TrainingJobs gone", "pods stopping", "pods gone")
WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE", "APPLY"})
COUNTED: Final = frozenset(
    {"trainingjobs", "pods", "configmaps", "serviceaccounts", "roles", "rolebindings", "events"}
)


@dataclass(frozen=True)
class Tools:
    """Programs of the test cluster, and the cluster they speak to."""

    environment: dict[str, str]

    def run(self, *command: str | Path) -> str:
        """Run a program; its error output ends the benchmark."""
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"bench-apply: {' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout


@dataclass
class Sight:
    """When each object was first seen to have reached each stage, on the monotonic clock."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, name: str, stages: list[str]) -> None:
        """Remember the first sight of these stages."""
        for stage in stages:
            self.stages.setdefault(stage, {}).setdefault(name, time.monotonic())
        self._news.set()

    async def all_reach(self, stage: str, count: int) -> None:
        """Wait until so many objects have reached a stage."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(self.stages.get(stage, {})) < count:
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), 1.0)
            if time.monotonic() > deadline:
                seen = {name: len(found) for name, found in self.stages.items()}
                sys.exit(f"bench-apply: not all {stage} after {DEADLINE_SECONDS:g} s: {seen}")

    def last(self, stage: str) -> float:
        """When the last object reached a stage."""
        return max(self.stages[stage].values())

    def median(self, stage: str) -> float:
        """When half of the objects had reached a stage."""
        times = sorted(self.stages[stage].values())
        return times[len(times) // 2]


def stages_of_pod(kind: str, pod: Raw) -> list[str]:
    """Stages a watch event shows a pod to have reached."""
    found = {
        "exist": True,
        "scheduled": "nodeName" in pod["spec"],
        "running": pod["status"].get("phase") == "Running",
        "stopping": "deletionTimestamp" in pod["metadata"],
        "gone": kind == "DELETED",
    }
    return [f"pods {stage}" for stage, reached in found.items() if reached]


def stages_of_job(kind: str, job: Raw) -> list[str]:
    """Stages a watch event shows a TrainingJob to have reached."""
    status = job.get("status", {})
    found = {
        "exist": True,
        "recorded": status.get("attempt", 0) > 0,
        "say Running": status.get("phase") == "Running",
        "gone": kind == "DELETED",
    }
    return [f"TrainingJobs {stage}" for stage, reached in found.items() if reached]


@dataclass(frozen=True)
class Kind:
    """What is created: bare pods or TrainingJobs."""

    title: str
    resource: Resource
    build: Callable[[str, str], Raw]


def bare_pod(namespace: str, name: str) -> Raw:
    """The least pod there is."""
    container = {"name": "main", "image": IMAGE}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"containers": [container], "restartPolicy": "Never", **PLACEMENT},
    }


def training_job(namespace: str, name: str) -> Raw:
    """A TrainingJob as a user writes it."""
    claim = {"persistentVolumeClaim": {"claimName": CLAIM}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "strategy": {"inline": "name: bench"},
            "data": claim,
            "output": claim,
            "trainer": {"image": IMAGE, **PLACEMENT},
        },
    }


KINDS: Final = (
    Kind("bare pods", PODS, bare_pod),
    Kind("TrainingJobs", TRAINING_JOBS, training_job),
)


@dataclass(frozen=True)
class Round:
    """One kind, created and deleted: seconds since its first request, by stage."""

    running: float
    gone: float
    coming: dict[str, tuple[float, float]]
    """Stage: median and last, from the first create."""
    going: dict[str, tuple[float, float]]
    """Stage: median and last, from the first delete."""


async def watch(
    cluster: Cluster,
    resource: Resource,
    namespace: str,
    note: Callable[[str, Raw], None],
) -> None:
    """Watch one namespace until cancelled; kept alive by reopening where it ended."""
    _, version = await cluster.list(resource, namespace)
    async with cluster.open_session() as session:
        while True:
            url = f"{cluster.server}{resource.path(namespace)}?watch=true&resourceVersion={version}"
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as response:
                rest = b""
                async for data in response.content.iter_any():
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        version = event["object"]["metadata"]["resourceVersion"]
                        note(event["type"], event["object"])


@asynccontextmanager
async def watching(cluster: Cluster, namespace: str) -> AsyncIterator[Sight]:
    """See the pods and the TrainingJobs of a namespace."""
    sight = Sight()

    def pod(kind: str, raw: Raw) -> None:
        sight.note(raw["metadata"]["name"], stages_of_pod(kind, raw))

    def job(kind: str, raw: Raw) -> None:
        sight.note(raw["metadata"]["name"], stages_of_job(kind, raw))

    tasks = [
        asyncio.create_task(watch(cluster, PODS, namespace, pod)),
        asyncio.create_task(watch(cluster, TRAINING_JOBS, namespace, job)),
    ]
    await asyncio.sleep(SETTLE_SECONDS)
    try:
        yield sight
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(cluster: Cluster, kind: Kind, namespace: str, count: int) -> Round:
    """Create all at once, wait until all pods run, delete one by one, wait until all are gone."""
    async with watching(cluster, namespace) as sight:
        began = time.monotonic()
        requests = [kind.build(namespace, f"bench-{number}") for number in range(count)]
        made = await asyncio.gather(*(cluster.create(kind.resource, body) for body in requests))
        sight.stages["client done"] = {"": time.monotonic()}
        await sight.all_reach("pods running", count)
        running = sight.last("pods running") - began
        if kind.resource is TRAINING_JOBS:
            await sight.all_reach("TrainingJobs say Running", count)
        coming = lasts(sight, began, COMING)
        await asyncio.sleep(SETTLE_SECONDS)
        sight.stages.clear()
        began = time.monotonic()
        await asyncio.gather(*(delete(cluster, kind.resource, body) for body in made))
        sight.stages["client done"] = {"": time.monotonic()}
        await sight.all_reach("pods gone", count)
    gone = sight.last("pods gone") - began
    return Round(running, gone, coming, lasts(sight, began, GOING))


def lasts(sight: Sight, began: float, stages: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Median and last of the stages that were seen, in seconds since a moment."""
    return {
        stage: (sight.median(stage) - began, sight.last(stage) - began)
        for stage in stages
        if stage in sight.stages
    }


async def delete(cluster: Cluster, resource: Resource, raw: Raw) -> None:
    """Delete one object as `kubectl delete` does."""
    metadata = raw["metadata"]
    await cluster.delete(resource, metadata["namespace"], metadata["name"], uid=metadata["uid"])


@dataclass
class OperatorProcess:
    """The operator under test, and what /proc and its /metrics say of it."""

    process: subprocess.Popen[bytes]
    port: int

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mebibytes(self) -> float:
        """Largest resident set so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    async def ready(self, log: Path) -> None:
        """Wait until it has listed everything and works."""
        deadline = time.monotonic() + 30
        while "first listing done" not in log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"bench-apply: the operator did not start:\n{log.read_text()[-2000:]}")
            await asyncio.sleep(0.1)


@contextmanager
def operator(tools: Tools, namespace: str, log: Path) -> Iterator[OperatorProcess]:
    """Run this checkout's operator on one namespace."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **tools.environment,
        "KTRDR_TRAINER_IMAGE": IMAGE,
        "KTRDR_WATCH_NAMESPACES": namespace,
        "KTRDR_HTTP_PORT": str(port),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ktrdr_operator"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield OperatorProcess(process, port)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def installed_operators_resting(tools: Tools) -> Iterator[None]:
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
def bench_namespace(tools: Tools) -> Iterator[str]:
    """A fresh namespace with a bound claim, and fake nodes; all gone afterwards."""
    namespace = f"bench-{uuid.uuid4().hex[:6]}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tools.run("kubectl", "create", "namespace", namespace)
        try:
            claim = f"{namespace}/{CLAIM}"
            tools.run(CLUSTER_SH, "pv", namespace, folder, claim, "1Gi", "ReadWriteMany")
            tools.run(CLUSTER_SH, "fake-nodes", str(FAKE_NODES))
            yield namespace
        finally:
            tools.run("kubectl", "delete", "namespace", namespace)
            tools.run("kubectl", "delete", "pv", namespace, "--ignore-not-found")
            tools.run(CLUSTER_SH, "fake-nodes", "0")


async def read(session: aiohttp.ClientSession, url: str) -> str:
    """What a server says of itself."""
    async with session.get(url) as response:
        return await response.text()


def total(text: str, name: str, *labels: str) -> Metrics:
    """Sum a counter by some of its labels."""
    found: Metrics = Counter()
    for line in text.splitlines():
        if line.startswith(name + "{"):
            given = dict(re.findall(r'(\w+)="([^"]*)"', line))
            found[tuple(given.get(label, "") for label in labels)] += int(
                float(line.rpartition(" ")[2])
            )
    return found


@dataclass(frozen=True)
class Cost:
    """What the TrainingJobs' round cost, creation and deletion together."""

    server: Metrics
    """Writes on the API server by verb, resource and subresource, whoever sent them."""
    client: Metrics
    """The operator's own requests by method."""
    seconds: float
    """Wall time of the round, pauses included."""
    server_cpu_seconds: float
    cpu_seconds: float
    peak_mebibytes: float


async def costing(
    cluster: Cluster, process: OperatorProcess, work: Callable[[], Awaitable[Round]]
) -> tuple[Round, Cost]:
    """Do some work and tell what it cost."""

    async def texts() -> tuple[str, str]:
        async with cluster.open_session() as ours, aiohttp.ClientSession() as plain:
            server = await read(ours, f"{cluster.server}/metrics")
            return server, await read(plain, f"http://127.0.0.1:{process.port}/metrics")

    server, client = await texts()
    began, cpu = time.monotonic(), process.cpu_seconds()
    done = await work()
    seconds, used = time.monotonic() - began, process.cpu_seconds() - cpu
    server_after, client_after = await texts()
    by_kind = ("apiserver_request_total", "verb", "resource", "subresource")
    by_method = ("rest_client_requests_total", "method")
    cost = Cost(
        server=total(server_after, *by_kind) - total(server, *by_kind),
        client=total(client_after, *by_method) - total(client, *by_method),
        seconds=seconds,
        server_cpu_seconds=server_cpu(server_after) - server_cpu(server),
        cpu_seconds=used,
        peak_mebibytes=process.peak_mebibytes(),
    )
    return done, cost


def server_cpu(text: str) -> float:
    """Processor time of the API server so far, as it says itself."""
    found = re.search(r"^process_cpu_seconds_total (\S+)", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def bench(tools: Tools, namespace: str, count: int, log: Path) -> tuple[Round, Round, Cost]:
    """Bare pods first, then TrainingJobs."""
    cluster = await Cluster.connect(kubeconfig=Path(tools.environment["KUBECONFIG"]))
    try:
        pods, jobs = KINDS
        with operator(tools, namespace, log) as process:
            await process.ready(log)
            bare = await measure(cluster, pods, namespace, count)
            ours, cost = await costing(
                cluster, process, lambda: measure(cluster, jobs, namespace, count)
            )
    finally:
        await cluster.close()
    return bare, ours, cost


def print_stages(title: str, bare: dict[str, Any], ours: dict[str, Any]) -> None:
    """Where the time goes: one line a stage."""
    print(f"{title:<28}{'bare pods':>22}{'TrainingJobs':>22}")
    for stage in ours:
        cells = [
            f"{found[stage][0]:>12.1f} / {found[stage][1]:>5.1f} s" if stage in found else "-"
            for found in (bare, ours)
        ]
        print(f"  {stage:<26}{cells[0]:>22}{cells[1]:>22}")


def print_cost(cost: Cost, count: int) -> None:
    """What each TrainingJob costs."""
    print("API writes per TrainingJob, by kind (all clients: scheduler, kwok and controllers too)")
    for (verb, resource, subresource), number in sorted(
        cost.server.items(), key=lambda item: -item[1]
    ):
        if verb in WRITES and resource in COUNTED:
            what = "/".join(part for part in (resource, subresource) if part)
            print(f"  {verb:<8}{what:<40}{number / count:>8.2f}")
    requests = ", ".join(
        f"{method} {n / count:.2f}" for (method,), n in sorted(cost.client.items())
    )
    print(f"the operator's requests per TrainingJob: {requests}")
    print(
        f"CPU in these {cost.seconds:.0f} s, on {os.cpu_count()} cores that everything shares: API "
        f"server {cost.server_cpu_seconds:.1f} s, operator {cost.cpu_seconds:.1f} s"
    )
    print(
        f"operator: {cost.cpu_seconds:.1f} s of CPU ({1000 * cost.cpu_seconds / count:.1f} ms a "
        f"TrainingJob), {cost.peak_mebibytes:.0f} MiB resident at most"
    )


def report(bare: Round, ours: Round, cost: Cost, count: int) -> int:
    """Print the table and the summary; returns the exit code."""
    print_stages("coming (median / last)", bare.coming, ours.coming)
    print_stages("going (median / last)", bare.going, ours.going)
    print_cost(cost, count)
    ratios = {"run": ours.running / bare.running, "gone": ours.gone / bare.gone}
    worst = max(ratios.values())
    verdict = "FAILED" if worst > LIMIT else "short of its goal" if worst > GOAL else "ok"
    print(
        f"bench-apply: {count} TrainingJobs run in {ours.running:.1f} s "
        f"({ratios['run']:.2f}x bare pods), gone in {ours.gone:.1f} s ({ratios['gone']:.2f}x); "
        f"goal {GOAL}x, fails beyond {LIMIT:g}x: {verdict}"
    )
    return int(worst > LIMIT)


def main() -> int:
    """Set up, measure, clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="objects of each kind")
    count = parser.parse_args().count
    kubeconfig = os.environ.get("KTRDR_TEST_KUBECONFIG", DEFAULT_KUBECONFIG)
    folder = Tools({**os.environ}).run(CLUSTER_SH, "bin").strip()
    path = os.pathsep.join([folder, os.environ["PATH"]])
    tools = Tools({**os.environ, "KUBECONFIG": kubeconfig, "PATH": path})
    with (
        tempfile.TemporaryDirectory() as logs,
        installed_operators_resting(tools),
        bench_namespace(tools) as namespace,
    ):
        log = Path(logs) / "operator.log"
        bare, ours, cost = asyncio.run(bench(tools, namespace, count, log))
    return report(bare, ours, cost, count)


if __name__ == "__main__":
    sys.exit(main())
