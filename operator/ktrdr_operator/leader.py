"""Leader election by a Lease: at most one of several operators works.

Own code, because the official client's asyncio election neither gives the Lease up at the end, so
that every upgrade waits 15 s, nor measures by a monotonic clock, and it loads the typed API
classes. The rules and times are client-go's. `__main__` acquires, holds and releases; everything
else is written as if two operators might act all the same.
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
LEASE_SECONDS: Final = 15
"""A Lease not renewed for so long may be taken."""
RENEW_SECONDS: Final = 10.0
"""A leader that cannot renew for so long stops working, well before others start."""
RETRY_SECONDS: Final = 2.0


class LeaseLostError(Exception):
    """Another operator may lead by now; the process must end."""


@dataclass
class Leader:
    """This process as a candidate for the Lease."""

    cluster: ClusterApi
    namespace: str
    identity: str
    now: Callable[[], datetime]
    """Wall clock, UTC; only for people who look at the Lease."""
    clock: Callable[[], float]
    """Monotonic seconds. Other processes' times are never compared with ours."""
    _observed: Raw | None = None
    """Spec of the Lease as last seen."""
    _observed_at: float = field(default=0.0)

    async def acquire(self, beat: Callable[[], None]) -> None:
        """Wait until this process leads; `beat` is called at every try."""
        while not await self._try():
            beat()
            await asyncio.sleep(RETRY_SECONDS)
        log.info("leading as %s", self.identity)

    async def hold(self, beat: Callable[[], None]) -> None:
        """Renew for ever; `beat` is called at every success.

        Raises:
            LeaseLostError: not renewed in time, or taken by another.
        """
        renewed = self.clock()
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                async with asyncio.timeout(RENEW_SECONDS - (self.clock() - renewed)):
                    done = await self._try()
            except TimeoutError:
                done = False
            if done:
                renewed = self.clock()
                beat()
            elif self._taken():
                raise LeaseLostError(f"the lease is now held by {self._holder()}")
            elif self.clock() - renewed >= RENEW_SECONDS:
                raise LeaseLostError(f"the lease could not be renewed for {RENEW_SECONDS:.0f} s")

    async def release(self) -> None:
        """Give the Lease up, so that another can lead at once; does nothing unless leading."""
        if self._holder() != self.identity:
            return
        try:
            lease = await self.cluster.get(LEASES, self.namespace, LEASE_NAME)
            if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                await self.cluster.apply(LEASES, self._wanted(lease, holder=None))
                log.info("lease released")
        except ApiError as error:
            log.warning("lease not released, others wait %d s: %s", LEASE_SECONDS, error)

    def _holder(self) -> str:
        return str((self._observed or {}).get("holderIdentity", ""))

    def _taken(self) -> bool:
        return self._holder() not in ("", self.identity)

    async def _try(self) -> bool:
        """Acquire or renew once; False when another leads or the server did not agree."""
        try:
            lease = await self.cluster.get(LEASES, self.namespace, LEASE_NAME)
            if lease is None:
                # Empty: what a create sets, no later apply could take away.
                lease = await self.cluster.create(LEASES, self._empty())
            self._see(lease)
            if self._taken() and self.clock() < self._observed_at + LEASE_SECONDS:
                return False
            self._see(await self.cluster.apply(LEASES, self._wanted(lease, self.identity)))
        except (AlreadyExists, Conflict):
            return False  # another was faster
        except ApiError as error:
            log.warning("lease: %s", error)
            return False
        return True

    def _see(self, lease: Raw) -> None:
        if lease["spec"] != self._observed:
            self._observed, self._observed_at = lease["spec"], self.clock()

    def _empty(self) -> Raw:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"namespace": self.namespace, "name": LEASE_NAME},
            "spec": {},
        }

    def _wanted(self, lease: Raw, holder: str | None) -> Raw:
        """The Lease with this holder; the resource version lets only one of two writers win."""
        spec = lease["spec"]
        now = self.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        should_forward = spec.get("holderIdentity") == holder
        follows = "renewTime" in spec and holder is not None and not should_forward
        wanted = self._empty()
        wanted["metadata"]["resourceVersion"] = lease["metadata"]["resourceVersion"]
        wanted["spec"] = {
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": spec["acquireTime"] if should_forward else now,
            "renewTime": now,
            "leaseTransitions": spec.get("leaseTransitions", 0) + int(follows),
        }
        if holder is not None:
            wanted["spec"]["holderIdentity"] = holder
        return wanted
