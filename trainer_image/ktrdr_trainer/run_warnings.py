"""Warnings of a run: problems that do not end it, but that its user should know.

Made by `run`, one for each run, and handed to whatever may find a problem. Each warning goes to the
log immediately and to the run result at the end, from which the operator copies it into
`status.warnings`. Failures that a retry has repaired are only logged.
"""

from ktrdr_api.run_contract import WARNING_MAX_LENGTH, WARNINGS_MAX, printable
from ktrdr_trainer.logs import LOGGER

_ELLIPSIS = "..."


class RunWarnings:
    """Collects warnings; any thread may add, a repeated one counts once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """Log a warning and keep it for the run result."""
        if text not in self._texts:
            self._texts.append(text)
            LOGGER.warning("%s", text)

    @property
    def texts(self) -> tuple[str, ...]:
        """All warnings within the bounds of `RunResult.warnings`, oldest first.

        If there are too many, the last text says how many more the log has.
        """
        texts = self._texts.copy()
        if len(texts) > WARNINGS_MAX:
            kept = WARNINGS_MAX - 1
            texts = [*texts[:kept], f"{len(texts) - kept} more warnings; see the trainer's log"]
        return tuple(_bounded(text) for text in texts)


def _bounded(text: str) -> str:
    plain = printable(text)
    if len(plain) <= WARNING_MAX_LENGTH:
        return plain
    return plain[: WARNING_MAX_LENGTH - len(_ELLIPSIS)] + _ELLIPSIS
