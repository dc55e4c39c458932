"""Apply: carry out a Plan. Status first, then deletions, then the children of a new attempt.

Called by `reconcile`. Every step is safe to repeat after a crash between any two of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ktrdr_client.cluster import TRAINING_JOBS, ApiError, ClusterApi, Conflict, NotFound
from ktrdr_operator import manifests
from ktrdr_operator.executors.cluster_pods import ClusterPods
from ktrdr_operator.notes import Notes
from ktrdr_operator.snapshot import AttemptStart, JobView, Plan
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.views import Raw


@dataclass(frozen=True)
class Applier:
    """Carries plans out."""

    cluster: ClusterApi
    store: Store
    notes: Notes
    pods: ClusterPods
    clock: Callable[[], float]
    """Monotonic seconds."""

    async def apply_status(self, namespace: str, job: JobView | None, plan: Plan) -> None:
        """Write the status of a plan.

        Pods are deleted even if the status cannot be written, unless it was decided on an old
        state: a status that the server refuses must not keep pods alive.

        Raises:
            ApiError: The API server refused or did not answer; observing again is safe.
        """
        try:
            if job is not None:
                await self.write_status(job, plan)
        except (Conflict, NotFound):
            raise
        except ApiError:
            await self.delete_pods(namespace, plan)
            raise

    async def delete_pods(self, namespace: str, plan: Plan) -> None:
        """Delete the pods that a plan names.

        Raises:
            ApiError: The API server refused or did not answer; observing again is safe.
        """
        if plan.deletions:
            await self.pods.stop(namespace, plan.deletions)

    async def start(self, job: JobView, start: AttemptStart) -> None:
        """Create the children of an attempt.

        Raises:
            NameConflictError: A child's name is taken.
            ApiError: The API server refused or did not answer; observing again is safe.
        """
        note = self.notes.of(job.uid, self.clock())
        pod = await self.pods.start_attempt(job, start, note)
        self.store.put_created_pod(JobKey(job.namespace, job.name), pod)

    async def expire(self, job: JobView) -> bool:
        """Delete a TrainingJob whose time to live is over.

        Returns:
            False when it has changed since it was observed, for example its time to live, or does
            not exist any more: observe again.

        Raises:
            ApiError: The API server refused or did not answer.
        """
        version = job.resource_version
        return await self.cluster.delete(
            TRAINING_JOBS, job.namespace, job.name, uid=job.uid, resource_version=version
        )

    async def write_status(self, job: JobView, plan: Plan) -> bool:
        """Write the operator's share of status, if it differs; returns whether it did."""
        if plan.status is None or plan.status == job.status:
            return False
        patch = manifests.status_patch(job, plan.status)
        written = await self.cluster.apply(TRAINING_JOBS, patch, subresource="status")
        written = await self._remove_co_owned(patch, written)
        self.store.put_own_write(written)
        self.notes.of(job.uid, self.clock()).status_written = self.clock()
        return True

    async def _remove_co_owned(self, patch: Raw, written: Raw) -> Raw:
        """Remove fields that this apply has left out and another field manager owns as well.

        Server-side apply only removes what nobody else owns. Without this the operator would find
        a difference, and write, at every reconcile.
        """
        stayed = set(written.get("status", {})) - set(patch["status"]) - {"progress"}
        if not stayed:
            return written
        metadata = {
            "name": patch["metadata"]["name"],
            "namespace": patch["metadata"]["namespace"],
            "resourceVersion": written["metadata"]["resourceVersion"],
        }
        removal = {"metadata": metadata, "status": dict.fromkeys(sorted(stayed))}
        return await self.cluster.patch(TRAINING_JOBS, removal, subresource="status")
