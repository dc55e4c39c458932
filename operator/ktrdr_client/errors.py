"""Errors of the Kubernetes API, named as the API server names their reasons.

ApiError
├── NotFound           404
├── Conflict           409, the object has changed
├── AlreadyExists      409, the name is taken
├── Forbidden          403
├── Invalid            422
├── TooManyRequests    429
└── Unreachable        no answer

Raised by `cluster`, from which other modules import them.
"""
# ruff: noqa: N818 - the errors have the names that the API server gives them as reasons

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import orjson

RETRY_AFTER_MAX_SECONDS: Final = 60.0
"""Maximum of Retry-After that is respected. An API server sends some seconds; a load balancer may
send hours, during which this client would send no request to a server that is available again."""


class ApiError(Exception):
    """The API server rejected a request or could not be reached; base of all errors here."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        """HTTP status; 0 when there was no answer."""
        self.reason = reason
        """Machine-readable, as in `metav1.Status`."""
        self.message = message
        """Message of the server."""
        self.retry_after_seconds = retry_after_seconds
        """Seconds before which the server wants no request; None without Retry-After."""


class NotFound(ApiError):
    """404: the object, its namespace or its resource type does not exist."""


class Conflict(ApiError):
    """409: the object has changed since it was read. Read it again."""


class AlreadyExists(ApiError):
    """409: the name is taken. Get the object and compare its owner."""


class Forbidden(ApiError):
    """403: denied by RBAC, quota or admission; a retry succeeds only once that has changed."""


class Invalid(ApiError):
    """422: the object violates its schema; the same request will never succeed."""


class TooManyRequests(ApiError):
    """429: retry; this client sends no request before `retry_after_seconds` have passed."""


class Unreachable(ApiError):
    """No answer: connection refused, reset or timed out. The request may have taken effect."""


_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    HTTPStatus.TOO_MANY_REQUESTS: TooManyRequests,
}


def error_from_answer(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """Build the error for an HTTP answer of 400 or above."""
    try:
        answer = orjson.loads(body)
    except ValueError:  # a proxy or an overloaded server answers in plain text
        answer = None
    if not isinstance(answer, dict):
        answer = {"message": body[:500].decode(errors="replace")}
    reason = str(answer.get("reason") or f"HTTP{status}")
    details = answer.get("details") or {}
    header, detail = headers.get("Retry-After"), details.get("retryAfterSeconds")
    seconds = parse_retry_after(header) or parse_retry_after(detail)
    kind = AlreadyExists if reason == "AlreadyExists" else _BY_STATUS.get(status, ApiError)
    return kind(status, reason, str(answer.get("message") or reason), seconds)


def parse_retry_after(text: object) -> float | None:
    """Seconds of a Retry-After; None when absent or a date, which the API server never sends."""
    return min(float(str(text)), RETRY_AFTER_MAX_SECONDS) if str(text).isdecimal() else None
