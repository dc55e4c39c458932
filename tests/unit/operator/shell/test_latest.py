"""Which of two reports is newer: the rules one by one, then all histories that hypothesis finds."""

from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktrdr_operator.latest import DELETION_KEPT_SECONDS, Latest


@dataclass(frozen=True)
class Record:
    uid: str
    version: int


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def latest(clock: Clock) -> Latest[str, Record]:
    return Latest(clock)


def everything(_: str) -> bool:
    return True


def test_latest_late_event_of_an_earlier_uid_keeps_the_successor(
    latest: Latest[str, Record],
) -> None:
    latest.put("j", Record("u2", 7))
    assert not latest.put("j", Record("u1", 3))
    assert not latest.drop("j", "u1", 4)
    assert latest.records == {"j": Record("u2", 7)}


def test_latest_deletion_of_a_successor_removes_its_predecessor_too(
    latest: Latest[str, Record],
) -> None:
    latest.put("j", Record("u1", 3))
    assert latest.drop("j", "u2", 9)
    assert latest.records == {}
    assert latest.is_deleted("u1")
    assert not latest.put("j", Record("u1", 4))


def test_latest_object_that_takes_a_name_says_that_the_earlier_one_is_deleted(
    latest: Latest[str, Record],
) -> None:
    latest.put("j", Record("u1", 3))
    assert latest.put("j", Record("u2", 9))
    assert latest.is_deleted("u1")


def test_latest_events_older_than_the_last_deletion_of_a_name_are_no_news(
    latest: Latest[str, Record],
) -> None:
    assert latest.drop("j", "u3", 9)
    assert not latest.drop("j", "u1", 4)
    assert latest.drop("j", "u3", 9)
    assert not latest.put("j", Record("u2", 6))
    assert latest.put("j", Record("u4", 10))


def test_latest_deleted_uid_does_not_return_by_an_event(latest: Latest[str, Record]) -> None:
    latest.put("j", Record("u1", 3))
    latest.drop("j", "u1")
    assert latest.is_deleted("u1")
    assert not latest.put("j", Record("u1", 9))
    assert latest.put("j", Record("u2", 10))


def test_latest_live_answer_that_is_late_neither_drops_nor_replaces_the_successor(
    latest: Latest[str, Record],
) -> None:
    before = latest.records.get("j")
    latest.put("j", Record("u2", 7))
    latest.put_live("j", None, before)
    latest.put_live("j", Record("u1", 3), before)
    assert latest.records == {"j": Record("u2", 7)}
    assert not latest.is_deleted("u2")
    assert latest.put("j", Record("u2", 8))


def test_latest_live_answer_may_lower_the_version(latest: Latest[str, Record]) -> None:
    latest.put("j", Record("u1", 1000))
    latest.put_live("j", Record("u1", 10), latest.records["j"])
    assert latest.put("j", Record("u1", 11))


def test_latest_live_answer_of_none_removes_what_was_known(latest: Latest[str, Record]) -> None:
    latest.put("j", Record("u1", 3))
    latest.put_live("j", None, latest.records["j"])
    assert latest.records == {}
    assert latest.is_deleted("u1")


def test_latest_second_live_answer_that_is_older_does_not_bring_it_back(
    latest: Latest[str, Record],
) -> None:
    latest.put("j", Record("u1", 3))
    before = latest.records["j"]
    latest.put_live("j", None, before)
    latest.put_live("j", Record("u1", 3), before)
    assert latest.records == {}


def test_latest_live_answer_does_not_bring_back_what_came_and_went(
    latest: Latest[str, Record],
) -> None:
    before = latest.records.get("j")
    latest.put("j", Record("u1", 3))
    latest.drop("j", "u1", 4)
    latest.put_live("j", Record("u1", 3), before)
    assert latest.records == {}


