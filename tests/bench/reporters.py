"""Reporters: a thousand trainers that report progress, played by one program.

Called by `bench_scale`. Each waits between two reports as the trainer's reporter does: at least
`spec.progress.periodSeconds`, and at least `status.reportPeriodSeconds` as last seen. Like the
trainer it learns that from the answers to its own reports and from a watch; one watch serves all.
Only routine reports are sent: no stage changes while they are counted.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

import aiohttp
import orjson

from bench.seeding import RUNNING, STATE_LABEL, progress
from bench.watching import watching
from bench.writes import Raw, Writer
from ktrdr_api import names
from ktrdr_api.training_job import ProgressSettings
from ktrdr_client.cluster import TRAINING_JOBS, ApiError

SEED: Final = 7


@dataclass
class Trainer:
    """One running TrainingJob."""

    name: str
    pod_uid: str
    own_period_seconds: float
    told_period_seconds: float
    step: int

    def period_seconds(self) -> float:
        """Minimum time between two of its reports."""
        return max(self.own_period_seconds, self.told_period_seconds)


@dataclass
class Reports:
    """What all trainers together have sent."""

    accepted: int = 0
    refused: int = 0
    size_bytes: int = 0
    """Objects as they were after each report: that is what etcd keeps of every revision."""


@dataclass
class Reporters:
    """All trainers of a namespace."""

    writer: Writer
    namespace: str
    reports: Reports = field(default_factory=Reports)
    trainers: dict[str, Trainer] = field(default_factory=dict)
    """By UID of the TrainingJob."""

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Report until the block ends."""
        jobs, _ = await self.writer.cluster.list(
            TRAINING_JOBS, self.namespace, label_selector=f"{STATE_LABEL}={RUNNING}"
        )
        self.trainers = {raw["metadata"]["uid"]: trainer_of(raw) for raw in jobs}
        random = Random(SEED)  # noqa: S311 - spreads the first reports, guards nothing
        handlers = {TRAINING_JOBS: lambda _, raw: self._learn(raw)}
        async with watching(self.writer.cluster, self.namespace, handlers):
            tasks = [
                asyncio.create_task(self._play(trainer, random.random()))
                for trainer in self.trainers.values()
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def periods(self) -> list[float]:
        """Periods that the trainers keep now, each once, in order."""
        return sorted({trainer.period_seconds() for trainer in self.trainers.values()})

    def permitted_per_second(self) -> float:
        """Reports that the periods allow to all trainers together."""
        return sum(1 / trainer.period_seconds() for trainer in self.trainers.values())

    def _learn(self, raw: Raw) -> None:
        trainer = self.trainers.get(raw["metadata"]["uid"])
        if trainer is not None:
            told = raw.get("status", {}).get("reportPeriodSeconds")
            trainer.told_period_seconds = float(told or 0)

    async def _play(self, trainer: Trainer, share: float) -> None:
        """Report forever; the first report comes after a share of the period."""
        reported = time.monotonic() - (1 - share) * trainer.period_seconds()
        while True:
            # As the trainer does: a period that has grown meanwhile counts, a shorter one comes
            # into effect with the next report.
            while (left := reported + trainer.period_seconds() - time.monotonic()) > 0:
                await asyncio.sleep(left)
            reported = time.monotonic()
            trainer.step += 1
            await self._report(trainer)

    async def _report(self, trainer: Trainer) -> None:
        status = {"progress": progress(trainer.pod_uid, trainer.step)}
        try:
            answer = await self.writer.apply_status(
                self.namespace, trainer.name, status, manager=names.TRAINER_MANAGER
            )
        except (ApiError, aiohttp.ClientError, TimeoutError):
            self.reports.refused += 1
            return
        self.reports.accepted += 1
        self.reports.size_bytes += len(orjson.dumps(answer))
        self._learn(answer)


def trainer_of(raw: Raw) -> Trainer:
    """The trainer of a TrainingJob as the API server shows it."""
    status = raw["status"]
    own = raw["spec"].get("progress", {}).get("periodSeconds")
    return Trainer(
        name=raw["metadata"]["name"],
        pod_uid=status["progress"]["podUID"],
        own_period_seconds=float(own or ProgressSettings().period_seconds),
        told_period_seconds=float(status.get("reportPeriodSeconds") or 0),
        step=status["progress"]["step"],
    )
