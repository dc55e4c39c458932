"""Runs attempts as pods of the cluster. Called by `apply`; sends what `manifests` describes.

Creating is safe to repeat: a child that exists and is ours is left as it is, one that belongs to
somebody else is a NameConflict and stays untouched.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ktrdr_client.cluster import (
    CONFIG_MAPS,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    AlreadyExists,
    ClusterApi,
    Resource,
)
from ktrdr_operator import manifests
from ktrdr_operator.manifests import Manifest
from ktrdr_operator.snapshot import AttemptStart, JobView, Limits, PodDeletion
from ktrdr_operator.views import Raw, training_job_uid

T = TypeVar("T")


class NameConflictError(Exception):
    """A child's name is taken by an object that is not ours."""


async def start_attempt(
    cluster: ClusterApi, job: JobView, start: AttemptStart, limits: Limits
) -> Raw:
    """Create the children of one attempt; returns the pod as the server has it.

    The binding needs the role, and the pod comes last: where there is a pod, there is all it needs.

    Raises:
        NameConflictError: a name is taken; nothing of the other owner was touched.
        ApiError: the API server refused or did not answer; safe to repeat.
    """
    await _together(
        _create(cluster, job, CONFIG_MAPS, manifests.run_config_map(job, start)),
        _create(cluster, job, SERVICE_ACCOUNTS, manifests.service_account(job)),
        _create(cluster, job, ROLES, manifests.role(job)),
    )
    await _create(cluster, job, ROLE_BINDINGS, manifests.role_binding(job))
    return await _create(cluster, job, PODS, manifests.pod(job, start, limits))


async def stop(cluster: ClusterApi, namespace: str, pods: tuple[PodDeletion, ...]) -> None:
    """Delete pods, with their UIDs as a precondition. Repeatable."""
    await _together(*(cluster.delete(PODS, namespace, p.name, uid=p.uid) for p in pods))


async def _create(cluster: ClusterApi, job: JobView, resource: Resource, manifest: Manifest) -> Raw:
    try:
        return await cluster.create(resource, manifest)
    except AlreadyExists as refused:
        name = manifest["metadata"]["name"]
        present = await cluster.get(resource, job.namespace, name)
        if present is None:
            raise  # gone between the two: the next try will do
        owner = training_job_uid(present["metadata"])
        if owner == job.uid:
            return present
        what = f'{resource.kind} "{name}"'
        if owner:
            raise NameConflictError(
                f"{what} is left over from an earlier TrainingJob of this name; this job starts "
                "when the garbage collector has removed it"
            ) from refused
        raise NameConflictError(
            f"{what} exists and belongs to another owner; delete it or give this TrainingJob "
            "another name"
        ) from refused


async def _together(*calls: Coroutine[Any, Any, T]) -> list[T]:
    """Send all at once and wait for all; then raise the first error, if any.

    Not a TaskGroup: it would cancel calls in flight, whose outcome then nobody knows.
    """
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
