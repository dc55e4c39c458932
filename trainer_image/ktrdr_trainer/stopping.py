"""Who asked the run to stop, and what that means for its end.

The signal listener and the TrainingJob's watchers write, `run` and the reporter read. The loop
reads only the token.
"""

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from ktrdr_trainer.stop import StopToken


class StopReason(StrEnum):
    """Who asked."""

    CANCEL = "cancel"
    """`spec.cancel` is true."""
    DELETED = "deleted"
    """The TrainingJob is being deleted, is gone, or was created again under its name."""
    INTERRUPT = "interrupt"
    """SIGINT: a person at the terminal."""
    SIGTERM = "sigterm"
    """The pod must go: a disruption, unless a person asked as well."""
    SUPERSEDED = "superseded"
    """A later attempt has taken over; this one may write nothing any more."""


_BY_A_PERSON: Final = frozenset({StopReason.CANCEL, StopReason.DELETED, StopReason.INTERRUPT})


class StopRequests:
    """All requests to stop, in the order they came; any thread may ask, any number of times.

    Attributes:
        token: What the loop reads before every batch.
    """

    def __init__(self, token: StopToken) -> None:
        self.token = token
        self._times: dict[StopReason, float] = {}
        self._listeners: list[Callable[[], None]] = []

    def ask(self, reason: StopReason) -> None:
        """Stop the run. The first request of each reason tells the listeners."""
        if reason in self._times:
            return
        self._times[reason] = time.monotonic()
        self.token.cancel(reason)
        for listener in self._listeners:
            listener()

    def on_ask(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, from the asking thread, at every new reason."""
        self._listeners.append(listener)

    @property
    def by_a_person(self) -> bool:
        """Whether this is a cancel and not a disruption: exit code 10, not 143."""
        return any(reason in _BY_A_PERSON for reason in tuple(self._times))

    @property
    def superseded(self) -> bool:
        """Whether a later attempt owns the job."""
        return StopReason.SUPERSEDED in self._times

    @property
    def terminated_at(self) -> float | None:
        """When SIGTERM came, on the monotonic clock; the process has little time left."""
        return self._times.get(StopReason.SIGTERM)
