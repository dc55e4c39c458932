"""Reporter thread: pulls the progress and sends it to a Sink, so that the loop never waits.

`run` starts it before the data are read and closes it after the result is stored. It sends the
latest value if it changed: every period, and at the end of an epoch. If the receiver asks for a
longer interval, all of these keep it. A new stage, a request to stop and the end of the run are
sent immediately. Values in between are dropped, never queued.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from ktrdr_api.run_contract import Stage
from ktrdr_api.training_job import Progress
from ktrdr_trainer.backoff import MAX_SECONDS, backoff_seconds
from ktrdr_trainer.files import write_durably
from ktrdr_trainer.kube import ApiError
from ktrdr_trainer.logs import LOGGER
from ktrdr_trainer.progress import Forecast, RunView, progress_of
from ktrdr_trainer.slot import Clock, ProgressSlot
from ktrdr_trainer.stopping import StopRequests

PROGRESS_FILE: Final = "progress.json"
WAKE_SECONDS: Final = 1.0
"""Longest sleep: the interval that the receiver asks for may become shorter at any time."""


class Sink(Protocol):
    """Where progress goes."""

    @property
    def pause_seconds(self) -> float:
        """Least time between routine reports that whoever receives them wants now."""

    def send(self, progress: Progress, *, timeout_seconds: float) -> None:
        """Deliver.

        Raises:
            ApiError | OSError: Not delivered; a later value is sent after a pause.
        """


class FileSink:
    """`progress.json` in a folder: for a person or a program on the same machine."""

    pause_seconds = 0.0

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS_FILE

    def send(self, progress: Progress, *, timeout_seconds: float) -> None:
        """Replace the file; readers see the old or the new text, never a part."""
        del timeout_seconds  # a local file answers or fails
        text = progress.model_dump_json(by_alias=True, exclude_none=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._path, text.encode())


class NoSink:
    """Nowhere; stages and epochs still show in the log."""

    pause_seconds = 0.0

    def send(self, progress: Progress, *, timeout_seconds: float) -> None:
        """Drop it."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When to send.

    Attributes:
        period_seconds: Between routine reports.
        gap_seconds: Between urgent ones, so that epochs of milliseconds do not flood the server.
        request_seconds: Longest wait for an answer.
        farewell_seconds: How long the last value is retried once the run has ended.
        farewell_stopped_seconds: The same after a cancel: the process must be gone soon.
        farewell_terminated_seconds: The same after SIGTERM: SIGKILL follows.
    """

    period_seconds: float = 2.0
    gap_seconds: float = 0.5
    request_seconds: float = 10.0
    farewell_seconds: float = 60.0
    farewell_stopped_seconds: float = 10.0
    farewell_terminated_seconds: float = 5.0


class Reporter:
    """One thread a run.

    Args:
        slot: What the loop fills.
        view: What the run says of itself, at first.
        sink: Where to.
        stops: A request to stop is reported at once.
        clock: Times that are shown.
        pace: When to send.
        warn: Told if the last value was not delivered.
    """

    def __init__(
        self,
        slot: ProgressSlot,
        view: RunView,
        *,
        sink: Sink,
        stops: StopRequests,
        clock: Clock,
        pace: Pace,
        warn: Callable[[str], None],
    ) -> None:
        self._slot, self._view, self._sink = slot, view, sink
        self._stops, self._clock, self._pace, self._warn = stops, clock, pace, warn
        self._changing = threading.Lock()
        self._done = False
        self._closed_at: float | None = None
        self._immediate = self._urgent = False
        self._looked_at = float("-inf")
        self._backoff_until = self._hold_until = float("-inf")
        self._failures = 0
        self._last_error: ApiError | OSError | None = None
        self._sent: Progress | None = None
        self._logged: tuple[Stage, int, str] | None = None
        self._forecast = Forecast()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        stops.on_ask(self._at_once)

    def start(self) -> None:
        """Begin; the first report goes out at once."""
        self._thread.start()

    def update(self, *, urgent: bool = False, **changes: Any) -> None:
        """Change fields of the RunView; `urgent` reports it without waiting for the period."""
        with self._changing:  # the training and the checkpoint writer both call this
            self._view = replace(self._view, **changes)
        if urgent:
            self._slot.urgent.set()

    def close(self, *, message: str, done: bool) -> None:
        """Send the last value, for as long as the process can wait, and end the thread.

        Args:
            message: The last words.
            done: The model is stored: stage Done, 100 percent.
        """
        self.update(message=message)
        self._done = done
        self._closed_at = time.monotonic()
        self._at_once()
        self._thread.join()

    def _at_once(self) -> None:
        self._immediate = True
        self._slot.urgent.set()

    def _run(self) -> None:
        while True:
            self._pause()
            closing = self._closed_at is not None  # before looking, so the last value is in it
            self._looked_at = time.monotonic()
            progress = self._look()
            if not closing:  # the last words are in the log already
                self._log(progress)
            delivered = self._is_known(progress) or self._send(progress)
            if closing and (delivered or time.monotonic() >= self._deadline()):
                break
        if not delivered:
            self._warn(
                "The final progress report was not delivered, so the reported progress is out of "
                f"date: {self._last_error}"
            )

    def _pause(self) -> None:
        while (left := self._next_time() - time.monotonic()) > 0:
            if self._slot.urgent.wait(min(left, WAKE_SECONDS)):
                self._slot.urgent.clear()
                self._urgent = True
        self._urgent = self._immediate = False

    def _next_time(self) -> float:
        closing = self._closed_at is not None
        if closing or self._immediate:
            due = self._looked_at if self._immediate else self._backoff_until
        else:
            due = max(self._looked_at + self._gap(), self._backoff_until)
        due = max(due, self._hold_until)  # the server's own word counts in every case
        return min(due, self._deadline()) if closing else due

    def _gap(self) -> float:
        """Minimum seconds from the last report, sent or failed, to the next."""
        if self._is_new_stage():
            return self._pace.gap_seconds
        if self._failures:
            return self._pace.period_seconds  # and not before `_backoff_until`
        own = self._pace.gap_seconds if self._urgent else self._pace.period_seconds
        return max(own, self._sink.pause_seconds)

    def _is_new_stage(self) -> bool:
        """Whether the stage has not been delivered yet, also after a report of it has failed."""
        return self._sent is None or self._sent.stage != self._stage()

    def _deadline(self) -> float:
        closed = self._closed_at or 0.0
        if (terminated := self._stops.terminated_at) is not None:
            last = max(closed, terminated) + self._pace.farewell_terminated_seconds
            return min(last, closed + self._pace.farewell_seconds)
        if self._stops.token.is_cancelled:
            return closed + self._pace.farewell_stopped_seconds
        return closed + self._pace.farewell_seconds

    def _stage(self) -> Stage:
        if self._done:
            return Stage.DONE
        if self._stops.by_a_person:
            return Stage.CANCELLING
        stage = self._slot.latest.stage if self._slot.latest else Stage.PREPARING
        # Cancelling without a person: the loop has stopped, but nobody cancelled the job.
        return Stage.TRAINING if stage is Stage.CANCELLING else stage

    def _look(self) -> Progress:
        stage, loop, view = self._stage(), self._slot.latest, self._view
        remaining = self._forecast.remaining_seconds(loop, self._looked_at) if loop else None
        return progress_of(
            view, loop, stage=stage, remaining_seconds=remaining, now=self._clock.now()
        )

    def _is_known(self, progress: Progress) -> bool:
        if self._sent is None:
            return False
        return progress == self._sent.model_copy(
            update={"last_update_time": progress.last_update_time}
        )

    def _send(self, progress: Progress) -> bool:
        now = time.monotonic()
        if now < self._hold_until:
            return False
        seconds = self._pace.request_seconds
        if self._closed_at is not None:
            seconds = max(min(seconds, self._deadline() - now), 0.1)
        try:
            self._sink.send(progress, timeout_seconds=seconds)
        except (ApiError, OSError) as error:
            self._failed(error)
            return False
        if self._failures:
            LOGGER.info("Progress reports succeed again")
        self._failures = 0
        self._sent = progress
        return True

    def _failed(self, error: ApiError | OSError) -> None:
        self._failures += 1
        self._last_error = error
        if self._failures == 1:
            LOGGER.warning("Progress report failed, retrying; training continues: %s", error)
        now = time.monotonic()
        self._backoff_until = now + backoff_seconds(
            self._failures, max_seconds=self._backoff_max_seconds()
        )
        if isinstance(error, ApiError) and error.retry_after_seconds:
            self._hold_until = now + error.retry_after_seconds

    def _backoff_max_seconds(self) -> float:
        if self._closed_at is not None:
            return 1.0
        # In a long outage a thousand paced trainers retry no more often than they would report.
        return MAX_SECONDS if self._is_new_stage() else max(MAX_SECONDS, self._sink.pause_seconds)

    def _log(self, progress: Progress) -> None:
        """One line a stage, an epoch, or a word of the run's own, as often as we look."""
        now = (progress.stage, progress.current_epoch, self._view.message)
        if now == self._logged:
            return
        self._logged = now
        fields = progress.model_dump(
            mode="json",
            by_alias=True,
            include={"stage", "percentage", "current_epoch", "total_epochs", "step"},
        )
        metrics = {metric.name: metric.value for metric in progress.metrics}
        words = [f"{progress.stage}: {progress.message}", *map("=".join, metrics.items())]
        LOGGER.info(" ".join(words), extra={"fields": {**fields, "metrics": metrics}})
