"""What the watches have said last: the operator's memory, rebuilt from a LIST at every start.

`handlers` and the periodic LIST write it, `observe` reads it. Nothing here is truth: a decision
that would hurt if the store were stale asks the API server first. Raw objects stay raw until
`observe` parses them: an object we cannot parse is one job's condition and nobody else's problem.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from ktrdr_api import names
from ktrdr_operator.views import Raw, training_job_uid


class ProgressVersion(NamedTuple):
    """What a trainer's report changes in a TrainingJob."""

    resource_version: str
    progress: Raw | None


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


def is_older(raw: Raw, known: Raw | None) -> bool:
    """Whether the store already has a newer state, such as the answer to a write of ours.

    Source: resource versions of one object are comparable as numbers since Kubernetes 1.35
    (KEP-5504), and were so before with etcd.
    """
    if known is None or known["metadata"]["uid"] != raw["metadata"]["uid"]:
        return False
    return int(raw["metadata"]["resourceVersion"]) < int(known["metadata"]["resourceVersion"])


@dataclass
class Store:
    """Newest known TrainingJobs, pods and progress values."""

    jobs: dict[JobKey, Raw] = field(default_factory=dict)
    pods: dict[JobKey, dict[str, Raw]] = field(default_factory=dict)
    """By TrainingJob, then by pod name."""
    gone: dict[JobKey, dict[str, Raw]] = field(default_factory=dict)
    """Last words of deleted pods: their exit code may still be the verdict of an attempt."""
    dead: set[str] = field(default_factory=set)
    """UIDs of TrainingJobs that the API server has said to be gone: none of them comes back."""
    own_write_versions: set[str] = field(default_factory=set)
    """Versions that writes of ours have made, until the watch has brought them."""
    report_period_seconds: int | None = None
    """What trainers should wait between reports; see `pace`."""
    latest_progress: dict[str, ProgressVersion] = field(default_factory=dict)
    """The newest, by UID of the TrainingJob; most are of events that never reach a handler."""

    def put_job(self, raw: Raw) -> JobKey:
        """Remember a TrainingJob, unless something newer is known; forget a same-named one."""
        key = job_key(raw)
        before = self.jobs.get(key)
        if raw["metadata"]["uid"] in self.dead or is_older(raw, before):
            return key
        if before is not None and before["metadata"]["uid"] != raw["metadata"]["uid"]:
            self.latest_progress.pop(before["metadata"]["uid"], None)
        self.jobs[key] = raw
        self.put_progress(raw)
        return key

    def put_own_write(self, raw: Raw) -> None:
        """Remember a TrainingJob as the answer to a write of ours has it.

        The write was refused unless the object had the version that was known: this is no news.
        """
        self.put_job(raw)
        self.own_write_versions.add(raw["metadata"]["resourceVersion"])

    def take_own_write(self, raw: Raw) -> bool:
        """Whether a write of ours made this version; asked once, by the watch."""
        version = raw["metadata"]["resourceVersion"]
        own_write_versions = version in self.own_write_versions
        self.own_write_versions.discard(version)
        return own_write_versions

    def put_progress(self, raw: Raw) -> None:
        """Remember the progress and the version of a TrainingJob, unless newer ones are known."""
        metadata = raw["metadata"]
        uid, version = metadata["uid"], metadata["resourceVersion"]
        known = self.latest_progress.get(uid)
        if known is None or int(known.resource_version) < int(version):
            self.latest_progress[uid] = ProgressVersion(
                version, raw.get("status", {}).get("progress")
            )

    def drop_job(self, key: JobKey, uid: str) -> None:
        """A TrainingJob is gone: forget it, unless a newer one has taken its name."""
        self.dead.add(uid)
        self.latest_progress.pop(uid, None)
        current = self.jobs.get(key)
        if current is not None and current["metadata"]["uid"] == uid:
            del self.jobs[key]
            self.gone.pop(key, None)

    def put_pod(self, raw: Raw) -> JobKey | None:
        """Remember a pod, unless something newer is known; returns its TrainingJob."""
        key = owner_key(raw)
        if key is None:
            return None
        name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
        gone, known = self.gone.get(key, {}).get(name), self.pods.get(key, {}).get(name)
        is_gone = gone is not None and gone["metadata"]["uid"] == uid
        if not is_gone and not is_older(raw, known):
            self.pods.setdefault(key, {})[name] = raw
        return key

    def put_pod_if_unknown(self, raw: Raw) -> None:
        """Remember a pod just created, unless the watch has said something newer of it."""
        key = owner_key(raw)
        name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
        places = () if key is None else (self.pods.get(key, {}), self.gone.get(key, {}))
        if not any(name in place and place[name]["metadata"]["uid"] == uid for place in places):
            self.put_pod(raw)

    def drop_pod(self, raw: Raw) -> JobKey | None:
        """Move a pod to the gone ones, unless a newer one has taken its name."""
        key = owner_key(raw)
        if key is None:
            return None
        known, name = self.pods.get(key, {}), raw["metadata"]["name"]
        if name in known and known[name]["metadata"]["uid"] == raw["metadata"]["uid"]:
            del known[name]
        if not known:
            self.pods.pop(key, None)
        if key in self.jobs:
            self.gone.setdefault(key, {})[name] = raw
        return key

    def replace(self, jobs: list[Raw], pods: list[Raw]) -> set[JobKey]:
        """Take a full LIST as the new memory; returns every key that was or is known."""
        touched = {*self.jobs, *self.pods}
        self.own_write_versions.clear()
        known_keys = {job_key(raw) for raw in jobs}
        known_uids = {raw["metadata"]["uid"] for raw in jobs}
        self.jobs, self.pods = {}, {}
        self.gone = {key: value for key, value in self.gone.items() if key in known_keys}
        self.latest_progress = {
            uid: value for uid, value in self.latest_progress.items() if uid in known_uids
        }
        for raw in jobs:
            touched.add(self.put_job(raw))
        for raw in pods:
            if (key := self.put_pod(raw)) is not None:
                touched.add(key)
        self.dead &= {training_job_uid(raw["metadata"]) for raw in pods}
        return touched
