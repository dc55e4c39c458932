"""500 TrainingJobs beside 500 bare pods and 500 batch/v1 Jobs on fake nodes: time, CPU, writes.

`make bench-apply`. The objects of a kind are created concurrently by one client, then deleted one
by one, against the stock limits of the API server, the scheduler and the controllers. An operator
of this checkout works on one fresh namespace; an installed one is scaled to zero meanwhile. Bare
pods and TrainingJobs take turns for several rounds, and what is printed are medians.

Seconds depend on the machine: they compare the kinds only where the scheduler's own limit of 50
pods per second is what bare pods wait for. CPU and writes do not:

- CPU of a process is what /proc says, from the first request until the API server is idle again, so
  that the work of garbage collection and late Events is in it. The rate of the idle processes,
  measured before every phase, is subtracted.
- Writes are the API server's own count of accepted POST, PUT, PATCH and DELETE requests of all
  clients: user, operator, scheduler, controllers, and kwok, which plays the kubelet. Left out are
  heartbeats (Leases, nodes), reviews, which store nothing, and Events, which are printed apart: the
  server drops them after an hour, and their writers drop them under load.

Exits 1 when a value is beyond its limit.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.accounting import (
    API_SERVER,
    COMPONENTS,
    CONTROLLERS,
    ETCD,
    IdleRate,
    Requests,
    find_control_plane,
    is_write,
    scrape,
)
from bench.apply_rounds import (
    BARE_PODS,
    BATCH_JOBS,
    COMING,
    GOING,
    KINDS,
    OUR_JOBS,
    Bench,
    Phase,
    Round,
)
from bench.environment import (
    Tools,
    fake_nodes,
    find_tools,
    installed_operators_scaled_down,
    own_namespace,
)
from bench.operator_process import OperatorExitedError, operator
from bench.thresholds import Threshold, summary
from ktrdr_client.cluster import Cluster

FAKE_NODES: Final = 50
PODS_PER_NODE: Final = 110
START_SECONDS: Final = 60.0
FIRST_IDLE_SECONDS: Final = 10.0
OTHER_WRITES_TOLERATED: Final = 0.3
"""Per second: a controller may write a status now and then."""
SCHEDULER_BURST: Final = 100
SCHEDULER_PODS_PER_SECOND: Final = 50.0
FLOOR_SLACK: Final = 1.25
"""Bare pods that need more than this times the scheduler's own time wait for the machine."""

RUNNING_GOAL, RUNNING_LIMIT = 1.5, 1.7
GONE_GOAL, GONE_LIMIT = 1.8, 2.2
CPU_GOAL, CPU_LIMIT = 2.0, 2.2
WRITES_GOAL = WRITES_LIMIT = 8.0
REQUESTS_SHOWN: Final = 14


@dataclass(frozen=True)
class Outcome:
    """All rounds, and what one object of each kind cost."""

    count: int
    rounds: dict[str, list[Round]]
    """By title of the kind."""
    idle: IdleRate
    other_writes: float
    """Writes of other clients while nothing was asked of the operator, per second."""

    def per_object(self, kind: str, of: Callable[[Round], Phase], what: str) -> float:
        """Median over the rounds of a column of the table, for one object."""
        phases = [of(found) for found in self.rounds[kind]]
        return statistics.median(self._column(phase, what) for phase in phases) / self.count

    def seconds(self, kind: str, of: Callable[[Round], Phase]) -> float:
        """Median over the rounds of the time until all objects were there, or gone."""
        return statistics.median(of(found).seconds for found in self.rounds[kind])

    def ratio(self, of: Callable[[Round], Phase], what: str = "") -> float:
        """TrainingJobs against bare pods: median of the ratios of neighbouring rounds."""

        def value(found: Round) -> float:
            return self._column(of(found), what) if what else of(found).seconds

        pairs = zip(self.rounds[OUR_JOBS.title], self.rounds[BARE_PODS.title], strict=True)
        return statistics.median(value(ours) / max(value(bare), 1e-9) for ours, bare in pairs)

    def stage(self, kind: str, of: Callable[[Round], Phase], stage: str) -> tuple[float, float]:
        """Median over the rounds of when half and when all objects had reached a stage."""
        found = [of(r).stages[stage] for r in self.rounds[kind]]
        half, last = (statistics.median(column) for column in zip(*found, strict=True))
        return half, last

    def _column(self, phase: Phase, what: str) -> float:
        if what in COMPONENTS:
            return phase.cpu_milliseconds(what, self.idle)
        counts = {
            "writes": phase.requests.writes,
            "events": phase.requests.events,
            "refused": phase.requests.refused,
        }
        return counts[what]()


def coming(found: Round) -> Phase:
    """Creation until all run."""
    return found.coming


