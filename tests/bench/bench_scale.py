"""The operator with 2,500 and with 10,000 TrainingJobs: start, memory, pauses, resync, reports.

`make bench-scale`. The real operator process, with the chart's settings, against a real API server
and etcd with stock settings, which are started for it. Nine of ten TrainingJobs have finished, one
runs; each has its pod. They are seeded, not trained: the benchmark plays user, scheduler, kubelet
and trainers. What is measured, for each size:

- cold start: from the start of the process until the API server counts an open watch of
  TrainingJobs and one of pods;
- memory and pauses: largest resident set, and longest time for which the event loop stood still,
  of every process of this run;
- resync: CPU of the process for one full list with nothing changed, and how long TrainingJobs that
  are created meanwhile wait for their pod;
- reports (for the largest size): all running jobs report as often as they are allowed to; one of
  ten has a strategy of 64 KiB. The growth of etcd is the size of all revisions that it stores, of
  all writers together, extrapolated to ten minutes: that is how long revisions may stay, because
  the API server compacts every 5 minutes what is 5 minutes old.

Exits 1 when a value is beyond its limit.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.environment import find_programs
from bench.operator_process import OperatorExitedError, operator
from bench.own_api_server import OwnApiServer, own_api_server
from bench.scale_phases import (
    RESYNC_SECONDS,
    START_SECONDS,
    ColdStart,
    ReportRates,
    Resync,
    Scale,
)
from bench.seeding import LARGE_EVERY, NODE, RUNNING_EVERY, Seeder, Templates
from bench.thresholds import Threshold, summary
from bench.writes import Writer
from ktrdr_client.cluster import NAMESPACES, Cluster, Resource

SIZES: Final = (2_500, 10_000)
QUICK_SIZES: Final = (300,)
NAMESPACE: Final = "bench"
NODES: Final = Resource("v1", "Node", "nodes", namespaced=False)
SLACK: Final = 1.3
"""Limits are the goals times this."""
COLD_START_GOAL_SECONDS: Final = 20.0
MEMORY_GOAL_MEGABYTES: Final = 350.0
PAUSE_GOAL_MILLISECONDS: Final = 200.0
RESYNC_GOAL_SECONDS: Final = 3.0
REPORTS_GOAL_PER_SECOND: Final = 60.0
HISTORY_GOAL_MEGABYTES: Final = 600.0


@dataclass(frozen=True)
class Size:
    """What was measured with one number of TrainingJobs."""

    jobs: int
    seed_seconds: float
    cold_start: ColdStart
    resync: Resync
    peak_megabytes: float
    pause_seconds: float
    pause_how: str
    remarks: list[str]
    reports: ReportRates | None
    """None where none were measured."""


@dataclass
class Bench:
    """One run, all sizes."""

    server: OwnApiServer
    writer: Writer
    log: Path

    async def run(self, sizes: Sequence[int]) -> list[Size]:
        """Measure one size after the other; objects are added, never removed."""
        for resource, name in ((NAMESPACES, NAMESPACE), (NODES, NODE)):
            body = {"apiVersion": "v1", "kind": resource.kind, "metadata": {"name": name}}
            await self.writer.cluster.create(resource, body)
        seeder = Seeder(self.writer, self.server.etcd, NAMESPACE)
        note("making the TrainingJobs that are copied")
        templates = await self._templates(seeder)
        found: list[Size] = []
        for jobs in sizes:
            began = time.monotonic()
            done = found[-1].jobs if found else 0
            note(f"seeding {jobs - done:,} TrainingJobs with their pods")
            await seeder.seed(templates, done, jobs)
            seconds = time.monotonic() - began
            found.append(await self._measure(jobs, seconds, with_reports=jobs == sizes[-1]))
        return found

    async def _templates(self, seeder: Seeder) -> Templates:
        cluster = self.writer.cluster
        async with operator(self.server.tools, cluster, log=self.log, settings={}) as process:
            await process.wait_for_watches(cluster, START_SECONDS)
            templates = await seeder.make_templates()
        await seeder.remove_templates(templates)
        return templates

    async def _measure(self, jobs: int, seed_seconds: float, *, with_reports: bool) -> Size:
        server = self.server
        scale = Scale(server.tools, self.writer, server.plane, server.etcd, NAMESPACE, self.log)
        note(f"{jobs:,}: an operator that corrects what was seeded")
        await scale.warm_up()
        note(f"{jobs:,}: cold start{' and reports' if with_reports else ''}")
        async with scale.operator() as process:
            cold_start = await scale.cold_start(process)
            reports = await scale.reports(process) if with_reports else None
        note(f"{jobs:,}: resyncs")
        async with scale.operator(KTRDR_RESYNC_SECONDS=f"{RESYNC_SECONDS:g}") as process:
            resync = await scale.resync(process, cold_start.idle_cores)
        return Size(
            jobs,
            seed_seconds,
            cold_start,
            resync,
            scale.peak_megabytes,
            scale.pause_seconds,
            scale.pause_how,
            scale.remarks,
            reports,
        )


def thresholds(sizes: Sequence[Size]) -> list[Threshold]:
    """All that is judged."""
    found = []
    for size in sizes:
        values = {
            "cold start": (size.cold_start.watching_seconds, COLD_START_GOAL_SECONDS, " s", 1),
            "peak memory": (size.peak_megabytes, MEMORY_GOAL_MEGABYTES, " MB", 0),
            "longest pause": (1000 * size.pause_seconds, PAUSE_GOAL_MILLISECONDS, " ms", 0),
            "resync CPU": (size.resync.cpu_seconds, RESYNC_GOAL_SECONDS, " s", 2),
        }
        if size.reports:
            reports = size.reports
            rate = reports.judged_per_second
            values["reports per second"] = (rate, REPORTS_GOAL_PER_SECOND, "", 1)
            growth = reports.history_megabytes
            values["etcd growth in ten minutes"] = (growth, HISTORY_GOAL_MEGABYTES, " MB", 0)
        found += [
            Threshold(f"{title}, {size.jobs:,} TrainingJobs", value, goal, goal * SLACK, unit,
                      digits=digits)
            for title, (value, goal, unit, digits) in values.items()
        ]  # fmt: skip
    return found


def rows(size: Size) -> dict[str, str]:
    """One column of the table, by title of the row."""
    start, resync = size.cold_start, size.resync
    running = -(-size.jobs // RUNNING_EVERY)
    return {
        "running / finished": f"{running:,} / {size.jobs - running:,}",
        "seeding, s": f"{size.seed_seconds:.0f}",
        "cold start: watches open after, s": f"{start.watching_seconds:.1f}",
        "cold start: CPU until then, s": f"{start.cpu_seconds:.1f}",
        "cold start: idle after, s": f"{start.settled_seconds:.1f}",
        "cold start: writes meanwhile": f"{start.writes:.0f}",
        "idle operator, cores": f"{start.idle_cores:.3f}",
        "peak resident memory, MB": f"{size.peak_megabytes:.0f}",
        "longest pause of the event loop, ms": f"{1000 * size.pause_seconds:.0f}",
        "CPU of one resync, s": f"{resync.cpu_seconds:.2f}",
        f"new job's pod during resyncs, ms: median of {resync.probes}": (
            f"{1000 * resync.pod_exists_median_seconds:.0f}"
        ),
        "new job's pod during resyncs, ms: longest": (
            f"{1000 * resync.pod_exists_longest_seconds:.0f}"
        ),
    }


def report_rows(found: ReportRates) -> dict[str, str]:
    """The same for reports."""
    periods = " ".join(f"{period:g}" for period in found.periods)
    each = 1000 / found.per_second if found.per_second else 0.0
    return {
        "running jobs that report": f"{found.trainers:,}, 1 of {LARGE_EVERY} with 64 KiB strategy",
        "periods they were told, s": periods,
        "reports per second": f"{found.per_second:.1f} (for {found.seconds:.0f} s)",
        "reports per second that their periods permit": f"{found.permitted_per_second:.1f}",
        "reports refused": f"{found.refused}",
        "objects written, MB per second": f"{found.object_bytes_per_second / 1e6:.3f}",
        "etcd: revisions stored, MB per second": f"{found.etcd_bytes_per_second / 1e6:.3f}",
        "etcd: log written, MB per second": f"{found.etcd_log_bytes_per_second / 1e6:.3f}",
        "etcd growth in ten minutes, MB": f"{found.history_megabytes:.0f}",
        "API server, ms of CPU per report": f"{found.api_server_cores * each:.1f}",
        "etcd, ms of CPU per report": f"{found.etcd_cores * each:.1f}",
        "operator, ms of CPU per report": f"{found.operator_cores * each:.1f}",
    }


def report(sizes: Sequence[Size]) -> int:
    """Print the table and the summary; returns the exit code."""
    columns = [rows(size) for size in sizes]
    print(f"{'TrainingJobs':<52}" + "".join(f"{size.jobs:>16,}" for size in sizes))
    for number, title in enumerate(columns[0]):
        cells = [list(column.values())[number] for column in columns]
        print(f"{title:<52}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"longest pause: {sizes[-1].pause_how}")
    for size in sizes:
        for remark in size.remarks:
            print(f"{size.jobs:,} TrainingJobs, {remark}")
    reports = sizes[-1].reports
    if reports:
        for title, cell in report_rows(reports).items():
            print(f"{title:<52}{cell}")
    judged = thresholds(sizes)
    print("thresholds")
    for threshold in judged:
        print(threshold.line())
    last = sizes[-1]
    text = (
        f"{last.jobs:,} TrainingJobs: watches open after {last.cold_start.watching_seconds:.1f} s, "
        f"{last.peak_megabytes:.0f} MB, longest pause {1000 * last.pause_seconds:.0f} ms, resync "
        f"{last.resync.cpu_seconds:.2f} s of CPU"
    )
    if reports:
        text += (
            f"; {reports.trainers:,} trainers send {reports.judged_per_second:.1f} reports per "
            f"second, etcd grows by {reports.history_megabytes:.0f} MB in ten minutes"
        )
    line, code = summary("bench-scale", text, judged)
    print(line)
    return code


async def bench(server: OwnApiServer, sizes: Sequence[int], log: Path) -> list[Size]:
    """All sizes."""
    cluster = await Cluster.connect(kubeconfig=server.tools.kubeconfig)
    try:
        async with cluster.open_session(limit=64) as session:
            return await Bench(server, Writer(cluster, session), log).run(sizes)
    finally:
        await cluster.close()


def note(text: str) -> None:
    """Tell a waiting user what happens; the table alone goes to standard output."""
    print(f"bench-scale: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Set up, measure, clean up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--jobs", type=int, nargs="+", default=SIZES, help="numbers of TrainingJobs, ascending"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"only {QUICK_SIZES[0]} TrainingJobs: a smoke test"
    )
    parser.add_argument("--log", type=Path, help="where to keep the log of the last operator")
    given = parser.parse_args()
    sizes = QUICK_SIZES if given.quick else sorted(given.jobs)
    with (
        tempfile.TemporaryDirectory() as logs,
        own_api_server(find_programs()) as server,
    ):
        log = given.log or Path(logs) / "operator.log"
        try:
            found = asyncio.run(bench(server, sizes, log))
        except (OperatorExitedError, TimeoutError) as error:
            sys.exit(f"bench-scale: {error or 'the first operator did not start in time'}")
    return report(found)


if __name__ == "__main__":
    sys.exit(main())
