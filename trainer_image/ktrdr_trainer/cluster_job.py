"""The TrainingJob that a run belongs to, as its trainer sees it: report to it, learn from it.

Every answer of the API server, to a PATCH as to a watch, is the whole object, and every one of them
is read for the wish to cancel and for how often to report. Called by the reporter thread (`send`)
and by a thread of its own (`start_watch`); what it learns goes to StopRequests. Its last knowledge
decides whether a SIGTERM was a cancel (exit 10) or a disruption (143).
"""

import threading
import time
from typing import Any, Final
from urllib.parse import quote

from ktrdr_api import names
from ktrdr_api.run_contract import JobIdentity
from ktrdr_api.training_job import Progress
from ktrdr_trainer.backoff import backoff_seconds
from ktrdr_trainer.kube import ApiError, Json, KubeClient
from ktrdr_trainer.logs import LOGGER
from ktrdr_trainer.stopping import StopReason, StopRequests

REQUEST_TIMEOUT_SECONDS: Final = 10.0
WATCH_SECONDS: Final = 600
"""The server ends a watch after this; the next begins with a GET, so nothing stays missed."""
WATCH_SILENCE_SECONDS: Final = 90.0
"""The server sends a bookmark a minute; a connection silent for longer is dead."""

_NOT_FOUND: Final = "NotFound"
"""Reason of a Status that says that the object does not exist. While the CRD is not served, or from
a proxy, an answer 404 comes without it: the job may still exist."""
_ASK_THE_OBJECT: Final = frozenset({404, 409, 422})
"""Gone; a conflict; a step backwards. What it was, the object itself says."""


class ClusterJob:
    """One TrainingJob on one API server.

    Args:
        client: How to reach the API server.
        job: Which object; another UID under its name is another job.
        attempt: This run's; a higher one in the object means that this run is superseded.
        stops: Told about every reason to stop.
    """

    def __init__(
        self, client: KubeClient, job: JobIdentity, *, attempt: int, stops: StopRequests
    ) -> None:
        self._client = client
        self._job = job
        self._attempt = attempt
        self._stops = stops
        self._collection = (
            f"/apis/{names.API_VERSION}/namespaces/{quote(job.namespace, safe='')}/{names.PLURAL}"
        )
        self._object = f"{self._collection}/{quote(job.name, safe='')}"
        self._lost = threading.Event()
        self._pause_seconds = 0.0
        self._pause_version = -1

    @property
    def pause_seconds(self) -> float:
        """`status.reportPeriodSeconds`: how long the operator wants trainers to wait, or 0."""
        return self._pause_seconds

    def send(self, progress: Progress, *, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> None:
        """Write the whole of `status.progress`; nothing once the object is another's or gone.

        Raises:
            ApiError: Not written; try again later.
        """
        if self._lost.is_set():
            return
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            # No UID: the server ignores it here. If the job was created again, the answer says so,
            # and its own trainer may overwrite what was said here (see `crd_rules`).
            "metadata": {"name": self._job.name, "namespace": self._job.namespace},
            "status": {
                "progress": progress.model_dump(mode="json", by_alias=True, exclude_none=True)
            },
        }
        path = f"{self._object}/status"
        try:
            answer = self._client.apply(
                path, body, manager=names.TRAINER_MANAGER, timeout_seconds=timeout_seconds
            )
        except ApiError as error:
            if error.status in _ASK_THE_OBJECT and self._look(timeout_seconds) is None:
                return
            raise
        self._understand(answer)

    def start_watch(self) -> None:
        """Watch the object in a daemon thread until there is nothing left to learn."""
        threading.Thread(target=self._watch_on, name="cancel-watch", daemon=True).start()

    def stop_watch(self) -> None:
        """Let the watch end with its next event, and report nothing any more."""
        self._lost.set()

    def _watch_on(self) -> None:
        failures = 0
        while not self._settled():
            began = time.monotonic()
            hold = 0.0
            try:
                self._watch_once()
                failures = 0 if time.monotonic() - began > 1 else failures + 1
            except ApiError as error:
                failures = 1 if time.monotonic() - began > REQUEST_TIMEOUT_SECONDS else failures + 1
                hold = error.retry_after_seconds or 0.0
                if failures == 1:
                    LOGGER.warning(
                        "Watch of the TrainingJob failed, retrying; training continues: %s",
                        error,
                    )
            self._lost.wait(max(hold, backoff_seconds(failures)))

    def _watch_once(self) -> None:
        """GET, then watch from there, until the server ends it."""
        version = self._look(REQUEST_TIMEOUT_SECONDS)
        if version is None or self._settled():
            return
        query = (
            f"?watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}"
            f"&fieldSelector=metadata.name%3D{quote(self._job.name, safe='')}"
            f"&resourceVersion={quote(version, safe='')}"
        )
        path = self._collection + query
        for event in self._client.watch(path, silence_seconds=WATCH_SILENCE_SECONDS):
            self._take(event)
            if self._settled():
                return

    def _take(self, event: Json) -> None:
        body = _map(event.get("object"))
        match event.get("type"):
            case "BOOKMARK":
                return
            case "ERROR":  # 410 Gone: the version is too old
                raise ApiError(int(body.get("code") or 0), str(body.get("message", "")))
            case "DELETED":
                self._lose(StopReason.DELETED)
            case _:
                self._understand(body)

    def _look(self, timeout_seconds: float) -> str | None:
        """GET the object; its resourceVersion, or None if it is gone or another's."""
        try:
            body = self._client.get(self._object, timeout_seconds=timeout_seconds)
        except ApiError as error:
            if error.reason != _NOT_FOUND:
                raise
            self._lose(StopReason.DELETED)
            return None
        self._understand(body)
        return None if self._lost.is_set() else str(_map(body.get("metadata"))["resourceVersion"])

    def _understand(self, body: Json) -> None:
        metadata, status = _map(body.get("metadata")), _map(body.get("status"))
        self._take_pace(metadata, status)
        # status.attempt is absent or 0 until the operator has seen the pod of attempt 1.
        attempts = (status.get("attempt"), _map(status.get("progress")).get("attempt"))
        if metadata.get("uid") != self._job.uid:
            self._lose(StopReason.DELETED)
        elif any(isinstance(number, int) and number > self._attempt for number in attempts):
            self._lose(StopReason.SUPERSEDED)
        elif metadata.get("deletionTimestamp"):  # a finalizer keeps it: foreground, orphan
            self._stops.ask(StopReason.DELETED)
        elif _map(body.get("spec")).get("cancel") is True:
            self._stops.ask(StopReason.CANCEL)

    def _take_pace(self, metadata: Json, status: Json) -> None:
        # The answer to a report may be older than what the watch has brought meanwhile. Source:
        # versions of one object are comparable as numbers since Kubernetes 1.35 (KEP-5504).
        version = int(metadata.get("resourceVersion") or 0)
        if version < self._pause_version:
            return
        period = status.get("reportPeriodSeconds")  # bounded by the CRD
        self._pause_seconds = float(period) if isinstance(period, int) else 0.0
        self._pause_version = version

    def _lose(self, reason: StopReason) -> None:
        self._lost.set()
        self._stops.ask(reason)

    def _settled(self) -> bool:
        return self._lost.is_set() or self._stops.by_a_person


def _map(value: Any) -> Json:
    return value if isinstance(value, dict) else {}
