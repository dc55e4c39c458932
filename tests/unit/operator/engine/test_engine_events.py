"""Random histories: whatever arrives, when, and in which order, every TrainingJob ends well."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_builders import JOB, NAMESPACE, Raw
from ktrdr_api import names
from ktrdr_api.conditions import TERMINAL
from ktrdr_client.cluster import PODS, TRAINING_JOBS, Resource
from ktrdr_operator.handlers import Handlers
from ktrdr_operator.intake import Intake
from ktrdr_operator.observe import FRESH_SECONDS
from ktrdr_operator.store import KnownJob, KnownPod
from simulated_cluster import (
    KEY,
    MAX_ROUNDS,
    Backup,
    Operator,
    SimulatedCluster,
    is_alive,
    run_to_end,
)

Event = dict[str, Any]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktrdr_operator")


class Watch:
    """What a perfect watch would have said; the test decides what of it arrives, and when."""

    def __init__(self, simulation: SimulatedCluster) -> None:
        self.simulation = simulation
        self.events: list[Event] = []
        self._seen: dict[str, Raw] = {}

    def look(self) -> None:
        """Note what has changed since the last look."""
        cluster = self.simulation.cluster
        found = [*cluster.read_all(TRAINING_JOBS), *cluster.read_all(PODS)]
        now = {raw["metadata"]["uid"]: raw for raw in found}
        for uid, raw in now.items():
            if uid not in self._seen:
                self.events.append({"type": "ADDED", "object": raw})
            elif raw != self._seen[uid]:
                self.events.append({"type": "MODIFIED", "object": raw})
        for uid in self._seen.keys() - now.keys():
            self.events.append({"type": "DELETED", "object": self._seen[uid]})
        self._seen = now


def listen(operator: Operator) -> Handlers:
    """The operator's own event handlers."""
    return Handlers(Intake(operator.store, operator.queue))


async def deliver(handlers: Handlers, event: Event) -> None:
    is_pod = "kind" not in event["object"] or event["object"]["kind"] != names.KIND
    await (handlers.on_pod if is_pod else handlers.on_job)(event)  # type: ignore[arg-type] # kopf's TypedDict


actions = st.lists(
    st.one_of(
        st.sampled_from(["work", "step", "relist", "restart", "kill pod", "cancel"]),
        st.integers(min_value=0, max_value=40),  # an event, perhaps again, perhaps out of order
    ),
    max_size=40,
)


async def survive(steps: list[str | int], script: dict[int, str]) -> SimulatedCluster:
    """Live through the steps, then through a quiet time with full lists."""
    simulation = SimulatedCluster(script)
    simulation.submit()
    watch, operator = Watch(simulation), Operator(simulation)
    handlers = listen(operator)
    for step in steps:
        watch.look()
        if step == "restart":
            operator = Operator(simulation)
            handlers = listen(operator)
        elif isinstance(step, int):
            for event in watch.events[step : step + 1]:
                await deliver(handlers, event)
        elif step == "work":
            await operator.work()
        else:
            {
                "step": simulation.step,
                "relist": operator.relist,
                "kill pod": simulation.kill_pods,
                "cancel": simulation.cancel,
            }[step]()
    await run_to_end(simulation, operator)
    return simulation


@settings(max_examples=120, deadline=None)
@given(actions, st.sampled_from(["succeed", "fail"]))
def test_events_lost_repeated_or_out_of_order_do_not_change_the_outcome(
    steps: list[str | int], first: str
) -> None:
    simulation = asyncio.run(survive(steps, {1: first}))
    status = simulation.status()
    cancelled = simulation.job()["spec"].get("cancel", False)
    want = ("Cancelled", "Succeeded") if cancelled else ("Succeeded",)
    assert status["phase"] in want
    assert status.get("retries", 0) <= (first == "fail")
    # A first attempt whose pod was deleted before anybody saw it is not on record.
    assert status["attempt"] in (len(simulation.attempts), len(simulation.attempts) - 1)
    assert status["attempt"] == len(simulation.attempts) or simulation.attempts == [1]
    assert simulation.attempts == list(range(1, len(simulation.attempts) + 1))
    assert simulation.alive() == []