def going(found: Round) -> Phase:
    """Deletion until all are gone."""
    return found.going


PHASES: Final = {
    "from creation to Running": (coming, COMING),
    "from deletion to gone": (going, GOING),
}
COLUMNS: Final = (*COMPONENTS, "writes", "events", "refused")


def print_costs(outcome: Outcome) -> None:
    """Seconds, CPU, and requests of each kind, coming and going apart."""
    print(f"{'':<26}{'all done':>10}  {'CPU milliseconds per object':<48}{'requests per object'}")
    print(f"{'':<26}{'s':>10}" + "".join(f"{column:>12}" for column in COLUMNS))
    for title, (of, _) in PHASES.items():
        print(title)
        for kind in KINDS:
            if kind.title in outcome.rounds:
                cells = [outcome.per_object(kind.title, of, column) for column in COLUMNS]
                seconds = outcome.seconds(kind.title, of)
                print(f"  {kind.title:<24}{seconds:>10.1f}" + "".join(f"{c:>12.2f}" for c in cells))
        compared = (API_SERVER, ETCD, CONTROLLERS)
        ratios = [f"{outcome.ratio(of, column):>11.2f}x" for column in compared]
        print(f"  {'TrainingJobs : bare pods':<24}{outcome.ratio(of):>9.2f}x" + "".join(ratios))


def print_stages(outcome: Outcome) -> None:
    """When half and all of the objects had reached each stage."""
    kinds = [kind.title for kind in KINDS if kind.title in outcome.rounds]
    print(f"{'stages, s (half / all)':<26}" + "".join(f"{kind:>20}" for kind in kinds))
    for title, (of, stages) in PHASES.items():
        print(title)
        for stage in stages:
            cells = ["{:.1f} / {:.1f}".format(*outcome.stage(kind, of, stage)) for kind in kinds]
            print(f"  {stage:<24}" + "".join(f"{cell:>20}" for cell in cells))


def print_requests(outcome: Outcome) -> None:
    """Requests of all clients per TrainingJob, most expensive first: where the time goes."""
    print(f"{'requests per TrainingJob':<52}{'number':>10}{'ms each':>10}{'ms in all':>11}")
    for title, (of, _) in PHASES.items():
        print(title)
        requests = of(outcome.rounds[OUR_JOBS.title][-1]).requests
        numbers: dict[tuple[str, ...], float] = {}
        for key, number in requests.counts.items():
            numbers[key[:-1]] = numbers.get(key[:-1], 0.0) + number
        seconds = {
            what: requests.seconds.get(what, 0.0)
            for what, number in numbers.items()
            if number >= outcome.count / 100 and (is_write(*what) or what[0] in ("GET", "LIST"))
        }
        for what in sorted(seconds, key=lambda key: -seconds[key])[:REQUESTS_SHOWN]:
            verb, group, resource, subresource = what
            typed = ".".join(part for part in (resource, group) if part)
            name = f"{verb:<7}{'/'.join(part for part in (typed, subresource) if part)}"
            each, number = 1000 * seconds[what] / numbers[what], numbers[what] / outcome.count
            print(f"  {name:<50}{number:>10.2f}{each:>10.1f}{each * number:>11.1f}")


def scheduler_floor_seconds(count: int) -> float:
    """Time that the scheduler's own rate limit takes to bind so many pods."""
    return max(count - SCHEDULER_BURST, 0) / SCHEDULER_PODS_PER_SECOND


def thresholds(outcome: Outcome) -> list[Threshold]:
    """All that is judged."""
    bare = outcome.seconds(BARE_PODS.title, coming)
    floor = scheduler_floor_seconds(outcome.count)
    excuse = (
        ""
        if bare <= FLOOR_SLACK * floor
        else f"bare pods took {bare:.1f} s, the scheduler's limit alone allows {floor:.1f} s"
    )
    writes = sum(outcome.per_object(OUR_JOBS.title, of, "writes") for of, _ in PHASES.values())
    return [
        Threshold("time until all run : bare pods", outcome.ratio(coming), RUNNING_GOAL,
                  RUNNING_LIMIT, "x", excuse=excuse),
        Threshold("time until all are gone : bare pods", outcome.ratio(going), GONE_GOAL,
                  GONE_LIMIT, "x", excuse=excuse),
        Threshold("API server CPU, creation to Running : bare pods",
                  outcome.ratio(coming, API_SERVER), CPU_GOAL, CPU_LIMIT, "x"),
        Threshold("API server CPU, deletion to gone : bare pods",
                  outcome.ratio(going, API_SERVER), CPU_GOAL, CPU_LIMIT, "x"),
        Threshold("writes over the life of a TrainingJob", writes, WRITES_GOAL, WRITES_LIMIT,
                  digits=1),
    ]  # fmt: skip


