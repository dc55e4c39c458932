"""A Kubernetes API client of three verbs over urllib3: all that a trainer needs.

Called by `cluster_job`. No client library: importing the official one takes longer than importing
torch, and the trainer may read and write one object only. Responses are parsed JSON; meaning is
given to them in `cluster_job`.
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from ktrdr_trainer.runtime import ApiAccess

RESPONSE_MAX_BYTES: Final = 8 * 1024 * 1024
"""etcd refuses objects above 1.5 MiB; a larger answer is not an object."""
CONNECT_TIMEOUT_SECONDS: Final = 3.0
TOKEN_AGE_MAX_SECONDS: Final = 60.0
"""The kubelet replaces a token at 80 % of its life, 10 minutes at least; a minute is enough."""
RETRY_AFTER_MAX_SECONDS: Final = 60.0
"""An API server says some seconds. A load balancer before it may say hours, and for as long a
cancel would not be seen, though the server came back."""
_UNAUTHORIZED: Final = 401
_OK: Final = range(200, 300)

Json = dict[str, Any]
_Response = urllib3.BaseHTTPResponse


class ApiError(Exception):
    """The API server refused, failed, or could not be reached.

    Attributes:
        status: HTTP status; 0 when no whole answer came.
        reason: Of the server's Status object, such as `NotFound`; empty if there was none.
        retry_after_seconds: When the server wants to be asked again, if it said so.
    """

    def __init__(
        self,
        status: int,
        text: str,
        *,
        reason: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"HTTP {status}: {text}" if status else text)
        self.status = status
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class _Request(NamedTuple):
    method: str
    path: str
    timeout_seconds: float
    headers: Mapping[str, str] = {}
    body: bytes | None = None


class KubeClient:
    """Pooled, thread-safe, verifies TLS, retries nothing but an expired token.

    Args:
        access: Where the API server is and what identifies us to it.
    """

    def __init__(self, access: ApiAccess) -> None:
        self._access = access
        self._token = ""
        self._token_read_at = float("-inf")
        # The watch and the reporter each hold a connection. Keep-alive finds a peer that died
        # without a word: a watch has nothing to send by itself.
        self._pool = urllib3.PoolManager(
            maxsize=2,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=str(access.ca_file) if access.ca_file else None,
            socket_options=[*HTTPConnection.default_socket_options, *_keep_alive()],
        )

    def get(self, path: str, *, timeout_seconds: float) -> Json:
        """The object at `path`.

        Raises:
            ApiError: No object came.
        """
        return self._json(_Request("GET", path, timeout_seconds))

    def apply(self, path: str, body: Json, *, manager: str, timeout_seconds: float) -> Json:
        """Server-side apply with force, as field manager `manager`; the object as it is then.

        Raises:
            ApiError: The server did not confirm it.
        """
        # JSON is YAML; the API server wants the YAML name.
        headers = {"Content-Type": "application/apply-patch+yaml"}
        query = f"{path}?fieldManager={manager}&force=true"
        content = json.dumps(body).encode()
        return self._json(_Request("PATCH", query, timeout_seconds, headers, content))

    def watch(self, path: str, *, silence_seconds: float) -> Iterator[Json]:
        """Events of a watch, as they come, until the server ends it.

        Args:
            path: With its query, `watch=1` included.
            silence_seconds: Longest wait for the next event.

        Raises:
            ApiError: Refused, broken, or silent for too long.
        """
        response = self._send(_Request("GET", path, silence_seconds))
        rest = b""
        try:
            for chunk in response.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield _parsed(line)
                if len(rest) > RESPONSE_MAX_BYTES:
                    raise ApiError(0, f"a watch event is larger than {RESPONSE_MAX_BYTES} bytes")
        except (HTTPError, OSError) as error:
            raise ApiError(0, f"watch broken: {error}") from error
        finally:
            response.close()  # events may be left in it: the connection is not for reuse

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def _json(self, request: _Request) -> Json:
        response = self._send(request)
        try:
            content = _content(response)
        except (HTTPError, OSError) as error:
            raise ApiError(0, f"answer broken: {error}") from error
        finally:
            response.release_conn()
        return _parsed(content)

    def _send(self, request: _Request) -> _Response:
        response = self._send_once(request)
        if response.status == _UNAUTHORIZED:
            response.close()
            self._token_read_at = float("-inf")
            response = self._send_once(request)
        if response.status not in _OK:
            raise _refusal(response)
        return response

    def _send_once(self, request: _Request) -> _Response:
        connect = min(CONNECT_TIMEOUT_SECONDS, request.timeout_seconds)
        try:
            return self._pool.request(
                request.method,
                self._access.url + request.path,
                body=request.body,
                headers={"Accept": "application/json", **self._authorization(), **request.headers},
                timeout=Timeout(connect=connect, read=request.timeout_seconds),
                redirect=False,
                preload_content=False,
            )
        except (HTTPError, OSError) as error:
            raise ApiError(0, f"API server not reached: {error}") from error

    def _authorization(self) -> dict[str, str]:
        file = self._access.token_file
        if file is None:
            return {}
        now = time.monotonic()
        if now - self._token_read_at > TOKEN_AGE_MAX_SECONDS:
            self._token = file.read_text().strip()
            self._token_read_at = now
        return {"Authorization": f"Bearer {self._token}"}


def _keep_alive() -> list[tuple[int, int, int]]:
    """Socket options: first probe after 15 s of silence, dead after three more, 5 s apart."""
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    ]


def _content(response: _Response) -> bytes:
    content = response.read(RESPONSE_MAX_BYTES + 1)
    if len(content) > RESPONSE_MAX_BYTES:
        raise ApiError(0, f"the answer is larger than {RESPONSE_MAX_BYTES} bytes")
    return content


def _parsed(content: bytes) -> Json:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ApiError(0, f"the answer is not JSON: {content[:80]!r}") from error
    if not isinstance(value, dict):
        raise ApiError(0, f"the answer is not an object: {content[:80]!r}")
    return value


def _refusal(response: _Response) -> ApiError:
    """The server's own words, out of its Status object where there is one."""
    try:
        content = response.read(65536)
    except (HTTPError, OSError) as error:
        content = str(error).encode()
    finally:
        response.close()
    reason = ""
    try:
        answer = _parsed(content)
        text, reason = str(answer.get("message", ""))[:512], str(answer.get("reason", ""))
    except ApiError:
        text = content[:128].decode(errors="replace")
    after = response.headers.get("Retry-After", "")
    seconds = min(float(after), RETRY_AFTER_MAX_SECONDS) if after.isdecimal() else None
    return ApiError(response.status, text, reason=reason, retry_after_seconds=seconds)
