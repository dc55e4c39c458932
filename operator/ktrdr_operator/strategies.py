"""Strategy reader: text for an attempt that may start, inline, stored earlier, or from a ConfigMap.

A strategy is resolved once per job. If it does not fit into the pod, it is stored in a ConfigMap of
the job, from which later attempts read it: editing the user's ConfigMap does not change a running
job. A missing ConfigMap is read with growing pauses, up to one minute, however many jobs wait for
it: ConfigMaps are not watched, because a cluster has too many. Called by `observe`.
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
"""Pause for a job that was created after the last read, because its ConfigMap may have been created
with it. Not 0, because a thousand jobs may be created together."""
MAX_REMEMBERED: Final = 20_000
"""Maximum of missing keys remembered, about 400 bytes each. A forgotten one starts again with the
shortest pause."""


@dataclass(frozen=True)
class _Missing:
    problem: str
    read_at: float
    pause_seconds: float
    """Seconds until the next read; doubled each time."""


@dataclass
class StrategyReader:
    """Reads strategies and remembers missing ones."""

    cluster: ClusterApi
    clock: Callable[[], float]
    """Monotonic seconds."""
    _missing: OrderedDict[tuple[str, str, str], _Missing] = field(default_factory=OrderedDict)
    """By namespace, name and key."""

    async def read(self, job: JobView, *, first_seen: float) -> StrategyText:
        """Read the strategy of the next attempt.

        Args:
            job: The TrainingJob.
            first_seen: When this process first saw the job. An earlier answer does not apply to a
                ConfigMap that was created together with the job.

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
        """Read the text that a previous attempt has stored; None for the first attempt."""
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
        # Existing keys are not listed: the user may not have the right to read the ConfigMap.
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
