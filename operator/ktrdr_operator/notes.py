"""Notes: what this process remembers about single TrainingJobs besides the store.

Nothing here is needed for a right decision: a lost note costs a request, a status write or a less
exact metric. So it is bounded, and a restart begins without any.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

MAX_NOTES: Final = 20_000
"""Jobs remembered; some 300 bytes each."""


@dataclass(slots=True)
class Note:
    """About one TrainingJob, by UID. Times are monotonic seconds."""

    first_seen: float
    status_written: float | None = None
    cancel_seen: float | None = None
    stored_strategy: bool = False
    """Whether the job's own ConfigMap is known to exist."""
    strategy_digest: str = ""
    """Of the text in it."""
    counted_attempt: int = 0
    """Latest attempt that the metrics have counted."""


@dataclass
class Notes:
    """A bounded set of notes; the least recently used one is dropped."""

    _notes: OrderedDict[str, Note] = field(default_factory=OrderedDict)

    def of(self, uid: str, now: float) -> Note:
        """The note about a TrainingJob, a new one if there is none."""
        note = self._notes.get(uid)
        if note is None:
            note = self._notes[uid] = Note(first_seen=now)
            if len(self._notes) > MAX_NOTES:
                self._notes.popitem(last=False)
        self._notes.move_to_end(uid)
        return note

    def drop(self, uid: str) -> None:
        """Forget a TrainingJob that does not exist any more."""
        self._notes.pop(uid, None)
