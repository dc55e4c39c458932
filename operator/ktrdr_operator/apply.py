"""Apply: make a Plan true. Status first, then children: an attempt is on record before it runs.

Called by `reconcile`. Every step is safe to repeat after a crash between any two of them.
"""

from dataclasses import dataclass

from ktrdr_client.cluster import TRAINING_JOBS, ClusterApi
from ktrdr_operator import manifests
from ktrdr_operator.executors import cluster_pods
from ktrdr_operator.snapshot import AttemptStart, JobView, Limits, Plan
from ktrdr_operator.store import Store


@dataclass(frozen=True)
class Applier:
    """Carries plans out."""

    cluster: ClusterApi
    store: Store
    limits: Limits

    async def apply(self, namespace: str, job: JobView | None, plan: Plan) -> None:
        """Make one plan true, but for its start.

        Raises:
            ApiError: the API server refused or did not answer; observing again is safe.
        """
        if job is not None:
            await self.write_status(job, plan)
        if plan.deletions:
            await cluster_pods.stop(self.cluster, namespace, plan.deletions)

    async def start(self, job: JobView, start: AttemptStart) -> None:
        """Create the children of an attempt that is on record.

        Raises:
            NameConflictError: a child's name belongs to somebody else.
            ApiError: the API server refused or did not answer; observing again is safe.
        """
        pod = await cluster_pods.start_attempt(self.cluster, job, start, self.limits)
        self.store.put_pod_if_unknown(pod)

    async def write_status(self, job: JobView, plan: Plan) -> bool:
        """Write the operator's share of status, if it differs; returns whether it did."""
        if plan.status is None or plan.status == job.status:
            return False
        patch = manifests.status_patch(job, plan.status)
        written = await self.cluster.apply(TRAINING_JOBS, patch, subresource="status")
        self.store.put_own_write(written)
        return True
