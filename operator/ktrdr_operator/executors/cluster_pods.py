"""Cluster executor: runs attempts as pods. Called by `apply`; sends the objects of `manifests`.

Creating is safe to repeat: an existing child of the same TrainingJob is left as it is; an object of
another owner is a NameConflict and stays untouched.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ktrdr_api import names
from ktrdr_api.strategy import strategy_digest
from ktrdr_client.cluster import (
    CONFIG_MAPS,
    PODS,
    ROLE_BINDINGS,
    SERVICE_ACCOUNTS,
    AlreadyExists,
    ApiError,
    ClusterApi,
    Resource,
)
from ktrdr_operator import manifests
from ktrdr_operator.manifests import Manifest, PodDefaults
from ktrdr_operator.notes import Note
from ktrdr_operator.snapshot import AttemptStart, JobView, PodDeletion
from ktrdr_operator.views import Raw, training_job_uid

T = TypeVar("T")


class NameConflictError(Exception):
    """The name of a child is taken by an object of another owner, or by one being deleted."""


@dataclass
class ClusterPods:
    """Creates and deletes the children of attempts."""

    cluster: ClusterApi
    defaults: PodDefaults
    _prepared: set[str] = field(default_factory=set)
    """Namespaces that have the trainers' account and role binding."""
    _preparing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def forget_prepared(self) -> None:
        """Make sure of the accounts and role bindings again: somebody may have deleted one."""
        self._prepared.clear()

    async def start_attempt(self, job: JobView, start: AttemptStart, note: Note) -> Raw:
        """Create the children of one attempt; returns the pod as stored by the API server.

        The pod is created last: if it exists, everything that it needs exists.

        Raises:
            NameConflictError: A name is taken; the other owner's object was not touched.
            ApiError: The API server rejected a request or did not answer; safe to repeat.
        """
        await self._prepare(job.namespace)
        is_stored = note.stored_strategy or start.strategy.is_stored
        if not manifests.fits_into_pod(job, start.strategy) and not is_stored:
            manifest = manifests.strategy_config_map(job, start.strategy)
            stored = await self._create(job, CONFIG_MAPS, manifest)
            # An interrupted try may have stored it, and the source may have changed since.
            text = stored["data"][names.STRATEGY_FILE]
            start = replace(start, strategy=replace(start.strategy, text=text))
            note.stored_strategy = True
            note.strategy_digest = strategy_digest(text)
        try:
            return await self._create(job, PODS, manifests.pod(job, start, self.defaults))
        except ApiError as error:
            if "serviceaccount" in error.message.lower():
                self._prepared.discard(job.namespace)
            raise

    async def stop(self, namespace: str, pods: tuple[PodDeletion, ...]) -> None:
        """Delete pods, with their UIDs as a precondition. Repeatable."""
        await _together(*(self.cluster.delete(PODS, namespace, p.name, uid=p.uid) for p in pods))

    async def _prepare(self, namespace: str) -> None:
        """Create the trainers' account and role binding of a namespace if they are missing."""
        async with self._preparing:  # the first jobs of a namespace start concurrently
            if namespace in self._prepared:
                return
            await _together(
                self._create_shared(SERVICE_ACCOUNTS, manifests.trainer_account(namespace)),
                self._create_shared(
                    ROLE_BINDINGS, manifests.trainer_role_binding(namespace, self.defaults)
                ),
            )
            self._prepared.add(namespace)

    async def _create_shared(self, resource: Resource, manifest: Manifest) -> None:
        try:
            await self.cluster.create(resource, manifest)
        except AlreadyExists as refused:
            wanted = manifest.get("roleRef")
            if wanted is None:
                return
            name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
            present = await self.cluster.get(resource, namespace, name)
            # Of either kind: a role reference cannot be changed when the installation does.
            if present is not None and present.get("roleRef", {}).get("name") != wanted["name"]:
                raise NameConflictError(
                    f'RoleBinding "{name}" in namespace "{namespace}" binds another role than '
                    f'{wanted["kind"]} "{wanted["name"]}"; delete it and the job starts'
                ) from refused

    async def _create(self, job: JobView, resource: Resource, manifest: Manifest) -> Raw:
        try:
            return await self.cluster.create(resource, manifest)
        except AlreadyExists as refused:
            name = manifest["metadata"]["name"]
            present = await self.cluster.get(resource, job.namespace, name)
            if present is None:
                raise  # deleted between the two requests: the next try creates it
            conflict = _conflict(job, f'{resource.kind} "{name}"', present)
            if conflict is not None:
                raise NameConflictError(conflict) from refused
            return present


def _conflict(job: JobView, what: str, present: Raw) -> str | None:
    """Why an object with the name cannot be used; None if it is a child of this job."""
    owner = training_job_uid(present["metadata"])
    if owner == job.uid:
        if "deletionTimestamp" not in present["metadata"]:
            return None
        return f"{what} is being deleted; the job starts once it no longer exists"
    if owner:
        return (
            f"{what} is left over from a deleted TrainingJob of this name; this job starts when "
            "the garbage collector has removed it"
        )
    return (
        f"{what} exists and belongs to another owner; delete it or give this TrainingJob another "
        "name"
    )


async def _together(*calls: Coroutine[Any, Any, T]) -> list[T]:
    """Await all calls concurrently; then raise the first error, if any.

    Not a TaskGroup: it would cancel calls in flight, whose outcome would then be unknown.
    """
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