async def test_events_in_order_need_no_list() -> None:
    simulation = SimulatedCluster({1: "fail"})
    simulation.submit()
    watch, operator = Watch(simulation), Operator(simulation)
    handlers, delivered = listen(operator), 0
    for _ in range(60):
        watch.look()
        for event in watch.events[delivered:]:
            await deliver(handlers, event)
        delivered = len(watch.events)
        await operator.work()
        if simulation.is_finished():
            break
        simulation.step()
    assert simulation.end()[:2] == ("Succeeded", "Completed")
    assert simulation.attempts == [1, 2]


@pytest.mark.parametrize("cancel", [False, True])
async def test_events_of_a_deleted_job_restore_it_until_the_next_list_at_most(cancel: bool) -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit(cancel=cancel)
    watch, operator = Watch(simulation), Operator(simulation)
    handlers = listen(operator)
    operator.relist()
    await operator.work()
    watch.look()
    simulation.delete_job()
    watch.look()
    for event in reversed(watch.events):
        await deliver(handlers, event)
    await operator.work()
    operator.relist()
    await operator.work()
    simulation.step()
    assert simulation.alive() == []
    assert simulation.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is None
    assert KEY not in operator.store.jobs


def is_job(event: Event) -> bool:
    return bool(event["object"].get("kind") == names.KIND)


class LateAnswer(NamedTuple):
    """A live read whose answer is under way."""

    turn: int
    name: str
    """Of a pod; empty for the TrainingJob."""
    raw: Raw | None
    before: KnownJob | KnownPod | None


STORM_LIMIT: Final = 5
"""Reconciles of an unchanged world after which nothing may be written any more."""
LATE_TURNS: Final = 2
"""A request takes 15 s at most; a turn of the world is 7 s."""


