"""Leader election through a Lease: at most one of several operators works.

Own code, because the official client's asyncio election does not release the Lease on exit, so that
every upgrade waits 15 s, does not measure with a monotonic clock, and loads the typed API classes.
Rules and times are client-go's. `__main__` acquires, holds and releases; all other modules are
written as if two operators might work at the same time.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from ktrdr_client.cluster import LEASES, AlreadyExists, ApiError, ClusterApi, Conflict
from ktrdr_operator.views import Raw

log: Final = logging.getLogger(__name__)

LEASE_NAME: Final = "ktrdr-operator"
"""Default name of the Lease. The chart names it after the release: two releases in one namespace
must not share one, or the second would wait forever."""
LEASE_SECONDS: Final = 15
"""A Lease that has not been renewed for this long may be taken by another operator."""
RENEW_SECONDS: Final = 10.0
"""A leader that cannot renew for this long stops, well before another one starts."""
RETRY_SECONDS: Final = 2.0
RELEASE_SECONDS: Final = 5.0
"""Limit of the release: a server that does not answer must not delay the exit of the process."""


class LeaseLostError(Exception):
    """Another operator may lead by now; the process must exit."""


@dataclass
class Leader:
    """This process as a candidate for the Lease.

    `hold` must run from the moment when `acquire` returns: a Lease that is not renewed is taken by
    another operator after LEASE_SECONDS, whatever this process is doing meanwhile.
    """

    cluster: ClusterApi
    namespace: str
    name: str
    """Name of the Lease."""
    identity: str
    now: Callable[[], datetime]
    """Wall clock, UTC; only shown in the Lease."""
    clock: Callable[[], float]
    """Monotonic seconds. Times written by other processes are never compared with it."""
    _observed: Raw | None = field(default=None, init=False)
    """Latest known spec of the Lease."""
    _observed_at: float = field(default=0.0, init=False)
    """When that spec was first observed."""
    _renewed_at: float = field(default=0.0, init=False)
    """When the latest successful write of the Lease was sent."""

    async def acquire(self, heartbeat: Callable[[], None]) -> None:
        """Wait until this process leads; `heartbeat` is called after every failed try."""
        while not await self._try_within(RENEW_SECONDS):
            heartbeat()
            await asyncio.sleep(RETRY_SECONDS)
        log.info("Became leader as %s", self.identity)

    async def hold(self, heartbeat: Callable[[], None]) -> None:
        """Renew forever; `heartbeat` is called after every renewal.

        Raises:
            LeaseLostError: not renewed for RENEW_SECONDS, or taken by another operator.
        """
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            left = self._renewed_at + RENEW_SECONDS - self.clock()
            # Not even tried when late: another operator may have led and released it meanwhile.
            if left > 0 and await self._try_within(left):
                heartbeat()
            elif self._is_held_by_other():
                raise LeaseLostError(f'Lease "{self.name}" is now held by {self._holder()}')
            elif self.clock() - self._renewed_at >= RENEW_SECONDS:
                raise LeaseLostError(
                    f'Lease "{self.name}" could not be renewed for {RENEW_SECONDS:.0f} s'
                )

    async def release(self) -> None:
        """Release the Lease so that another operator can lead immediately; no-op if not leading."""
        if self._holder() != self.identity:
            return
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                lease = await self.cluster.get(LEASES, self.namespace, self.name)
                if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                    await self.cluster.apply(LEASES, self._wanted(lease, holder=None))
                    log.info("Lease released")
        except (ApiError, TimeoutError) as error:
            log.warning(
                "Lease not released, other operators wait up to %d s: %s", LEASE_SECONDS, error
            )

    def _holder(self) -> str:
        return str((self._observed or {}).get("holderIdentity", ""))

    def _is_held_by_other(self) -> bool:
        return self._holder() not in ("", self.identity)

    async def _try_within(self, seconds: float) -> bool:
        """Acquire or renew once; False also when there is no answer in time."""
        try:
            async with asyncio.timeout(seconds):
                return await self._acquire_or_renew()
        except TimeoutError:
            log.warning("Lease: no answer from the API server within %.1f s", seconds)
            return False

    async def _acquire_or_renew(self) -> bool:
        """Acquire or renew once; False when another operator leads or the request failed."""
        try:
            lease = await self.cluster.get(LEASES, self.namespace, self.name)
            if lease is None:
                # With an empty spec: a later server-side apply cannot remove fields that were set
                # by a create, so `holderIdentity` could never be released.
                lease = await self.cluster.create(LEASES, self._empty())
            self._observe(lease)
            if self._is_held_by_other() and self.clock() < self._observed_at + LEASE_SECONDS:
                return False
            sent = self.clock()
            self._observe(await self.cluster.apply(LEASES, self._wanted(lease, self.identity)))
        except (AlreadyExists, Conflict):
            return False  # another candidate was faster
        except ApiError as error:
            log.warning("Lease: %s", error)
            return False
        self._renewed_at = sent
        return True

    def _observe(self, lease: Raw) -> None:
        if lease["spec"] != self._observed:
            self._observed, self._observed_at = lease["spec"], self.clock()

    def _empty(self) -> Raw:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": {},
        }

    def _wanted(self, lease: Raw, holder: str | None) -> Raw:
        """The Lease with this holder; its resourceVersion lets only one of two candidates win."""
        spec = lease["spec"]
        now = self.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        is_renewal = spec.get("holderIdentity") == holder
        is_transition = "renewTime" in spec and holder is not None and not is_renewal
        wanted = self._empty()
        wanted["metadata"]["resourceVersion"] = lease["metadata"]["resourceVersion"]
        wanted["spec"] = {
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": spec["acquireTime"] if is_renewal else now,
            "renewTime": now,
            "leaseTransitions": spec.get("leaseTransitions", 0) + int(is_transition),
        }
        if holder is not None:
            wanted["spec"]["holderIdentity"] = holder
        return wanted
