"""Strategies of attempts that are about to start: inline, resolved earlier, or from a ConfigMap.

A strategy is resolved once per job. One that does not fit into the pod is stored in a ConfigMap of
the job, and later attempts take it from there: editing the user's ConfigMap does not change a
running job. A missing one is read less and less often, in the end once per minute, however many
jobs wait for it: ConfigMaps are not watched (there are too many).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from ktrdr_api import names
from ktrdr_api.training_job import STRATEGY_MAX_BYTES, ConfigMapKeyRef
from ktrdr_client.cluster import CONFIG_MAPS, ClusterApi
from ktrdr_operator.snapshot import JobView, StrategyText
from ktrdr_operator.views import Raw, sanitize, training_job_uid

REREAD_MIN_SECONDS: Final = 5.0
REREAD_MAX_SECONDS: Final = 60.0
REREAD_FOR_NEW_JOB_SECONDS: Final = 1.0
"""For a job that has come after the last read: its ConfigMap may have come with it. Not at once, as
a thousand jobs may come together."""
MAX_REMEMBERED: Final = 20_000
"""ConfigMaps, some 400 bytes each. One that is forgotten is read as often as in the beginning."""


@dataclass(frozen=True)
class _Missing:
    problem: str
    read_at: float
    pause_seconds: float
    """Until the next read; doubled each time."""


@dataclass
class StrategyReader:
    """Reads strategies; remembers which ones are missing."""

    cluster: ClusterApi
    clock: Callable[[], float]
    """Monotonic seconds."""
    _missing: OrderedDict[tuple[str, str, str], _Missing] = field(default_factory=OrderedDict)
    """By namespace, name and key."""

    async def read(self, job: JobView, *, first_seen: float) -> StrategyText:
        """Read the strategy of the next attempt.

        Args:
            job: The TrainingJob.
            first_seen: When this process first saw the job: an answer from before says nothing
                about a ConfigMap that was applied together with it.

        Raises:
            ApiError: The API server did not answer.
        """
        source = job.spec.strategy
        if source.inline is not None:
            return StrategyText(text=source.inline)
        ref = source.config_map_key_ref
        if ref is None:
            return StrategyText(
                problem="spec.strategy names no source; set inline or configMapKeyRef"
            )
        if (resolved := await self._read_resolved(job)) is not None:
            return StrategyText(text=resolved, is_stored=True)
        return await self._read_reference(job, ref, first_seen)

    async def _read_resolved(self, job: JobView) -> str | None:
        """Text that an earlier attempt has stored; the first attempt has none."""
        if job.status.observed_generation < 0 and job.status.attempt == 0:
            return None
        name = names.strategy_name(job.name, job.uid)
        stored = await self.cluster.get(CONFIG_MAPS, job.namespace, name)
        if stored is None or training_job_uid(stored["metadata"]) != job.uid:
            return None
        return str(stored["data"][names.STRATEGY_FILE])

    async def _read_reference(
        self, job: JobView, ref: ConfigMapKeyRef, first_seen: float
    ) -> StrategyText:
        key, now = (job.namespace, ref.name, ref.key), self.clock()
        known = self._missing.get(key)
        is_new_job = known is not None and known.read_at < first_seen
        if known is not None:
            pause = REREAD_FOR_NEW_JOB_SECONDS if is_new_job else known.pause_seconds
            if (left := known.read_at + pause - now) > 0:
                return StrategyText(problem=known.problem, retry_seconds=left)
        found = _find(job, ref, await self.cluster.get(CONFIG_MAPS, job.namespace, ref.name))
        self._missing.pop(key, None)
        if not found.problem:
            return found
        pause = REREAD_MIN_SECONDS
        if known is not None and not is_new_job:
            pause = min(2 * known.pause_seconds, REREAD_MAX_SECONDS)
        self._missing[key] = _Missing(found.problem, now, pause)
        if len(self._missing) > MAX_REMEMBERED:
            self._missing.popitem(last=False)
        return replace(found, retry_seconds=pause)


def _find(job: JobView, ref: ConfigMapKeyRef, config_map: Raw | None) -> StrategyText:
    where = f'ConfigMap "{ref.name}" in namespace "{job.namespace}"'
    if config_map is None:
        return StrategyText(problem=f"{where} does not exist; create it and the job starts")
    text = config_map.get("data", {}).get(ref.key)
    if text is None:
        # Not the keys that it has: who may create TrainingJobs may not be allowed to read it.
        return StrategyText(
            problem=f'{where} has no key "{ref.key}" (its keys: kubectl describe configmap '
            f"{ref.name} -n {job.namespace}); add the key and the job starts"
        )
    if len(text.encode()) > STRATEGY_MAX_BYTES:
        return StrategyText(
            problem=sanitize(
                f'Key "{ref.key}" of {where} has {len(text.encode())} bytes, the limit is '
                f"{STRATEGY_MAX_BYTES}; make the strategy smaller"
            )
        )
    return StrategyText(text=text)
