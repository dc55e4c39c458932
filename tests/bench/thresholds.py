"""Thresholds: a measured value, its goal, and the limit beyond which a benchmark fails.

Called by `bench_apply` and `bench_scale` for the last lines of their tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

OK: Final = "ok"
SHORT: Final = "short of the goal"
FAILED: Final = "FAILED"
NOT_JUDGED: Final = "not judged"


@dataclass(frozen=True)
class Threshold:
    """A value that should be at most its goal, and must be at most its limit."""

    title: str
    value: float
    goal: float
    limit: float
    unit: str = ""
    digits: int = 2
    """Digits after the point, also for the comparison: what is printed is what is judged."""
    excuse: str = ""
    """Why the value says nothing about the product in this run; it is then printed, not judged."""

    def verdict(self) -> str:
        """One of the four words above."""
        rounded = round(self.value, self.digits)
        if rounded <= self.goal:
            return OK
        if self.excuse:
            return NOT_JUDGED
        return SHORT if rounded <= self.limit else FAILED

    def line(self) -> str:
        """One line of the table."""
        measured = f"{self.value:.{self.digits}f}{self.unit}"
        goal, limit = f"{self.goal:g}{self.unit}", f"{self.limit:g}{self.unit}"
        reason = f": {self.excuse}" if self.verdict() == NOT_JUDGED else ""
        return (
            f"  {self.title:<46}{measured:>11}  goal <= {goal:<8} limit {limit:<8} "
            f"{self.verdict()}{reason}"
        )


def summary(name: str, text: str, thresholds: Sequence[Threshold]) -> tuple[str, int]:
    """The last line of a table, and the exit code of the benchmark."""
    found = {
        verdict: [t.title for t in thresholds if t.verdict() == verdict]
        for verdict in (FAILED, SHORT)
    }
    parts = [f"{verdict}: {', '.join(titles)}" for verdict, titles in found.items() if titles]
    return f"{name}: {text}; {'; '.join(parts) or 'every goal holds'}", int(bool(found[FAILED]))