def test_latest_live_answer_keeps_an_object_that_only_left_the_watch(
    latest: Latest[str, Record],
) -> None:
    latest.put("j", Record("u1", 3))
    latest.drop("j", "u1", 4)  # its label was removed: DELETED, with the version that it has now
    latest.put_live("j", Record("u1", 4), None)
    assert latest.records == {"j": Record("u1", 4)}
    assert not latest.is_deleted("u1")


def test_latest_list_replaces_all_but_what_has_changed_since_it_began(
    latest: Latest[str, Record],
) -> None:
    for name in ("lowered", "changed", "deleted", "missing", "uncovered"):
        latest.put(name, Record(name, 1000))
    listing = latest.begin_list()
    latest.put("changed", Record("changed", 1001))
    latest.drop("deleted", "deleted", 1002)
    latest.drop("came and went", "came and went", 1003)
    latest.put("new", Record("new", 1004))
    for name in ("lowered", "changed", "deleted", "came and went"):
        latest.put_listed(listing, name, Record(name, 500))
    assert latest.finish_list(listing, lambda name: name != "uncovered") == ["missing"]
    assert {name: record.version for name, record in latest.records.items()} == {
        "lowered": 500,
        "changed": 1001,
        "uncovered": 1000,
        "new": 1004,
    }


def test_latest_list_brings_back_a_uid_that_was_thought_deleted(
    latest: Latest[str, Record],
) -> None:
    latest.put("j", Record("u1", 1000))
    latest.drop("j", "u1", 1001)
    listing = latest.begin_list()
    assert latest.put_listed(listing, "j", Record("u1", 5))
    latest.finish_list(listing, everything)
    assert not latest.is_deleted("u1")
    assert latest.put("j", Record("u1", 6))


def test_latest_deletions_are_forgotten_after_a_while(
    latest: Latest[str, Record], clock: Clock
) -> None:
    latest.drop("j", "u1", 4)
    clock.now = DELETION_KEPT_SECONDS
    latest.drop("k", "u2", 5)
    latest.finish_list(latest.begin_list(), everything)
    assert latest.is_deleted("u1")
    clock.now += 1
    latest.finish_list(latest.begin_list(), everything)
    assert (latest.is_deleted("u1"), latest.is_deleted("u2")) == (False, True)


def test_latest_reports_every_change_once() -> None:
    seen: list[tuple[str, Record | None, Record | None]] = []
    latest: Latest[str, Record] = Latest(Clock(), lambda *change: seen.append(change))
    one, two, three = Record("u1", 1), Record("u1", 2), Record("u2", 3)
    latest.put("j", one)
    latest.put("j", one)
    latest.put("j", two)
    latest.drop("j", "u1")
    latest.drop("j", "u1")
    latest.put("j", three)
    latest.forget("j")
    assert seen == [
        ("j", None, one),
        ("j", one, two),
        ("j", two, None),
        ("j", None, three),
        ("j", three, None),
    ]
    assert not latest.is_deleted("u2")


def test_latest_after_a_list_knows_names_that_were_deleted_at_higher_versions(
    latest: Latest[str, Record],
) -> None:
    latest.drop("j", "u1", 1000)
    latest.finish_list(latest.begin_list(), everything)  # etcd was restored
    assert latest.put("j", Record("u2", 10))


class Server:
    """What an API server has, and the events that it sends; one name, one version counter."""

    def __init__(self) -> None:
        self.version = 100
        self.uids = 0
        self.current: Record | None = None
        self.events: dict[str, list[tuple[str, Record]]] = {}
        """Those not delivered yet, by UID: in order per UID, across UIDs in any order."""

    def write(self) -> None:
        self.version += 1
        kind = "ADDED" if self.current is None else "MODIFIED"
        if self.current is None:
            self.uids += 1
            self.current = Record(f"u{self.uids}", self.version)
        self.current = Record(self.current.uid, self.version)
        self.events.setdefault(self.current.uid, []).append((kind, self.current))

    def delete(self) -> None:
        if self.current is None:
            return
        self.version += 1
        gone = Record(self.current.uid, self.version)
        self.events.setdefault(gone.uid, []).append(("DELETED", gone))
        self.current = None

    def restore(self) -> None:
        """Go back to a backup: lower versions, no events; the object is an older one, or none."""
        self.version -= 50
        self.events.clear()
        if self.current is not None:
            self.current = Record(self.current.uid, self.version)


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["write", "write", "delete", "send get", "begin list", "end list"]),
        st.tuples(st.just("event"), st.integers(0, 3)),
        st.tuples(st.just("get"), st.integers(0, 3)),
    ),
    max_size=40,
)


