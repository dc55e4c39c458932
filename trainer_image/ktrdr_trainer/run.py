"""One run, from the request to the exit code: reading, training, reporting, the last word.

Called by `__main__`. The threads around the training (signals, cancel watch, reporter) start here;
what needs torch is in `training`, imported once the data are read, because importing torch takes
longer than all of this.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGTERM, Signals
from typing import TYPE_CHECKING

from ktrdr_api.errors import BadRequestError, CancellationError, KtrdrError, TemporaryError
from ktrdr_api.run_contract import Outcome, RunRequest, RunResult
from ktrdr_api.strategy import Strategy
from ktrdr_trainer import logs, result
from ktrdr_trainer.artifact_folder import find_finished, point_latest
from ktrdr_trainer.cluster_job import ClusterJob
from ktrdr_trainer.gpu_check import GpuCheck
from ktrdr_trainer.kube import KubeClient
from ktrdr_trainer.logs import LOGGER
from ktrdr_trainer.progress import RunView
from ktrdr_trainer.reporter import FileSink, NoSink, Pace, Reporter, Sink
from ktrdr_trainer.request import PlacedRequest, read_strategy
from ktrdr_trainer.run_warnings import RunWarnings
from ktrdr_trainer.runtime import Runtime, listen
from ktrdr_trainer.slot import Clock, ProgressSlot, system_clock
from ktrdr_trainer.stop import StopToken
from ktrdr_trainer.stopping import StopReason, StopRequests

if TYPE_CHECKING:
    from ktrdr_trainer.pipeline.prepare import PreparedDataset


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every step of one run works with.

    Attributes:
        request: What was asked.
        stops: Who asked to stop.
        slot: Where the loop leaves its progress.
        reporter: Told what the loop does not know: preparation, checkpoints.
        clock: Time.
        warnings: Collects what the run result tells the user besides its outcome.
        wait_for_torch: Returns once torch is imported; see `runtime.import_in_thread`.
    """

    request: RunRequest
    stops: StopRequests
    slot: ProgressSlot
    reporter: Reporter
    clock: Clock
    warnings: RunWarnings
    wait_for_torch: Callable[[Callable[[], None]], None]

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(self.request.output_folder)


def run(
    read: Callable[[], PlacedRequest],
    runtime: Runtime,
    *,
    signals: int,
    wait_for_torch: Callable[[Callable[[], None]], None],
) -> int:
    """Do what a request asks; never raises for what can go wrong with it.

    Args:
        read: Reads the request; raises KtrdrError.
        runtime: What surrounds the process.
        signals: From `runtime.catch_signals`.
        wait_for_torch: From `runtime.import_in_thread`.

    Returns:
        The exit code, see `run_contract.ExitCode`.
    """
    stops = StopRequests(StopToken())
    listen(signals, lambda number: stops.ask(_reason_of(number)))
    logs.set_up()
    request, warnings = None, RunWarnings()
    try:
        placed = read()
        request = placed.request
        sink, job = _reporting(request, runtime, stops)
    except KtrdrError as error:
        LOGGER.error("%s", error)
        last = result.failed(request, error)
        result.tell_kubelet(last, runtime.termination_log, warn=warnings.add)
        return last.exit_code
    logs.set_up(_log_context(request))
    clock, slot = system_clock(), ProgressSlot()
    reporter = Reporter(
        slot,
        RunView(attempt=request.attempt, pod_uid=runtime.pod_uid),
        sink=sink,
        stops=stops,
        clock=clock,
        pace=_pace(request),
        warn=warnings.add,
    )
    reporter.start()
    if job is not None:
        job.start_watch()
    context = RunContext(request, stops, slot, reporter, clock, warnings, wait_for_torch)
    return _ended(context, _attempted(placed, context), runtime).exit_code


def _attempted(placed: PlacedRequest, context: RunContext) -> RunResult:
    """The result, whatever happens. An error that we know is one message, without a traceback."""
    request, began = context.request, context.clock.monotonic()
    try:
        last = _work(placed, context)
    except CancellationError:
        last = result.stopped(request, context.stops)
    except KtrdrError as error:
        last = result.failed(request, error)
    except MemoryError:
        text = "out of memory: raise the memory limit, or use less data or a smaller batch_size"
        last = result.failed(request, KtrdrError(text))
    except OSError as error:
        last = result.failed(request, _temporary(error))
    except Exception as error:
        LOGGER.exception("The trainer has a defect, or its surroundings have")
        last = result.failed(request, error)
    seconds = round(context.clock.monotonic() - began)
    return last.model_copy(
        update={
            "duration_seconds": last.duration_seconds or seconds,
            "warnings": context.warnings.texts,
        }
    )


