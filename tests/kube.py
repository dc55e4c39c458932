"""kubectl with JSON in and out: how tests talk to a real API server, as a user would."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Raw = dict[str, Any]

MERGE_PATCH = "--type=merge"


class RefusedError(Exception):
    """kubectl ended with an error; the text is what it wrote for the user."""


@dataclass(frozen=True)
class Kube:
    """A cluster and one namespace of it.

    Attributes:
        kubeconfig: File that names the cluster and the identity.
        namespace: Namespace of every call.
        environment: Environment of kubectl; its PATH has the project's tools.
    """

    kubeconfig: Path
    namespace: str
    environment: Mapping[str, str]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its standard output.

        Raises:
            RefusedError: It failed.
        """
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", f"-n{self.namespace}", *arguments],
            input=stdin,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RefusedError(done.stderr.strip())
        return done.stdout

    def create(self, body: Raw, *arguments: str) -> Raw:
        """Create an object and return it as the server answered."""
        return self._json("create", "-f-", *arguments, stdin=json.dumps(body))

    def apply(self, body: Raw, *arguments: str) -> Raw:
        """Apply an object and return it as the server answered."""
        return self._json("apply", "-f-", *arguments, stdin=json.dumps(body))

    def get(self, resource: str, name: str) -> Raw:
        """Read an object."""
        return self._json("get", resource, name)

    def patch(self, resource: str, name: str, body: Raw, *arguments: str) -> Raw:
        """Merge-patch an object; `--subresource=status` patches its status."""
        return self._json(
            "patch", resource, name, MERGE_PATCH, f"-p={json.dumps(body)}", *arguments
        )

    def _json(self, *arguments: str, stdin: str | None = None) -> Raw:
        answer: Raw = json.loads(self.run(*arguments, "-ojson", stdin=stdin))
        return answer


def training_job(name: str = "job", **spec: Any) -> Raw:
    """The smallest valid TrainingJob; `spec` adds fields, or replaces them whole."""
    claim = {"persistentVolumeClaim": {"claimName": "market-data"}}
    return {
        "apiVersion": "ktrdr.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {"strategy": {"inline": "name: any"}, "data": claim, "output": claim, **spec},
    }
