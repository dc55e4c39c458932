"""Error tree of the whole product; each class has its reason, its exit code and whether to retry.

    KtrdrError              TrainerFailed    exit 1    retried
    |- BadRequestError      InvalidRequest   exit 2    never retried: the request is wrong
    |  `- StrategyError     InvalidStrategy  exit 2    never retried: lists every wrong path
    |- DataError            InvalidData      exit 3    never retried: names file and row
    |- CheckpointError      TrainerFailed    exit 1    retried
    |- TemporaryError       TrainerFailed    exit 75   retried: a temporary condition
    `- CancellationError    Cancelled        exit 10   never retried: a user has cancelled

Raised by the trainer and the strategy parser. `ktrdr_trainer.run` turns an error into an exit code
and a termination message, and the operator turns these into a condition of the TrainingJob. The
cause is always chained (`raise ... from`).
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from ktrdr_api.conditions import Reason
from ktrdr_api.run_contract import ExitCode

MAX_PROBLEMS_SHOWN: Final = 100
MAX_LINE_LENGTH: Final = 500
"""Limits of a message: a file with thousands of problems, or with one very long word, must not fill
a log."""


class KtrdrError(Exception):
    """Base of all errors that this product raises on purpose; the message is for the user."""

    reason: ClassVar[str] = Reason.TRAINER_FAILED
    """Reason of the condition that reports the error."""
    exit_code: ClassVar[int] = 1
    """Exit code of the trainer's process."""
    retryable: ClassVar[bool] = True
    """Whether another attempt of the same run can succeed."""


class BadRequestError(KtrdrError):
    """The request is invalid; the user must change it."""

    reason = Reason.INVALID_REQUEST
    exit_code = ExitCode.BAD_REQUEST
    retryable = False


class StrategyError(BadRequestError):
    """The strategy is invalid; the message has one line per problem.

    Attributes:
        source: Name of the input in messages, such as a file name.
        problems: Dotted path and message of each problem, in the order of the file.
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
        """Dotted path of the first problem in the file."""
        return self.problems[0][0]


def _shortened(line: str) -> str:
    return line if len(line) <= MAX_LINE_LENGTH else line[: MAX_LINE_LENGTH - 3] + "..."


class DataError(KtrdrError):
    """Market data are missing, unreadable or too few; the user must change them.

    Attributes:
        file: Name of the file that is wrong; None if it is not one file.
        row: Line of that file, from 1 and including its header; None if it is not one line.
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
    """A checkpoint cannot be read or written, or belongs to another run."""


class TemporaryError(KtrdrError):
    """A temporary condition outside this program, such as a full disk or a missing mount."""

    exit_code = ExitCode.TEMPORARY


class CancellationError(KtrdrError):
    """The run stopped because a user cancelled it; not a failure."""

    reason = Reason.CANCELLED
    exit_code = ExitCode.STOPPED
    retryable = False
