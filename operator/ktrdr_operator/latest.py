"""Latest state of every object of one type, by name, whatever the order in which states arrive.

Four sources report the same objects and overtake each other: watch events, answers to live GETs,
answers to the operator's own writes, and full lists. `Latest` decides which state is newer. Rules:

- An event counts only with a higher version than the one known under its *name*. Versions of one
  type are comparable as numbers whatever the UID (KEP-5504, and etcd before it), so a late event of
  a previous object of the name can neither replace nor remove its successor.
- An event cannot bring back a UID that was deleted.
- A live GET and a list are authoritative: they can lower a version (etcd restored from a backup) or
  bring a deleted UID back, unless the record has changed since they were requested.

Used by `store` for TrainingJobs and for pods. No I/O.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

DELETION_KEPT_SECONDS: Final = 600.0
"""How long a deletion is remembered: far longer than a request (15 s) or a watch can delay a state
of the deleted object."""


class Versioned(Protocol):
    """Record of one object. A changed record is a new instance, so `is` detects a change."""

    @property
    def uid(self) -> str:
        """UID of the object."""

    @property
    def version(self) -> int:
        """Its `metadata.resourceVersion`."""


K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Versioned)


@dataclass(slots=True, eq=False)
class Listing(Generic[K]):
    """One full list in progress."""

    seen: set[K] = field(default_factory=set)
    """Names in the list so far."""
    changed: set[K] = field(default_factory=set)
    """Names whose record has changed since the list began: the list may be older."""


class _Deletion(NamedTuple):
    version: int
    """An answer with this version or a later one is not older than the deletion."""
    at: float


def _ignore_change(_key: object, _before: object, _after: object) -> None:
    """Default of `on_change`: no index depends on the records."""


@dataclass(slots=True)
class Latest(Generic[K, T]):
    """Latest record of each object, and versions of deleted ones."""

    clock: Callable[[], float]
    """Monotonic seconds."""
    on_change: Callable[[K, T | None, T | None], None] = _ignore_change
    """Called with a name, its record before and its record after each change."""
    records: dict[K, T] = field(default_factory=dict)
    """Objects that exist, as far as is known."""
    _floors: dict[K, int] = field(default_factory=dict)
    """Versions up to which events are outdated, of names without an object; until the next list."""
    _deleted: dict[str, _Deletion] = field(default_factory=dict)
    """By UID, in the order of deletion."""
    _listing: Listing[K] | None = None

    def is_news(self, key: K, uid: str, version: int) -> bool:
        """Whether an event with this version is newer than the record."""
        if uid in self._deleted:
            return False
        known = self.records.get(key)
        if known is not None:
            return version > known.version
        return version > self._floors.get(key, 0)

    def is_deleted(self, uid: str) -> bool:
        """Whether the object with this UID is known to be deleted."""
        return uid in self._deleted

    def put(self, key: K, record: T) -> bool:
        """Store the object of an event or of an own write; returns whether it was newer."""
        if not self.is_news(key, record.uid, record.version):
            return False
        self._set(key, record)
        return True

    def drop(self, key: K, uid: str, version: int = 0) -> bool:
        """Store a deletion.

        Args:
            key: name of the deleted object.
            uid: UID of the deleted object; a newer object of the same name stays.
            version: the deletion's version; 0 when unknown.

        Returns:
            Whether this is the latest known state of the name.
        """
        known, before = self.records.get(key), self._floors.get(key, 0)
        if self._listing is not None:
            self._listing.changed.add(key)  # the list may still contain an object unknown here
        if known is not None and known.uid != uid and known.version >= version:
            self._bury(uid, version)
            return False
        floor = max(version, known.version if known else 0)
        self._bury(uid, floor)
        if known is not None and known.uid != uid:
            self._bury(known.uid, known.version)
        self._set(key, None)
        self._floors[key] = max(floor, before)
        return floor >= before

    def put_live(self, key: K, record: T | None, before: T | None) -> None:
        """Store the answer of a live GET.

        Args:
            key: name that was requested.
            record: the answer; None when there is no such object.
            before: the record when the GET was sent.
        """
        known = self.records.get(key)
        if known is not None and known is not before:  # a newer state may have arrived meanwhile
            if record is not None:
                self.put(key, record)
        elif record is None:
            if known is not None:
                self.drop(key, known.uid, known.version + 1)
        elif known is not None or not self._is_outdated(record):
            self._accept(key, record)

    def forget(self, key: K) -> None:
        """Stop keeping an object that still exists; its next event makes it a new one."""
        self._set(key, None)

    def begin_list(self) -> Listing[K]:
        """Begin a full list, before its first request is sent; drops an unfinished list."""
        self._listing = Listing()
        return self._listing

    def is_listed_news(self, listing: Listing[K], key: K, record: tuple[str, int]) -> bool:
        """Note that a name is in the list; returns whether `put_listed` must be called for it.

        Args:
            listing: what `begin_list` returned.
            key: name of the object.
            record: its UID and version in the list.
        """
        listing.seen.add(key)
        if key in listing.changed:
            return self.is_news(key, *record)
        known = self.records.get(key)
        return known is None or (known.uid, known.version) != record

    def put_listed(self, listing: Listing[K], key: K, record: T) -> bool:
        """Store an object of a list; returns whether it changed the record."""
        if not self.is_listed_news(listing, key, (record.uid, record.version)):
            return False
        self._accept(key, record)
        return True

    def finish_list(self, listing: Listing[K], is_covered: Callable[[K], bool]) -> list[K]:
        """Drop objects that were not in the list; returns their names.

        Args:
            listing: what `begin_list` returned.
            is_covered: whether the list would contain a name if it existed.
        """
        self._listing = None
        kept = listing.seen | listing.changed
        missing = [key for key in self.records if key not in kept and is_covered(key)]
        for key in missing:
            self.drop(key, self.records[key].uid, self.records[key].version)
        self._prune(listing)
        return missing

    def _is_outdated(self, record: T) -> bool:
        """Whether an answer is older than the deletion of its object.

        False for an object that the watch reports as deleted because it has lost its label: the
        event has the version that the object has now.
        """
        deletion = self._deleted.get(record.uid)
        return deletion is not None and record.version < deletion.version

    def _accept(self, key: K, record: T) -> None:
        self._deleted.pop(record.uid, None)
        self._set(key, record)

    def _set(self, key: K, record: T | None) -> None:
        before = self.records.get(key)
        if record is before:
            return
        if before is not None and record is not None and before.uid != record.uid:
            self._bury(before.uid, before.version)
        if record is None:
            self.records.pop(key, None)
        else:
            self.records[key] = record
            self._floors.pop(key, None)
        if self._listing is not None:
            self._listing.changed.add(key)
        self.on_change(key, before, record)

    def _bury(self, uid: str, version: int) -> None:
        self._deleted.pop(uid, None)
        self._deleted[uid] = _Deletion(version, self.clock())

    def _prune(self, listing: Listing[K]) -> None:
        """Forget old deletions, and floors that are older than the list."""
        oldest = self.clock() - DELETION_KEPT_SECONDS
        for uid, _ in list(takewhile(lambda item: item[1].at < oldest, self._deleted.items())):
            del self._deleted[uid]
        self._floors = {key: v for key, v in self._floors.items() if key in listing.changed}
