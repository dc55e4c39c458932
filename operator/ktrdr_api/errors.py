"""The error tree of the whole product. Each class knows its reason, exit code and whether to retry.

    KtrdrError              TrainerFailed    exit 1    retried
    |- BadRequestError      InvalidRequest   exit 2    never retried: the request is wrong
    |  `- StrategyError     InvalidStrategy  exit 2    never retried: names every wrong path
    |- DataError            InvalidData      exit 3    never retried: names file and row
    |- CheckpointError      TrainerFailed    exit 1    retried
    |- TemporaryError       TrainerFailed    exit 75   retried: a condition that may pass
    `- CancellationError    Cancelled        exit 10   never retried: somebody asked

Raised everywhere, turned into an exit code and a termination message in `ktrdr_trainer.run`;
the operator reads the code again as a condition. The cause is always chained (`raise ... from`).
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from ktrdr_api.conditions import Reason
from ktrdr_api.run_contract import ExitCode

MAX_PROBLEMS_SHOWN: Final = 100
MAX_LINE_LENGTH: Final = 500
"""A file that is wrong everywhere, or in one very long word, must not fill a log."""


class KtrdrError(Exception):
    """Anything this product raises on purpose; its text is written for the user."""

    reason: ClassVar[str] = Reason.TRAINER_FAILED
    """Reason of the condition that will report it."""
    exit_code: ClassVar[int] = 1
    """What the trainer's process ends with."""
    retryable: ClassVar[bool] = True
    """Whether the same run, started again, can end differently."""


class BadRequestError(KtrdrError):
    """The request cannot be obeyed as written; the user must change it."""

    reason = Reason.INVALID_REQUEST
    exit_code = ExitCode.BAD_REQUEST
    retryable = False


class StrategyError(BadRequestError):
    """The strategy is not valid; the text has one line for each problem.

    Attributes:
        source: What was read, such as a file name.
        problems: Dotted path and text of each problem, in the order of the file.
    """

    reason = Reason.INVALID_STRATEGY

    def __init__(self, source: str, problems: Sequence[tuple[str, str]]) -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = [
            _shortened(f"{source}: {path}: {text}") for path, text in problems[:MAX_PROBLEMS_SHOWN]
        ]
        if len(problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"{source}: and {len(problems) - MAX_PROBLEMS_SHOWN} more problems")
        super().__init__("\n".join(lines))

    @property
    def path(self) -> str:
        """Dotted path of the first problem."""
        return self.problems[0][0]


def _shortened(line: str) -> str:
    return line if len(line) <= MAX_LINE_LENGTH else line[: MAX_LINE_LENGTH - 3] + "..."


class DataError(KtrdrError):
    """Market data are missing, unreadable or too few; the user must change them.

    Attributes:
        file: Name of the file at fault, if it is one file.
        row: Line of that file, counted from 1 and with its header, if it is one line.
    """

    reason = Reason.INVALID_DATA
    exit_code = ExitCode.BAD_DATA
    retryable = False

    def __init__(self, text: str, *, file: str | None = None, row: int | None = None) -> None:
        self.file = file
        self.row = row
        where = ", ".join([*([file] if file else []), *([f"row {row}"] if row else [])])
        super().__init__(f"{where}: {text}" if where else text)


class CheckpointError(KtrdrError):
    """A checkpoint cannot be read, does not belong to this run, or cannot be written."""


class TemporaryError(KtrdrError):
    """A condition outside this program that may pass, such as a full disk or a missing mount."""

    exit_code = ExitCode.TEMPORARY


class CancellationError(KtrdrError):
    """The run stopped because somebody asked; not a failure."""

    reason = Reason.CANCELLED
    exit_code = ExitCode.STOPPED
    retryable = False
