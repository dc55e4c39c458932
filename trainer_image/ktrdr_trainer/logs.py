"""Everything the trainer says to people: the one module that writes to stdout and stderr.

Log lines go to stderr, one JSON object a line (`kubectl logs` and log shippers read it), plain text
when stderr is a terminal. What a command was asked to print (`validate`, `evaluate`) goes to
stdout.
Called by `__main__` and `run`; every other module logs through `LOGGER`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

LOGGER: Final = logging.getLogger("ktrdr_trainer")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; a traceback is a field, so it never spans lines."""

    def __init__(self, context: dict[str, Any]) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        """Time, level and message first, then who speaks, then the record's own fields."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._context,
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A record for a person in front of a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """`12:00:00 WARNING text`; the level is left out where it says nothing."""
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        text = f"{clock} {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The structured part of a record: what was given as `extra={"fields": {...}}`."""
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def set_up(context: dict[str, Any] | None = None, stream: TextIO | None = None) -> None:
    """Send log records and Python warnings to `stream` (stderr). Repeatable; the last call counts.

    Args:
        context: Fields for every JSON line, such as namespace, job, uid and attempt.
        stream: Where to; text if it is a terminal.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if stream.isatty() else JsonFormatter(context or {}))
    logging.captureWarnings(True)
    for logger in (LOGGER, logging.getLogger("py.warnings")):
        logger.handlers[:] = [handler]
        logger.propagate = False
    LOGGER.setLevel(logging.INFO)


def output(text: str) -> None:
    """Print what the user asked for to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Print a problem of a command that runs no training to stderr, without the log's dress."""
    sys.stderr.write(text + "\n")