def _work(placed: PlacedRequest, context: RunContext) -> RunResult:
    request, source = context.request, read_strategy(placed)
    for warning in source.strategy.warnings():
        context.warnings.add(warning)
    stored = find_finished(context.output, request.job.uid, strategy=source.strategy.name)
    if stored is not None:
        LOGGER.info("An earlier attempt has stored the model already: %s", stored.path)
        point_latest(context.output / stored.path)  # it may have been killed just before
        return result.of_stored_model(request, stored)
    gpus = GpuCheck(request.gpus, context.wait_for_torch)

    def check_stop() -> None:
        context.stops.token.raise_if_cancelled()
        gpus.raise_if_failed()

    dataset = _prepared(source.strategy, context, check_stop)
    context.wait_for_torch(check_stop)
    gpus.wait(check_stop)
    # Imported late: `training` imports torch, which loads while the pipeline reads.
    from ktrdr_trainer.training import train_and_store

    return train_and_store(context, source, dataset)


def _prepared(
    strategy: Strategy, context: RunContext, check_stop: Callable[[], None]
) -> "PreparedDataset":
    # Imported late: a request that is refused does not need it.
    from ktrdr_trainer.pipeline.prepare import prepare

    stages = {"load": ("Reading market data", 0.0), "features": ("Computing features", 0.5)}

    def on_stage(name: str) -> None:
        message, prepared = stages[name]
        context.reporter.update(message=message, prepared=prepared, urgent=True)

    folder = Path(context.request.data_folder)
    dataset = prepare(strategy, folder, check_stop=check_stop, on_stage=on_stage)
    for warning in dataset.warnings:
        context.warnings.add(warning)
    context.reporter.update(message="", prepared=1.0)
    return dataset


def _ended(context: RunContext, last: RunResult, runtime: Runtime) -> RunResult:
    """Store the result and send the last report; store again what both have changed."""
    stops = context.stops
    _store(context, last, runtime)
    level = LOGGER.error if last.outcome is Outcome.FAILED else LOGGER.info
    level("%s: %s", last.outcome, last.message, extra={"fields": {"exitCode": last.exit_code}})
    context.reporter.close(message=last.message, done=last.outcome is Outcome.SUCCEEDED)
    settled = result.settled(last, stops)
    final = settled.model_copy(update={"warnings": context.warnings.texts})
    if final != last:
        _store(context, final, runtime)
    return final


def _store(context: RunContext, last: RunResult, runtime: Runtime) -> None:
    if context.stops.superseded:  # the output folder is the later attempt's
        result.tell_kubelet(last, runtime.termination_log, warn=context.warnings.add)
    else:
        result.store(
            last,
            request=context.request,
            termination_log=runtime.termination_log,
            warn=context.warnings.add,
        )


def _reporting(
    request: RunRequest, runtime: Runtime, stops: StopRequests
) -> tuple[Sink, ClusterJob | None]:
    if request.reporting == "file":
        return FileSink(Path(request.output_folder)), None
    if request.reporting == "none":
        return NoSink(), None
    if runtime.api is None:
        raise BadRequestError(
            "reporting is kubernetes, but this is no pod (KUBERNETES_SERVICE_HOST is not set); "
            "use reporting file or none"
        )
    client = KubeClient(runtime.api)
    job = ClusterJob(client, request.job, attempt=request.attempt, stops=stops)
    return job, job


def _pace(request: RunRequest) -> Pace:
    pace = Pace(period_seconds=request.progress_period_seconds)
    # A server comes back; a folder that cannot be written now will not be in a minute.
    return pace if request.reporting == "kubernetes" else replace(pace, farewell_seconds=0.0)


def _log_context(request: RunRequest) -> dict[str, object]:
    job = request.job
    return {
        "namespace": job.namespace,
        "job": job.name,
        "uid": job.uid,
        "attempt": request.attempt,
    }


def _reason_of(number: Signals) -> StopReason:
    return StopReason.SIGTERM if number is SIGTERM else StopReason.INTERRUPT


def _temporary(error: OSError) -> TemporaryError:
    remedy = "; free space there, or enlarge the volume" if error.errno == errno.ENOSPC else ""
    return TemporaryError(f"{error.filename or 'system'}: {error.strerror or error}{remedy}")
