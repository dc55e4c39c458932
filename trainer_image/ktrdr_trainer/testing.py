"""A small API server for tests: one TrainingJob, the verbs its trainer uses, and faults on demand.

Shipped with the trainer, so that anyone who changes its reporting can try it without a cluster. It
keeps the server's rules that matter to a trainer: UID precondition (409), 404, CEL on attempt and
step (422), a watch that sends every change.
"""

import copy
import functools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs, urlsplit

from ktrdr_api import names
from ktrdr_trainer.runtime import ApiAccess

Json = dict[str, Any]
Headers = tuple[tuple[str, str], ...]
DELETION_FINALIZERS: Final = {"foreground": "foregroundDeletion", "orphan": "orphan"}
"""Finalizer that the API server adds for a propagation policy."""


@dataclass(frozen=True, slots=True)
class Request:
    """What arrived. `at` is on the monotonic clock."""

    at: float
    method: str
    path: str
    token: str
    body: Json | None


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer instead of the right one."""

    status: int
    headers: Headers = ()


class FakeApiServer:
    """Serves one TrainingJob on a free port of the loopback address; a context manager.

    Attributes:
        requests: All that arrived, oldest first.
        faults: Answers for the next PATCHes, whatever they ask.
        token: If set, what a request must carry, else 401.
        is_away: Connections are closed without an answer.
        is_served: If not, the CRD is missing: the answer is 404 without a Status object.
    """

    def __init__(self, *, name: str = "job", namespace: str = "default", uid: str = "u-1") -> None:
        self.requests: list[Request] = []
        self.faults: deque[Fault] = deque()
        self.token = ""
        self._changed = threading.Condition()
        self._events: list[Json] = []
        self._version = 1
        self._closed = False
        self.is_away = False
        self.is_served = True
        self._job: Json | None = None
        self.create(name=name, namespace=namespace, uid=uid)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake-api"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def access(self) -> ApiAccess:
        """How a client reaches this server."""
        return ApiAccess(f"http://127.0.0.1:{self._server.server_port}")

    @property
    def job(self) -> Json:
        """A copy of the TrainingJob; empty once it is gone."""
        with self._changed:
            return copy.deepcopy(self._job or {})

    @property
    def progress(self) -> Json:
        """A copy of `status.progress`; empty before the first report."""
        return dict(self.job.get("status", {}).get("progress", {}))

    @property
    def patches(self) -> list[Request]:
        """The PATCH requests that arrived, answered or not."""
        return [request for request in self.requests if request.method == "PATCH"]

    def create(self, *, name: str = "job", namespace: str = "default", uid: str) -> None:
        """Put a fresh TrainingJob in place of the present one."""
        metadata = {"name": name, "namespace": namespace, "uid": uid}
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata}
        self._replace({**body, "spec": {"cancel": False}, "status": {}}, "ADDED")

    def cancel(self) -> None:
        """What `kubectl patch -p '{"spec":{"cancel":true}}'` does."""
        with self._changed:
            self._replace({**self.job, "spec": {"cancel": True}}, "MODIFIED")

    def set_status(self, **fields: Any) -> None:
        """Change the operator's part of the status."""
        with self._changed:
            body = self.job
            self._replace({**body, "status": {**body.get("status", {}), **fields}}, "MODIFIED")

    def begin_deletion(self, cascade: Literal["foreground", "orphan"]) -> None:
        """What `kubectl delete --cascade=...` does first: a finalizer keeps the object."""
        with self._changed:
            body = self.job
            deletion = {
                "deletionTimestamp": "2026-01-02T03:04:05Z",
                "finalizers": [DELETION_FINALIZERS[cascade]],
            }
            self._replace({**body, "metadata": {**body["metadata"], **deletion}}, "MODIFIED")

    def delete(self) -> None:
        """Remove the object, as after its last finalizer."""
        with self._changed:
            body, self._job = self.job, None
            self._version += 1
            self._emit("DELETED", body)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Every connection is closed without an answer while this lasts."""
        self.is_away = True
        try:
            yield
        finally:
            self.is_away = False

    def wait_for(self, condition: Callable[[Self], bool], *, timeout_seconds: float = 5.0) -> None:
        """Return when `condition(self)` is true.

        Raises:
            TimeoutError: It did not become true in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while not condition(self):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_seconds} s; job: {self.job}")
            time.sleep(0.005)

    def _replace(self, body: Json, event: str) -> None:
        with self._changed:
            self._job = copy.deepcopy(body)
            self._version += 1
            self._job["metadata"]["resourceVersion"] = str(self._version)
            self._emit(event, body)

    def _emit(self, kind: str, body: Json) -> None:
        with self._changed:
            metadata = {**body["metadata"], "resourceVersion": str(self._version)}
            self._events.append({"type": kind, "object": {**body, "metadata": metadata}})
            self._changed.notify_all()

    def answer(self, request: Request) -> tuple[int, Json, Headers]:
        """Status, body and headers for a GET or a PATCH."""
        if self.token and request.token != f"Bearer {self.token}":
            return 401, {"message": "Unauthorized"}, ()
        if request.method == "PATCH" and self.faults:
            fault = self.faults.popleft()
            return fault.status, {"kind": "Status", "message": "fault injected"}, fault.headers
        with self._changed:
            job = self.job
            if not job:
                message = "trainingjobs.ktrdr.io not found"
                return 404, {"kind": "Status", "reason": "NotFound", "message": message}, ()
            if request.method == "GET":
                return 200, job, ()
            return (*self._apply(job, request.body or {}), ())

    def _apply(self, job: Json, body: Json) -> tuple[int, Json]:
        old, new = job["status"].get("progress", {}), body["status"]["progress"]
        same_pod = new["podUID"] == old.get("podUID")
        before = (old.get("attempt", 0), old.get("step", 0) if same_pod else 0)
        if (new["attempt"], new["step"]) < before:
            words = "progress.attempt must not decrease: a newer attempt has already reported"
            return 422, {"message": words}
        self._replace({**job, "status": {**job["status"], "progress": new}}, "MODIFIED")
        return 200, self.job

    def events_after(self, version: int) -> Iterator[Json]:
        """Events as they come, until the server closes or goes away."""
        while True:
            with self._changed:
                fresh = [event for event in self._events if _version(event) > version]
                if self._closed or self.is_away:
                    return
                if not fresh:
                    self._changed.wait(timeout=0.2)
            for event in fresh:
                version = _version(event)
                yield event


def _version(event: Json) -> int:
    return int(event["object"]["metadata"]["resourceVersion"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, api: FakeApiServer, *args: Any) -> None:
        self._api = api
        super().__init__(*args)

    def do_GET(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: the requests are kept."""

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        token = self.headers.get("Authorization") or ""
        request = Request(time.monotonic(), self.command, self.path, token, body)
        self._api.requests.append(request)
        query = parse_qs(urlsplit(self.path).query)
        if self._api.is_away:
            self.close_connection = True
        elif not self._api.is_served:
            self._reply(404, {}, ())
        elif "watch" in query:
            self._stream(int(query["resourceVersion"][0]))
        else:
            self._reply(*self._api.answer(request))

    def _reply(self, status: int, body: Json, headers: Headers) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, version: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            for event in self._api.events_after(version):
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has seen enough
