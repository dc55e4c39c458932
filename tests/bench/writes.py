"""Writes in the name of others: user, trainer, scheduler, kubelet. `ktrdr_client` writes as the
operator only.

Called by `seeding` and `reporters`.
"""

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import orjson

from ktrdr_api import names
from ktrdr_client.cluster import (
    PODS,
    TRAINING_JOBS,
    Cluster,
    Resource,
    error_from_answer,
)

Raw = dict[str, Any]

USER: Final = "kubectl-client-side-apply"
KUBELET: Final = "kubelet"
TIMEOUT: Final = aiohttp.ClientTimeout(total=75)
"""The server gives a request 60 s."""
JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"


@dataclass(frozen=True)
class Writer:
    """Sends requests to one API server over one HTTP session."""

    cluster: Cluster
    session: aiohttp.ClientSession

    async def create(self, resource: Resource, body: Raw, *, manager: str) -> Raw:
        """Create an object."""
        path = resource.path(body["metadata"]["namespace"])
        return await self._send("POST", path, body, fieldManager=manager)

    async def bind(self, namespace: str, pod: str, node: str) -> None:
        """Place a pod as the scheduler."""
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod, "namespace": namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await self._send("POST", PODS.path(namespace, pod, "binding"), body)

    async def patch_pod_status(self, namespace: str, name: str, status: Raw) -> Raw:
        """Write a pod's status as its kubelet."""
        path = PODS.path(namespace, name, "status")
        return await self._send("PATCH", path, {"status": status}, MERGE, fieldManager=KUBELET)

    async def apply_status(self, namespace: str, name: str, status: Raw, *, manager: str) -> Raw:
        """Apply a part of a TrainingJob's status, as the operator or as the trainer."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": namespace},
            "status": status,
        }
        path = TRAINING_JOBS.path(namespace, name, "status")
        return await self._send("PATCH", path, body, APPLY, fieldManager=manager, force="true")

    async def count(self, resource: Resource, namespace: str) -> int:
        """Number of objects that the API server lists; 0 while it does not answer."""
        url = f"{self.cluster.server}{resource.path(namespace)}?limit=1"
        async with self.session.get(url, timeout=TIMEOUT) as response:
            if response.status >= 400:
                return 0
            page = orjson.loads(await response.read())
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)

    async def delete_now(self, resource: Resource, namespace: str, name: str) -> None:
        """Delete an object without grace period."""
        await self._send("DELETE", resource.path(namespace, name), {"gracePeriodSeconds": 0})

    async def _send(
        self,
        method: str,
        path: str,
        body: Raw | None = None,
        kind: str = "application/json",
        **query: str,
    ) -> Raw:
        async with self.session.request(
            method,
            f"{self.cluster.server}{path}?{urlencode(query)}",
            data=orjson.dumps(body),
            headers={"Content-Type": kind},
            timeout=TIMEOUT,
        ) as response:
            answer = await response.read()
        if response.status >= 400:
            raise error_from_answer(response.status, response.headers, answer)
        found: Raw = orjson.loads(answer)
        return found
