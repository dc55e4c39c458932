"""A small world for the engine: an API server in memory, a kubelet, a user, and operators that die.

Everything that moves is a function of the script and of the steps taken, so that every history can
be replayed. The kubelet plays the trainer too: what each attempt does stands in `World.script`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from random import Random
from typing import Any, NamedTuple, cast

from engine_builders import (
    CHECKPOINT,
    DEFAULTS,
    JOB,
    LIMITS,
    MODEL,
    NAMESPACE,
    NOW,
    Raw,
    job_raw,
    progress,
    termination_message,
)
from ktrdr_api import names
from ktrdr_api.conditions import TERMINAL
from ktrdr_api.run_contract import Outcome
from ktrdr_client.cluster import PODS, TRAINING_JOBS, ClusterApi, Invalid, Resource
from ktrdr_client.testing import FakeCluster
from ktrdr_operator.events import EventRecorder
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.policies.interface import format_timestamp
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.reconcile import Clocks, Reconciler
from ktrdr_operator.snapshot import Snapshot
from ktrdr_operator.store import JobKey, Store

KEY = JobKey(NAMESPACE, JOB)
ROUND_SECONDS = 7.0
MAX_ROUNDS = 60
VERSION_STEP = 100
"""Between two resource versions, so that those after a restore differ from those before."""


class SigKill(BaseException):
    """The operator process is no more."""


@dataclass
class FaultyClient:
    """An operator's way to the API server: counts calls, and cuts the process off at one of them.

    Also the part of the server that FakeCluster leaves out: the CRD's rules about what may not be
    taken back. After every pod that is created, the world checks its invariants.
    """

    simulation: "SimulatedCluster"
    kill_at: int = 0
    """Number of the call, from 1, at which the process dies; 0 is never."""
    after_effect: bool = False
    pause: Callable[[], Awaitable[None]] | None = None
    """Awaited around each call, so that operators can overtake each other."""
    calls: int = 0
    _dead: bool = False

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        """Any method of the API server."""

        def call(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            return self._through(method, *args, **kwargs)

        return call

    async def _through(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._dead:
            raise SigKill
        self.calls += 1
        dies = self.calls == self.kill_at
        self._dead = dies
        if dies and not self.after_effect:
            raise SigKill
        if self.pause:
            await self.pause()
        answer = await self._serve(method, *args, **kwargs)
        if self.pause:
            await self.pause()
        if dies:
            raise SigKill
        return answer

    async def _serve(self, method: str, resource: Resource, *args: Any, **kwargs: Any) -> Any:
        if method == "apply":
            self.simulation.obey_rules(*args)
        if (method, resource) == ("delete", PODS):
            self.simulation.check_deletion(args[1], kwargs["uid"])
        try:
            return await getattr(self.simulation.cluster, method)(resource, *args, **kwargs)
        finally:  # an error may hide that it was created
            if (method, resource) == ("create", PODS):
                self.simulation.check()


class Operator:
    """One operator process: an empty store, and a reconciler that speaks through a wire."""

    def __init__(self, simulation: "SimulatedCluster", client: FaultyClient | None = None) -> None:
        self.simulation = simulation
        self.client = client or FaultyClient(simulation)
        self.store = Store(clock=simulation.monotonic)
        self.queue = WorkQueue[JobKey](clock=simulation.monotonic, random=Random(0))  # noqa: S311 - repeatable
        metrics = Metrics()
        server = cast(ClusterApi, self.client)
        self.events = EventRecorder(server, metrics, simulation.now)
        self.reconciler = Reconciler(
            server,
            self.store,
            self.queue,
            limits=LIMITS,
            defaults=DEFAULTS,
            metrics=metrics,
            events=self.events,
            clocks=Clocks(simulation.now, simulation.monotonic),
        )

    def relist(self) -> None:
        """List everything, pods by their label, as the resync does."""
        cluster = self.simulation.cluster
        pods = [
            pod
            for pod in cluster.read_all(PODS)
            if names.LABEL_JOB in pod["metadata"].get("labels", {})
        ]
        self.store.replace(cluster.read_all(TRAINING_JOBS), pods)

    async def observe(self, key: JobKey = KEY) -> Snapshot:
        """What a decision would depend on now."""
        return await self.reconciler.observer.observe(key)

    async def work(self, key: JobKey = KEY) -> None:
        """Reconcile once."""
        await self.reconciler.work(key, 0.0)


class Backup(NamedTuple):
    """State of the API server."""

    version: int
    objects: Any
    owned: Any
    attempts: dict[str, list[int]]


@dataclass
class SimulatedCluster:
    """One namespace and everybody who acts in it."""

    script: dict[int, str] = field(default_factory=dict)
    """What the trainer of an attempt does: succeed (default), stay, fail, oom, bad, vanish, reject,
    disrupt."""
    cluster: FakeCluster = field(init=False)
    turns: int = 0
    """Steps the kubelet has taken."""
    cancel_at: int | None = None
    """Turn at which the user cancels."""
    _now: datetime = NOW
    _attempts: dict[str, list[int]] = field(default_factory=dict)
    """Attempts whose pods have been seen, in order, by the UID of their TrainingJob."""
    _restores: int = 0

    def __post_init__(self) -> None:
        self.cluster = FakeCluster(now=lambda: format_timestamp(self._now))
        self.cluster._versions = count(VERSION_STEP, VERSION_STEP)

    @property
    def attempts(self) -> list[int]:
        """Attempts of the present TrainingJob whose pods have been seen, in order."""
        return self._attempts.setdefault(self.job()["metadata"]["uid"], [])

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return (self._now - NOW).total_seconds()

    def submit(self, **spec: Any) -> None:
        """Create the TrainingJob as a user does."""
        raw = job_raw(**spec)
        for server_given in ("uid", "resourceVersion", "generation", "creationTimestamp"):
            del raw["metadata"][server_given]
        self.cluster.put(TRAINING_JOBS, raw)

    def cancel(self) -> None:
        """Patch `spec.cancel`."""
        raw = self.job()
        raw["spec"]["cancel"] = True
        self._put(TRAINING_JOBS, raw)

    def act_as_user(self) -> None:
        """Do what is due at this turn."""
        if self.turns == self.cancel_at:
            self.cancel()

    def delete_job(self) -> None:
        """Delete the TrainingJob; the garbage collector stays away."""
        self.cluster.remove(TRAINING_JOBS, NAMESPACE, JOB)

    def kill_pods(self) -> None:
        """Delete by force whatever may run."""
        for name in self.alive():
            self.cluster.remove(PODS, NAMESPACE, name)

    def collect_garbage(self) -> None:
        """Delete the pods of deleted TrainingJobs, and end a foreground deletion."""
        job = self.cluster.read(TRAINING_JOBS, NAMESPACE, JOB)
        is_leaving = job is not None and "deletionTimestamp" in job["metadata"]
        owner = job["metadata"]["uid"] if job is not None and not is_leaving else ""
        for pod in self.pods():
            if owner_of(pod) == owner:
                continue
            if is_alive(pod) and "nodeName" in pod["spec"]:
                pod["metadata"].setdefault("deletionTimestamp", format_timestamp(self._now))
                self._put(PODS, pod)
            else:
                self.cluster.remove(PODS, NAMESPACE, pod["metadata"]["name"])
        if (
            job is not None
            and is_leaving
            and not any(owner_of(pod) == job["metadata"]["uid"] for pod in self.pods())
        ):
            self.delete_job()

    def back_up(self) -> Backup:
        """Take a backup of etcd."""
        version = next(self.cluster._versions)
        objects, owned = deepcopy(self.cluster._objects), dict(self.cluster._owned)
        return Backup(version - version % VERSION_STEP, objects, owned, deepcopy(self._attempts))

    def restore(self, backup: Backup) -> None:
        """Set the whole server back, its versions included; no version is used twice."""
        self._restores += 1
        self.cluster._versions = count(backup.version + self._restores, VERSION_STEP)
        self.cluster._objects = deepcopy(backup.objects)
        self.cluster._owned = dict(backup.owned)
        self._attempts = deepcopy(backup.attempts)

    def job(self) -> Raw:
        raw = self.cluster.read(TRAINING_JOBS, NAMESPACE, JOB)
        assert raw is not None
        return raw

    def status(self) -> Raw:
        found: Raw = self.job()["status"]
        return found

    def is_finished(self) -> bool:
        return any(
            c["type"] == "Finished" and c["status"] == "True"
            for c in self.status().get("conditions", [])
        )

    def alive(self) -> list[str]:
        """Pods in which a process may run, or will."""
        return [pod["metadata"]["name"] for pod in self.pods() if is_alive(pod)]

    def pods(self) -> list[Raw]:
        """Pods of TrainingJobs."""
        return [p for p in self.cluster.read_all(PODS) if p["metadata"].get("ownerReferences")]

    def check(self) -> None:
        """What must hold whenever there is one more pod."""
        alive: set[str] = set()
        for pod in self.pods():
            uid, attempt = owner_of(pod), attempt_of(pod)
            seen = self._attempts.setdefault(uid, [])
            if attempt not in seen:
                # After a restore the operator may know of attempts that the server does not.
                is_next = attempt == len(seen) + 1 or self._restores
                assert is_next, (uid, seen, attempt)
                seen.append(attempt)
            if is_alive(pod):
                assert uid not in alive, f"two trainers of {uid}: {self.alive()}"
                alive.add(uid)

    def check_deletion(self, name: str, uid: str) -> None:
        """The operator stops no trainer that has a reason to run."""
        job = self.cluster.read(TRAINING_JOBS, NAMESPACE, JOB)
        pod = self.cluster.read(PODS, NAMESPACE, name)
        if job is None or pod is None or pod["metadata"]["uid"] != uid or not is_alive(pod):
            return
        if owner_of(pod) != job["metadata"]["uid"] or "deletionTimestamp" in job["metadata"]:
            return
        is_over = job["spec"].get("cancel") or self.is_finished()
        is_superseded = attempt_of(pod) < job["status"].get("attempt", 0)
        states = [c["state"] for c in pod.get("status", {}).get("containerStatuses", [])]
        assert is_over or is_superseded or any("terminated" in state for state in states), name

    def obey_rules(self, patch: Raw) -> None:
        """The CRD's transition rules, as `ktrdr_api.crd_rules` has them."""
        current = self.cluster.read(TRAINING_JOBS, NAMESPACE, patch["metadata"]["name"])
        before, after = (current or {}).get("status", {}), patch["status"]
        ended = {c["type"] for c in before.get("conditions", []) if c["status"] == "True"}
        ends = {c["type"] for c in after.get("conditions", []) if c["status"] == "True"}
        version = patch["metadata"]["resourceVersion"]
        same = current is not None and version == current["metadata"]["resourceVersion"]
        reverted = (ended & set(TERMINAL)) - ends
        if same and (after.get("attempt", 0) < before.get("attempt", 0) or reverted):
            raise Invalid(422, "Invalid", "status: may not be taken back")

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._now += timedelta(seconds=seconds)

    def step(self) -> None:
        """The kubelet does one thing with every pod, and time passes."""
        self.turns += 1
        for pod in self.pods():
            self._step_pod(pod)
        self.wait(ROUND_SECONDS)

    def _step_pod(self, pod: Raw) -> None:
        status = pod.setdefault("status", {})
        if status.get("phase") in ("Succeeded", "Failed"):
            return
        if "deletionTimestamp" in pod["metadata"]:
            self.cluster.remove(PODS, NAMESPACE, pod["metadata"]["name"])
        elif "nodeName" not in pod["spec"]:
            pod["spec"]["nodeName"] = "node-1"
            status["phase"] = "Pending"
            if self.script.get(attempt_of(pod)) == "reject":
                status.update(phase="Failed", reason="OutOfcpu", message="Pod was rejected")
            self._put(PODS, pod)
        elif status["phase"] == "Pending":
            status["phase"] = "Running"
            self._set_state(pod, {"running": {"startedAt": format_timestamp(self._now)}})
        else:
            self._train(pod)

    def _train(self, pod: Raw) -> None:
        attempt = attempt_of(pod)
        uid = pod["metadata"]["ownerReferences"][0]["uid"]
        raw = self.cluster.read(TRAINING_JOBS, NAMESPACE, JOB)
        if raw is not None and raw["metadata"]["uid"] == uid:
            if (raw["status"].get("progress") or {}).get("attempt") != attempt:
                raw["status"]["progress"] = progress(attempt)
                self._put(TRAINING_JOBS, raw)
                return
            if raw["spec"].get("cancel"):
                word = termination_message(
                    Outcome.CANCELLED,
                    jobUid=uid,
                    attempt=attempt,
                    epoch=4,
                    batch=17,
                    checkpoint=CHECKPOINT,
                )
                self._end(pod, 10, word)
                return
        self._act(pod, self.script.get(attempt, "succeed"), uid, attempt)

    def _act(self, pod: Raw, act: str, uid: str, attempt: int) -> None:
        match act:
            case "succeed":
                word = termination_message(
                    jobUid=uid, attempt=attempt, epochsCompleted=50, artifact=MODEL
                )
                self._end(pod, 0, word)
            case "fail":
                self._end(pod, 1, "ValueError: x")
            case "bad":
                word = termination_message(
                    Outcome.FAILED, jobUid=uid, attempt=attempt, reason="InvalidStrategy"
                )
                self._end(pod, 2, word)
            case "oom":
                self._end(pod, 137, "", reason="OOMKilled")
            case "disrupt":
                self._end(pod, 143, "")
            case "vanish":
                self.cluster.remove(PODS, NAMESPACE, pod["metadata"]["name"])
            case "stay":
                pass
            case _:
                raise AssertionError(act)

    def _end(self, pod: Raw, exit_code: int, message: str, reason: str = "") -> None:
        terminated = {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "message": message,
            "startedAt": format_timestamp(self._now),
            "finishedAt": format_timestamp(self._now),
        }
        pod["status"]["phase"] = "Succeeded" if exit_code == 0 else "Failed"
        self._set_state(pod, {"terminated": terminated})

    def _set_state(self, pod: Raw, state: Raw) -> None:
        pod["status"]["containerStatuses"] = [{"name": names.TRAINER_CONTAINER, "state": state}]
        self._put(PODS, pod)

    def _put(self, resource: Resource, raw: Raw) -> None:
        raw["metadata"].pop("resourceVersion", None)
        self.cluster.put(resource, raw)

    def end(self) -> tuple[Any, ...]:
        """How it ended: what must be the same whatever happened on the way."""
        status = self.status()
        failure = status.get("failure", {})
        return (
            status["phase"],
            status["reason"],
            status["message"],
            status["attempt"],
            status.get("retries", 0),
            failure.get("attempt"),
            tuple(self.attempts),
            self.alive(),
        )


def is_alive(pod: Raw) -> bool:
    """Whether a process may run in a pod, or will."""
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


def owner_of(pod: Raw) -> str:
    """UID of the TrainingJob of a pod."""
    uid: str = pod["metadata"]["ownerReferences"][0]["uid"]
    return uid


def attempt_of(pod: Raw) -> int:
    """Attempt of a pod, from its name: labels can be removed."""
    return int(pod["metadata"]["name"].split("-")[-2])


async def run_to_end(simulation: SimulatedCluster, *operators: Operator) -> None:
    """Let the operators and the kubelet take turns until the job has ended."""
    for _ in range(MAX_ROUNDS):
        simulation.act_as_user()
        for operator in operators:
            operator.relist()
        await asyncio.gather(*(operator.work() for operator in operators))
        if simulation.is_finished() and not simulation.alive():
            return
        simulation.step()
    raise AssertionError(f"not finished: {simulation.status()}")


async def yield_often(random: Random) -> None:
    """Let others run a few times."""
    for _ in range(random.randrange(4)):
        await asyncio.sleep(0)
