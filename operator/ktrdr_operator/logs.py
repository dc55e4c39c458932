"""Logging: one JSON object per line, with the fields that identify a job.

Configured once by `__main__`. Modules log through `logging.getLogger(__name__)` and pass namespace,
job, uid and attempt as `extra`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal

FIELDS: Final = ("namespace", "job", "uid", "attempt")
"""Extra attributes of a record that are added to the line."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; foreign text cannot break the line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, style: Literal["json", "text"]) -> None:
    """Send all logging to standard error in the given style."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kopf logs a line about every object it sees; its warnings are enough.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
