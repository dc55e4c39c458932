"""How a run is asked to stop. The cancel watch and the signal handler write, the loop reads.

One way: a token never becomes unset, and the first reason stays.
"""

from ktrdr_api.errors import CancellationError


class StopToken:
    """A flag that any thread or signal handler may set, and that costs one attribute read.

    There is no lock on purpose: a signal handler may run between any two instructions of the
    thread that holds it. `list.append` and a store of an attribute are atomic in CPython.

    Attributes:
        is_cancelled: Whether somebody asked; the loop reads it before every batch.
    """

    __slots__ = ("_reasons", "is_cancelled")

    def __init__(self) -> None:
        self.is_cancelled = False
        self._reasons: list[str] = []

    @property
    def reason(self) -> str | None:
        """The first reason given, such as `cancel` or `sigterm`; None until somebody asks."""
        return self._reasons[0] if self._reasons else None

    def cancel(self, reason: str) -> None:
        """Ask the run to stop. Repeatable; later reasons are ignored."""
        self._reasons.append(reason)
        self.is_cancelled = True

    def is_cancelled_requested(self) -> bool:
        """Same as `is_cancelled`, for callers that take a function."""
        return self.is_cancelled

    def raise_if_cancelled(self) -> None:
        """Raise where stopping is safe.

        Raises:
            CancellationError: Somebody asked; the text is the reason.
        """
        if self.is_cancelled:
            raise CancellationError(f"stopped: {self.reason}")
