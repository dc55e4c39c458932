"""Namespace with market data, in which end-to-end tests run TrainingJobs as a user would."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo.claims import FilesPod
from demo.demo_environment import DATA_CLAIM, MODELS_CLAIM, DemoEnvironment
from kube import MERGE_PATCH, Kube, Raw, training_job

RESOURCE = "trainingjobs.ktrdr.io"
STRATEGY = Path(__file__).parents[2] / "strategies/test_strategy.yaml"
CHILD_KINDS = "pods,configmaps"
LONG = 60_000
"""Epochs of a run that must not end by itself: minutes, on any machine."""

QUICK = ("--set=operator.imagePullGraceSeconds=3", "--set=operator.retryBackoff.baseSeconds=1")
"""Shorter times than in production, so that tests need not wait."""


def strategy(**training: Any) -> str:
    """The shipped test strategy with other training values."""
    content = yaml.safe_load(STRATEGY.read_text())
    content["training"].update(training)
    return yaml.safe_dump(content, sort_keys=False)


@dataclass(frozen=True)
class JobNamespace:
    """One namespace of the cluster, with claims for market data and for models."""

    demo_environment: DemoEnvironment
    kube: Kube
    files: FilesPod
    """Pod with the claims mounted at /data and /output, and the trainer's program."""

    def job(self, name: str, text: str, **spec: Any) -> Raw:
        """A TrainingJob over the test data; `spec` adds fields, or replaces them whole."""
        return training_job(
            name,
            **{
                "strategy": {"inline": text},
                "data": claim(DATA_CLAIM),
                "output": claim(MODELS_CLAIM),
                "progress": {"periodSeconds": 1},
                **spec,
            },
        )

    def start(self, name: str, text: str, **spec: Any) -> Raw:
        """Apply a TrainingJob."""
        return self.kube.apply(self.job(name, text, **spec))

    def status(self, name: str) -> Raw:
        """Status as it is now."""
        status: Raw = self.kube.get(RESOURCE, name)["status"]
        return status

    def cancel(self, name: str) -> None:
        """The documented one-line cancel."""
        patch = '{"spec":{"cancel":true}}'
        self.kube.run("patch", RESOURCE, name, MERGE_PATCH, "-p", patch)

    def finished(self, name: str, seconds: float = 180) -> Raw:
        """Wait until the job has finished, with any outcome, and return the status."""
        wait = ("wait", "--for=condition=Finished", f"{RESOURCE}/{name}")
        try:
            self.kube.run(*wait, f"--timeout={seconds}s")
        except Exception as error:
            status = json.dumps(self.status(name), indent=1)
            raise AssertionError(f"{name} has not finished: {status}\n{self.logs(name)}") from error
        return self.status(name)

    def until(self, name: str, reached: Callable[[Raw], Any], seconds: float = 60) -> Raw:
        """Follow the watch until a status satisfies `reached`; return it."""
        latest: Raw = {}
        with self.watch(name, seconds) as events:
            for _, latest in events:
                if latest.get("status") and reached(latest["status"]):
                    status: Raw = latest["status"]
                    return status
        raise AssertionError(f"{name}: not within {seconds} s: {json.dumps(latest, indent=1)}")

    @contextmanager
    def watch(self, name: str, seconds: float) -> Iterator[Iterator[tuple[float, Raw]]]:
        """Arrival times and objects from a watch of one TrainingJob."""
        path = (
            f"/apis/ktrdr.io/v1alpha1/namespaces/{self.kube.namespace}/trainingjobs"
            f"?watch=1&fieldSelector=metadata.name%3D{name}&timeoutSeconds={int(seconds)}"
        )
        command = ["kubectl", f"--kubeconfig={self.kube.kubeconfig}", "get", "--raw", path]
        stream = subprocess.Popen(command, env=dict(self.kube.environment), stdout=subprocess.PIPE)
        assert stream.stdout is not None
        lines = stream.stdout
        try:
            yield ((time.monotonic(), json.loads(line)["object"]) for line in lines)
        finally:
            stream.terminate()
            stream.wait()
            lines.close()

    def pods(self, name: str) -> list[Raw]:
        """The job's pods, oldest attempt first."""
        answer = json.loads(self.kube.run("get", "pods", f"-lktrdr.io/job={name}", "-ojson"))
        items: list[Raw] = answer["items"]
        return sorted(items, key=lambda pod: int(pod["metadata"]["labels"]["ktrdr.io/attempt"]))

    def logs(self, name: str) -> str:
        """Logs of all pods of the job that still exist; empty where none has started."""
        texts = []
        for pod in self.pods(name):
            container = pod["status"].get("containerStatuses", [{}])[0].get("state", {})
            if "running" in container or "terminated" in container:
                texts.append(self.kube.run("logs", pod["metadata"]["name"]))
        return "".join(texts)

    def events(self, name: str) -> str:
        """Events of the job, as `kubectl events` prints them."""
        return self.kube.run("events", f"--for={RESOURCE}/{name}")

    def model_digest(self, name: str) -> str:
        """SHA-256 of the parameters of a finished job's model."""
        path = self.status(name)["result"]["artifact"]["path"]
        return self.files.run("sha256sum", f"/output/{path}/model.safetensors").split()[0]

    def remove(self, name: str) -> None:
        """Delete a job and wait until its children no longer exist."""
        self.kube.run("delete", RESOURCE, name, "--ignore-not-found")
        self.nothing_left(name)

    def nothing_left(self, name: str, seconds: int = 60) -> None:
        """Wait until the job has no children."""
        selector = f"-lktrdr.io/job={name}"
        if self.kube.run("get", CHILD_KINDS, selector, "-oname"):
            self.kube.run("wait", "--for=delete", CHILD_KINDS, selector, f"--timeout={seconds}s")


def claim(name: str, sub_path: str | None = None) -> Raw:
    """A volume source for `spec.data` or `spec.output`."""
    ref = {"claimName": name} | ({"subPath": sub_path} if sub_path else {})
    return {"persistentVolumeClaim": ref}


def conditions(status: Raw) -> dict[str, str]:
    """Condition type to `True` or `False`."""
    return {c["type"]: c["status"] for c in status["conditions"]}


def true_conditions(status: Raw) -> set[str]:
    """The condition types that are True."""
    return {kind for kind, value in conditions(status).items() if value == "True"}
