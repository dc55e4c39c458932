"""What the watches have said last: the operator's memory, rebuilt from a LIST at every start.

`handlers` and the periodic LIST write it, `observe` reads it. Nothing here is truth: a decision that
would hurt if the store were stale asks the API server first. Raw objects stay raw until `observe`
parses them, so that an object we cannot parse is one job's condition and nobody else's problem.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ktrdr_api import names

Raw = dict[str, Any]


class JobKey(NamedTuple):
    """Identity of a TrainingJob as a queue key."""

    namespace: str
    name: str


def job_key(raw: Raw) -> JobKey:
    """Key of a TrainingJob."""
    metadata = raw["metadata"]
    return JobKey(metadata["namespace"], metadata["name"])


def owner_key(pod: Raw) -> JobKey | None:
    """Key of the TrainingJob that a pod's label names; None for a pod without the label."""
    metadata = pod["metadata"]
    job = metadata.get("labels", {}).get(names.LABEL_JOB)
    return JobKey(metadata["namespace"], job) if job else None


@dataclass
class Store:
    """Newest known TrainingJobs, pods and progress values."""

    jobs: dict[JobKey, Raw] = field(default_factory=dict)
    pods: dict[JobKey, dict[str, Raw]] = field(default_factory=dict)
    """By TrainingJob, then by pod name."""
    progress: dict[str, Raw] = field(default_factory=dict)
    """By UID of the TrainingJob: `status.progress` of events that never reached a handler."""

    def put_job(self, raw: Raw) -> JobKey:
        """Remember a TrainingJob; forget the progress of a same-named one before it."""
        key = job_key(raw)
        before = self.jobs.get(key)
        if before is not None and before["metadata"]["uid"] != raw["metadata"]["uid"]:
            self.progress.pop(before["metadata"]["uid"], None)
        self.jobs[key] = raw
        if progress := raw.get("status", {}).get("progress"):
            self.progress[raw["metadata"]["uid"]] = progress
        return key

    def drop_job(self, key: JobKey, uid: str) -> None:
        """Forget a TrainingJob, unless a newer one has taken its name."""
        self.progress.pop(uid, None)
        current = self.jobs.get(key)
        if current is not None and current["metadata"]["uid"] == uid:
            del self.jobs[key]

    def put_pod(self, raw: Raw) -> JobKey | None:
        """Remember a pod; returns the TrainingJob it belongs to."""
        key = owner_key(raw)
        if key is not None:
            self.pods.setdefault(key, {})[raw["metadata"]["name"]] = raw
        return key

    def drop_pod(self, raw: Raw) -> JobKey | None:
        """Forget a pod, unless a newer one has taken its name; returns its TrainingJob."""
        key = owner_key(raw)
        known = self.pods.get(key, {}) if key is not None else {}
        current = known.get(raw["metadata"]["name"])
        if current is not None and current["metadata"]["uid"] == raw["metadata"]["uid"]:
            del known[raw["metadata"]["name"]]
        if key is not None and not known:
            self.pods.pop(key, None)
        return key

    def replace(self, jobs: list[Raw], pods: list[Raw]) -> set[JobKey]:
        """Take a full LIST as the new memory; returns every key that was or is known."""
        touched = {*self.jobs, *self.pods}
        known_uids = {raw["metadata"]["uid"] for raw in jobs}
        self.jobs, self.pods = {}, {}
        self.progress = {uid: value for uid, value in self.progress.items() if uid in known_uids}
        for raw in jobs:
            touched.add(self.put_job(raw))
        for raw in pods:
            if (key := self.put_pod(raw)) is not None:
                touched.add(key)
        return touched