class History:
    """One namespace in which everything happens that happens in a cluster.

    Events come in kopf's order: those of one UID in order, those of different UIDs in any. A new
    process, and one whose etcd was restored, hears of nothing before it has listed. Beside it works
    another operator, which only knows what its last list said.
    """

    def __init__(self, script: dict[int, str]) -> None:
        self.simulation = SimulatedCluster(script)
        self.simulation.submit()
        self.operator = Operator(self.simulation)
        self.behind, self.listed_behind = Operator(self.simulation), 0.0
        self.pending: dict[str, list[Event]] = {}
        self.answers: list[LateAnswer] = []
        self.backups: list[Backup] = []
        self.is_watching = False
        self.is_label_removed = False
        self._seen: dict[str, Raw] = {}
        self._deleted: dict[str, str] = {}
        self._best: dict[str, tuple[int, frozenset[str]]] = {}
        self.note_version_of_deletions()

    async def act(self, action: str, number: int) -> None:
        """Let one thing happen, and check what must hold at any time."""
        if action == "turn":
            self.backups.append(self.simulation.back_up())
            self.deliver_all()
            await self.operator.work()
            self.simulation.step()
        elif action == "work":
            await self.operator.work()
        elif action == "work behind":
            if self.simulation.monotonic() - self.listed_behind > FRESH_SECONDS:
                await self.behind.work()
        else:
            self.actions(number)[action]()
        self.look()
        self.check()

    def actions(self, number: int) -> dict[str, Callable[[], None]]:
        """What can happen besides reconciles."""
        return {
            "step": self.simulation.step,
            "event": partial(self.deliver_one, number),
            "event of": partial(self.deliver_of, number),
            "list": self.relist,
            "restart": self.restart,
            "list behind": self.list_behind,
            "send get": partial(self.send_get, number),
            "answer": self.answer,
            "cancel": partial(self.edit, cancel=True),
            "narrow schema": partial(self.edit, trainer={"imagePullPolicy": "Sometimes"}),
            "delete job": self.delete_job,
            "delete in foreground": self.delete_in_foreground,
            "create job": self.create_job,
            "create job again": self.create_job_again,
            "collect garbage": self.simulation.collect_garbage,
            "kill pods": self.simulation.kill_pods,
            "remove label": self.remove_label,
            "restore": partial(self.restore, number),
        }

    # The watch.

    def look(self) -> None:
        """Note what a watch by label would say about the changes since the last look."""
        if not self.is_watching:
            return
        now = self.watched()
        for uid, raw in now.items():
            if uid not in self._seen:
                self.note("ADDED", raw)
            elif raw != self._seen[uid]:
                self.note("MODIFIED", raw)
        for uid in self._seen.keys() - now.keys():
            self.note("DELETED", self.last_state(uid))
        self._seen = now

    def look_anew(self) -> None:
        self._seen = self.watched()

    def break_watches(self) -> None:
        """Events and answers that were under way are lost."""
        self.pending, self.answers, self.is_watching = {}, [], False

    def watched(self) -> dict[str, Raw]:
        """All TrainingJobs, and the pods that have the label, by UID."""
        pods = [p for p in self.simulation.pods() if names.LABEL_JOB in p["metadata"]["labels"]]
        found = [*self.simulation.cluster.read_all(TRAINING_JOBS), *pods]
        return {raw["metadata"]["uid"]: raw for raw in found}

    def last_state(self, uid: str) -> Raw:
        """With the version of the deletion, or of the change that took the label away."""
        raw = self._seen[uid]
        alive = {pod["metadata"]["uid"]: pod for pod in self.simulation.pods()}
        version = self._deleted.get(uid) or alive[uid]["metadata"]["resourceVersion"]
        return {**raw, "metadata": {**raw["metadata"], "resourceVersion": version}}

    def note_version_of_deletions(self) -> None:
        """A deletion has a version of its own, the server's latest at that moment."""
        cluster = self.simulation.cluster
        remove = cluster.remove

        def noted(resource: Resource, namespace: str | None, name: str) -> None:
            raw = cluster.read(resource, namespace, name)
            assert raw is not None
            remove(resource, namespace, name)
            self._deleted[raw["metadata"]["uid"]] = str(next(cluster._versions))

        cluster.remove = noted  # type: ignore[method-assign] # a fake that does not count them

    def note(self, kind: str, raw: Raw) -> None:
        self.pending.setdefault(raw["metadata"]["uid"], []).append({"type": kind, "object": raw})

    def deliver_one(self, number: int) -> None:
        """The next event of one of the UIDs."""
        if self.pending:
            uid = sorted(self.pending)[number % len(self.pending)]
            self.deliver(self.pending[uid].pop(0))
            self.pending = {uid: events for uid, events in self.pending.items() if events}

    def deliver_of(self, number: int) -> None:
        """The next event of the nth TrainingJob that there was; of a pod for 0."""
        jobs = sorted(uid for uid, events in self.pending.items() if is_job(events[0]))
        pods = sorted(self.pending.keys() - set(jobs))
        uid = pods[0] if number == 0 else jobs[number - 1]
        self.deliver(self.pending[uid].pop(0))
        self.pending = {uid: events for uid, events in self.pending.items() if events}

    def deliver_all(self) -> None:
        for events in self.pending.values():
            for event in events:
                self.deliver(event)
        self.pending = {}

    def deliver(self, event: Event) -> None:
        intake = Intake(self.operator.store, self.operator.queue)
        (intake.take_job if is_job(event) else intake.take_pod)(event["type"], event["object"])

    def relist(self) -> None:
        """A full list; the watches begin there if they are broken."""
        # A list takes longer than a read: reads of what was unknown have been answered before.
        self.answers = [late for late in self.answers if late.before is not None]
        self.operator.relist()
        self.check_store()
        if not self.is_watching:
            self.is_watching = True
            self.look_anew()

    def restart(self) -> None:
        """A new process, which has no state and no requests under way."""
        self.operator = Operator(self.simulation)
        self.break_watches()

    def list_behind(self) -> None:
        """It acts later, on what is known now; what is younger it takes for the present state."""
        self.behind.relist()
        self.listed_behind = self.simulation.monotonic()

    def send_get(self, number: int) -> None:
        """Read the TrainingJob or one of its pods; the answer comes later."""
        store, cluster = self.operator.store, self.simulation.cluster
        if number % 2:
            raw = cluster.read(TRAINING_JOBS, NAMESPACE, JOB)
            self.answers.append(LateAnswer(self.simulation.turns, "", raw, store.jobs.get(KEY)))
            return
        name = names.pod_name(JOB, 1 + number // 2 % 3)
        raw = cluster.read(PODS, NAMESPACE, name)
        self.answers.append(LateAnswer(self.simulation.turns, name, raw, store.pod(KEY, name)))

    def answer(self) -> None:
        """The answer to the oldest read arrives, unless it has timed out."""
        while self.answers:
            late = self.answers.pop(0)
            if self.simulation.turns - late.turn > LATE_TURNS:
                continue
            if late.name:
                assert not isinstance(late.before, KnownJob)
                self.operator.store.put_live_pod(KEY, late.name, late.raw, late.before)
            else:
                assert not isinstance(late.before, KnownPod)
                self.operator.store.put_live_job(KEY, late.raw, late.before)
            return

    # Users, the garbage collector, and somebody with a backup.

    def present(self) -> Raw | None:
        return self.simulation.cluster.read(TRAINING_JOBS, NAMESPACE, JOB)

    def edit(self, **spec: Any) -> None:
        raw = self.present()
        if raw is not None:
            raw["spec"].update(spec)
            self.simulation._put(TRAINING_JOBS, raw)

    def delete_job(self) -> None:
        if self.present() is not None:
            self.simulation.delete_job()

    def delete_in_foreground(self) -> None:
        raw = self.present()
        if raw is not None:
            raw["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
            raw["metadata"]["finalizers"] = ["foregroundDeletion"]
            self.simulation._put(TRAINING_JOBS, raw)

    def create_job(self) -> None:
        if self.present() is None:
            self.simulation.submit()

    def remove_label(self) -> None:
        """Not in a world that was restored, and no restore after it: see `restore`."""
        if not self.simulation._restores:
            self.is_label_removed = True
            for pod in self.simulation.pods():
                pod["metadata"]["labels"].pop(names.LABEL_JOB, None)
                self.simulation._put(PODS, pod)

    def create_job_again(self) -> None:
        self.delete_job()
        self.look()
        self.create_job()

    def restore(self, turns: int) -> None:
        """To what etcd was some turns ago.

        A pod without its label whose version falls is not believed to exist: the list does not
        have it, and an answer with a lower version looks like one from before its deletion.
        """
        if self.backups and not self.is_label_removed:
            self.backups = self.backups[: max(len(self.backups) - turns, 1)]
            self.simulation.restore(self.backups[-1])
            self.break_watches()
            self._best, self._deleted = {}, {}

    # What must hold.

    def check(self) -> None:
        """No second trainer; attempts do not fall and ends do not revert, except by a restore."""
        self.simulation.check()
        raw = self.present()
        if raw is None:
            return
        status = raw["status"]
        conditions = status.get("conditions", [])
        ends = frozenset(c["type"] for c in conditions if c["status"] == "True") & set(TERMINAL)
        attempt = status.get("attempt", 0)
        before = self._best.get(raw["metadata"]["uid"], (0, frozenset()))
        assert attempt >= before[0]
        assert ends >= before[1]
        self._best[raw["metadata"]["uid"]] = (attempt, ends)

    def check_events(self) -> None:
        """Events alone, without a list, bring the store up to date, whatever overtook them."""
        if self.is_watching:
            self.look()
            self.deliver_all()
            while self.answers:
                self.answer()
            self.check_store()

    def check_store(self) -> None:
        """What is known is what is there."""
        raw, store = self.present(), self.operator.store
        known = store.jobs.get(KEY)
        want = None if raw is None else (raw["metadata"]["uid"], version_of(raw))
        assert (None if known is None else (known.uid, known.version)) == want
        pods = {p["metadata"]["name"]: version_of(p) for p in self.watched_pods()}
        there = {name: store.pod(KEY, name) for name in pods}
        assert {name: found and found.version for name, found in there.items()} == pods
        views = [v for v in store.pods_of(KEY) if not (v.gone or v.ended or v.unlabelled)]
        assert {view.name for view in views} <= set(pods)

    def watched_pods(self) -> list[Raw]:
        """Those that the store keeps: finished ones only until the job has finished."""
        found = [raw for raw in self.watched().values() if raw.get("kind") != names.KIND]
        return [pod for pod in found if is_alive(pod)]

    async def settle(self) -> None:
        """A quiet time with complete lists: everything comes to its end, and then to rest."""
        self.check_events()
        for _ in range(MAX_ROUNDS):
            self.relist()
            await self.work_until_quiet()
            if self.is_settled():
                break
            self.simulation.step()
            self.simulation.collect_garbage()
            self.check()
        assert self.is_settled(), (self.present(), self.simulation.alive())
        for operator in (self.operator, Operator(self.simulation)):
            operator.relist()
            before = self.versions()
            await operator.work()
            assert self.versions() == before

    async def work_until_quiet(self) -> None:
        """No storm: a world in which nothing else moves needs few writes."""
        for _ in range(STORM_LIMIT):
            before = self.versions()
            await self.operator.work()
            self.look()
            self.deliver_all()
            if self.versions() == before:
                return
        raise AssertionError(f"status is written again and again: {self.present()}")

    def versions(self) -> dict[str, int]:
        """What changes with every write that changes something."""
        found = [
            *self.simulation.cluster.read_all(TRAINING_JOBS),
            *self.simulation.cluster.read_all(PODS),
        ]
        return {raw["metadata"]["uid"]: version_of(raw) for raw in found}

    def is_settled(self) -> bool:
        """Finished or deleted, and no pod runs."""
        raw = self.present()
        is_over = raw is None or self.simulation.is_finished()
        return is_over and not any(is_alive(pod) for pod in self.simulation.pods())


def version_of(raw: Raw) -> int:
    return int(raw["metadata"]["resourceVersion"])


ORDINARY: Final = ("turn", "turn", "turn", "event", "event", "work", "step", "list")
RARE: Final = (
    "restart",
    "list behind",
    "work behind",
    "send get",
    "answer",
    "cancel",
    "narrow schema",
    "delete job",
    "delete in foreground",
    "create job",
    "create job again",
    "create job again",
    "collect garbage",
    "kill pods",
    "remove label",
    "remove label",
    "restore",
    "restore",
)
histories = st.lists(
    st.tuples(st.sampled_from((*ORDINARY, *ORDINARY, *RARE)), st.integers(0, 5)), max_size=40
)
SCRIPTS: Final[tuple[dict[int, str], ...]] = (
    {},
    {1: "fail"},
    {1: "vanish"},
    {1: "disrupt", 2: "fail"},
    {1: "reject", 2: "vanish"},
    {1: "stay"},
)
"""What trainers do; the last one only ends where somebody ends it, and then in the quiet time."""


async def run_history(steps: list[tuple[str, int]], script: dict[int, str]) -> History:
    history = History(dict(script))
    history.relist()
    for action, number in steps:
        await history.act(action, number)
    history.simulation.script = {
        attempt: act for attempt, act in history.simulation.script.items() if act != "stay"
    }
    await history.settle()
    return history


@settings(max_examples=150, deadline=None)
@given(histories, st.sampled_from(SCRIPTS))
def test_random_histories_end_with_one_outcome_and_never_two_trainers(
    steps: list[tuple[str, int]], script: dict[int, str]
) -> None:
    history = asyncio.run(run_history(steps, script))
    raw = history.present()
    if raw is not None:
        wanted = {"Succeeded"}
        wanted |= {"Cancelled"} if raw["spec"].get("cancel") else set()
        wanted |= {"Failed"} if "trainer" in raw["spec"] else set()
        assert raw["status"]["phase"] in wanted


T, E = ("turn", 0), ("event", 0)
NAMED: Final[dict[str, tuple[list[tuple[str, int]], dict[int, str], tuple[Any, ...]]]] = {
    "created again, events in order": (
        [T, T, T, ("create job again", 0), T],
        {},
        ("Succeeded", 1),
    ),
    # MODIFIED of the second one, then MODIFIED and DELETED of the first: per UID in order.
    "created again, events of the first one come last": (
        [T, T, T, ("create job again", 0), ("event of", 2), ("event of", 1), ("event of", 1)],
        {},
        ("Succeeded", 1),
    ),
    "created again twice, the one in between is known last": (
        [("create job again", 0), ("create job again", 0), ("event of", 3), ("event of", 2)],
        {},
        ("Succeeded", 1),
    ),
    "created again, pod of the second one is known first": (
        [
            *[("delete job", 0), E, ("create job", 0)],
            *[("list behind", 0), *[("step", 0)] * 5, ("work behind", 0)],
            *[("event of", 0), ("work", 0)],
        ],
        {},
        ("Succeeded", 1),
    ),
    "created again, pods left to the operator": (
        [T, T, T, ("create job again", 0), ("list", 0), ("work", 0), ("restart", 0), T, T],
        {},
        ("Succeeded", 1),
    ),
    "created again three times in a row": (
        [T, *[("create job again", 0)] * 3, T, ("create job again", 0), E, T],
        {},
        ("Succeeded", 1),
    ),
    "deleted in the foreground, collector late": (
        [T, T, T, ("delete in foreground", 0), T, T, ("create job", 0), T],
        {},
        (),
    ),
    "label removed while it runs": (
        [T, T, T, T, ("remove label", 0), T, T, T],
        {1: "stay"},
        ("Succeeded", 1),
    ),
    "label removed before it runs": (
        [T, ("remove label", 0), T, T, ("restart", 0), ("list", 0), T, T],
        {},
        ("Succeeded", 1),
    ),
    "etcd restored to before the pod": (
        [T, T, T, T, T, ("restore", 4), ("work", 0), T, T],
        {1: "stay"},
        ("Succeeded", 2),  # the operator knows that attempt 1 had begun
    ),
    "etcd restored to a running attempt": (
        [T, T, T, T, T, T, T, T, ("restore", 3), ("work", 0), ("list", 0), T],
        {1: "fail"},
        ("Succeeded", 2),
    ),
    "etcd restored, operator restarted": (
        [T, T, T, T, T, T, T, T, ("restore", 5), ("restart", 0), ("list", 0), T],
        {1: "fail"},
        ("Succeeded", 2),
    ),
    "schema narrowed before the start": (
        [("narrow schema", 0), T, T],
        {},
        ("Failed", 0),
    ),
    "schema narrowed between two attempts": (
        [*[T] * 5, ("narrow schema", 0), T, T],
        {1: "fail"},
        ("Failed", 1),
    ),
    "another operator knows only the new job": (
        [("list behind", 0), *[T] * 8, ("work behind", 0), T],
        {1: "vanish", 2: "stay"},
        ("Succeeded", 2),
    ),
    "schema narrowed while it runs": (
        [T, T, T, T, ("narrow schema", 0), T, T],
        {1: "stay"},
        ("Succeeded", 1),
    ),
    "schema narrowed, then the attempt fails": (
        [T, T, T, T, ("narrow schema", 0), T, T],
        {1: "fail"},
        ("Failed", 1),
    ),
    "schema narrowed after the end": (
        [*[T] * 8, ("narrow schema", 0), T, T],
        {},
        ("Succeeded", 1),
    ),
    "answer about the pod comes after its end": (
        [T, T, T, T, ("send get", 0), T, T, ("answer", 0), T],
        {1: "fail"},
        ("Succeeded", 2),
    ),
    "answer about the job comes after its deletion": (
        [T, ("send get", 1), ("delete job", 0), T, ("answer", 0)],
        {},
        (),
    ),
    "answer about the job comes after its successor": (
        [T, ("send get", 1), ("create job again", 0), ("answer", 0), E, E, ("work", 0), T],
        {},
        ("Succeeded", 1),
    ),
}


@pytest.mark.parametrize(("steps", "script", "want"), NAMED.values(), ids=NAMED)
async def test_known_history_ends_with_one_outcome_and_never_two_trainers(
    steps: list[tuple[str, int]], script: dict[int, str], want: tuple[Any, ...]
) -> None:
    history = await run_history(steps, script)
    raw = history.present()
    found = () if raw is None else (raw["status"]["phase"], raw["status"]["attempt"])
    assert found == want


async def test_history_after_a_restore_needs_no_list_to_write_again() -> None:
    """Every write names a version that the server does not have any more."""
    history = History({1: "stay"})
    history.relist()
    for _ in range(6):
        await history.act("turn", 0)
    assert history.simulation.status()["phase"] == "Running"
    await history.act("restore", 1)
    history.operator.store.report_interval_seconds = 30
    for _ in range(3):
        await history.act("work", 0)
    assert history.simulation.status()["reportPeriodSeconds"] == 30
