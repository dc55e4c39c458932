"""Notes: per-job memory of this process that saves requests and makes metrics exact.

No decision needs a note: a lost one costs a request, a status write or a less exact metric. So
their number is bounded, and a restart begins without any. Used by `observe`, `apply` and
`reconcile`.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

MAX_NOTES: Final = 20_000
"""Maximum number of notes, about 300 bytes each."""


@dataclass(slots=True)
class Note:
    """Note about one TrainingJob. Times are monotonic seconds."""

    first_seen: float
    status_written: float | None = None
    cancel_seen: float | None = None
    stored_strategy: bool = False
    """Whether the job's own ConfigMap is known to exist."""
    strategy_digest: str = ""
    """Digest of the strategy in the job's own ConfigMap; empty if unknown."""
    counted_attempt: int = 0
    """Latest attempt that the metrics have counted."""


@dataclass
class Notes:
    """Notes by UID, bounded; the least recently used one is dropped."""

    _notes: OrderedDict[str, Note] = field(default_factory=OrderedDict)

    def of(self, uid: str, now: float) -> Note:
        """Return the note about a TrainingJob, a new one if there is none."""
        note = self._notes.get(uid)
        if note is None:
            note = self._notes[uid] = Note(first_seen=now)
            if len(self._notes) > MAX_NOTES:
                self._notes.popitem(last=False)
        self._notes.move_to_end(uid)
        return note

    def drop(self, uid: str) -> None:
        """Forget a TrainingJob that no longer exists."""
        self._notes.pop(uid, None)