class Client:
    """A `Latest`, and the requests under way."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.latest: Latest[str, Record] = Latest(Clock())
        self.gets: list[tuple[Record | None, Record | None]] = []
        """Answer, and the record when the GET was sent."""
        self.lists: list[tuple[object, Record | None]] = []

    def do(self, step: str, which: int = 0) -> None:
        server = self.server
        if step == "write":
            server.write()
        elif step == "delete":
            server.delete()
        elif step == "send get":
            self.gets.append((server.current, self.latest.records.get("j")))
        elif step == "begin list":
            self.lists = [(self.latest.begin_list(), server.current)]
        elif step == "end list" and self.lists:
            self.end_list()
        elif step == "event":
            self.deliver(which)
        elif step == "get" and self.gets:
            self.latest.put_live("j", *self.gets.pop(which % len(self.gets)))

    def end_list(self) -> None:
        listing, found = self.lists.pop()
        if found is not None:
            self.latest.put_listed(listing, "j", found)  # type: ignore[arg-type] # a Listing
        self.latest.finish_list(listing, everything)  # type: ignore[arg-type] # a Listing

    def deliver(self, which: int) -> None:
        waiting = [uid for uid, events in self.server.events.items() if events]
        if not waiting:
            return
        kind, record = self.server.events[waiting[which % len(waiting)]].pop(0)
        if kind == "DELETED":
            self.latest.drop("j", record.uid, record.version)
        else:
            self.latest.put("j", record)

    def finish(self) -> None:
        """Deliver whatever is under way."""
        while self.gets:
            self.do("get")
        while self.lists:
            self.do("end list")
        while any(self.server.events.values()):
            self.deliver(0)

    def known(self) -> Record | None:
        return self.latest.records.get("j")


def follow(steps: list[str | tuple[str, int]]) -> Client:
    client = Client(Server())
    for step in steps:
        client.do(*((step,) if isinstance(step, str) else step))
        known = client.known()
        assert known is None or known.version <= client.server.version
    return client


@settings(max_examples=500, deadline=None)
@given(STEPS)
def test_latest_knows_the_truth_once_everything_has_arrived(
    steps: list[str | tuple[str, int]],
) -> None:
    client = follow(steps)
    client.finish()
    assert client.known() == client.server.current


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_latest_events_alone_never_go_back(steps: list[str | tuple[str, int]]) -> None:
    client, highest = Client(Server()), 0
    for step in steps:
        if step in ("write", "delete") or (isinstance(step, tuple) and step[0] == "event"):
            client.do(*((step,) if isinstance(step, str) else step))
        known = client.known()
        assert known is None or known.version >= highest
        highest = known.version if known else highest
    client.finish()
    assert client.known() == client.server.current


@settings(max_examples=300, deadline=None)
@given(STEPS, STEPS)
@example(["write", ("event", 0), "delete", ("event", 0)], ["write"])
def test_latest_after_etcd_was_restored_one_list_is_enough(
    before: list[str | tuple[str, int]], after: list[str | tuple[str, int]]
) -> None:
    client = follow(before)
    client.gets.clear()  # their connections broke
    client.lists.clear()
    client.server.restore()
    client.do("begin list")
    client.end_list()
    assert client.known() == client.server.current
    for step in after:
        client.do(*((step,) if isinstance(step, str) else step))
    client.finish()
    assert client.known() == client.server.current