def readme_sentence(outcome: Outcome) -> str:
    """The comparison that the README quotes."""
    kinds = [kind.title for kind in reversed(KINDS) if kind.title in outcome.rounds]
    times = ", ".join(
        f"{outcome.count} {kind} run after {outcome.seconds(kind, coming):.0f} s" for kind in kinds
    )
    cpu = ", ".join(f"{outcome.per_object(kind, coming, API_SERVER):.0f}" for kind in kinds)
    return (
        f"Created concurrently, {times}; until then the API server spends {cpu} ms of CPU on each "
        f"(Kubernetes 1.36, stock limits, {os.cpu_count()} cores)."
    )


def report(outcome: Outcome) -> int:
    """Print the table and the summary; returns the exit code."""
    numbers = ", ".join(f"{len(found)} of {kind}" for kind, found in outcome.rounds.items())
    print(
        f"bench-apply: {outcome.count} objects of each kind on {FAKE_NODES} fake nodes; medians of "
        f"rounds ({numbers}); idle CPU subtracted: "
        + ", ".join(f"{name} {outcome.idle.of(name):.3f}" for name in COMPONENTS)
        + " cores"
    )
    if outcome.other_writes > OTHER_WRITES_TOLERATED:
        print(
            f"WARNING: other clients write {outcome.other_writes:.1f} objects per second to this "
            "cluster; CPU and writes are too high, run it again on an otherwise idle cluster"
        )
    print_costs(outcome)
    print_stages(outcome)
    print_requests(outcome)
    judged = thresholds(outcome)
    print("thresholds")
    for threshold in judged:
        print(threshold.line())
    print(f"for the README: {readme_sentence(outcome)}")
    text = (
        f"{outcome.count} TrainingJobs run in {outcome.seconds(OUR_JOBS.title, coming):.1f} s "
        f"({judged[0].value:.2f}x bare pods), gone in "
        f"{outcome.seconds(OUR_JOBS.title, going):.1f} s ({judged[1].value:.2f}x), API server CPU "
        f"{judged[2].value:.2f}x and {judged[3].value:.2f}x, {judged[4].value:.1f} writes"
    )
    line, code = summary("bench-apply", text, judged)
    print(line)
    return code


async def bench(tools: Tools, namespace: str, given: argparse.Namespace, log: Path) -> Outcome:
    """All rounds: bare pods and TrainingJobs in turns, batch/v1 Jobs between them."""
    cluster = await Cluster.connect(kubeconfig=tools.kubeconfig)
    rounds: dict[str, list[Round]] = {}
    settings = {"KTRDR_WATCH_NAMESPACES": namespace}
    try:
        async with operator(tools, cluster, log=log, settings=settings) as process:
            await process.wait_for_watches(cluster, START_SECONDS)
            plane = find_control_plane(tools.kubeconfig).with_operator(process.pid)
            found = Bench(cluster, plane, namespace, given.count)
            await asyncio.sleep(FIRST_IDLE_SECONDS)
            requests = Requests.of(await scrape(cluster))
            await found.idle.sample(plane, FIRST_IDLE_SECONDS)
            others = Requests.of(await scrape(cluster)).since(requests).writes()
            for turn in range(given.rounds):
                pair = [BARE_PODS, OUR_JOBS] if turn % 2 == 0 else [OUR_JOBS, BARE_PODS]
                for kind in [*pair, *([BATCH_JOBS] if turn < given.job_rounds else [])]:
                    note(f"round {turn + 1} of {given.rounds}: {given.count} {kind.title}")
                    rounds.setdefault(kind.title, []).append(await found.round(kind))
    finally:
        await cluster.close()
    return Outcome(given.count, rounds, found.idle, others / FIRST_IDLE_SECONDS)


def note(text: str) -> None:
    """Tell a waiting user what happens; the table alone goes to standard output."""
    print(f"bench-apply: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Set up, measure, clean up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="objects of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="of bare pods and TrainingJobs")
    parser.add_argument("--job-rounds", type=int, default=1, help="of batch/v1 Jobs")
    given = parser.parse_args()
    tools = find_tools()
    with (
        tempfile.TemporaryDirectory() as logs,
        installed_operators_scaled_down(tools),
        fake_nodes(tools, FAKE_NODES, PODS_PER_NODE),
        own_namespace(tools) as namespace,
    ):
        try:
            outcome = asyncio.run(bench(tools, namespace, given, Path(logs) / "operator.log"))
        except (OperatorExitedError, TimeoutError) as error:
            sys.exit(f"bench-apply: {error}")
    return report(outcome)


if __name__ == "__main__":
    sys.exit(main())
