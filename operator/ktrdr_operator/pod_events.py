"""Reads the Events of pods that do not start and whose own status does not say why.

A volume that cannot be mounted, a sandbox that fails, an image that is being pulled: the kubelet
says so in Events only. They are not watched (there are too many in a cluster); `observe` asks, by
field selector, about one pod at a time and rarely.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ktrdr_client.cluster import EVENTS, ApiError, ClusterApi, Forbidden
from ktrdr_operator.snapshot import PodView, WaitReason
from ktrdr_operator.views import Raw, sanitize

MIN_SECONDS: Final = 8.0
"""Between two reads about one pod."""
MAX_REMEMBERED: Final = 5000
PAGE: Final = 100
"""Events of one pod that are read; repeated ones are counted in one Event by the kubelet."""
_NO_NEWS: Final = frozenset({"Scheduled"})


@dataclass
class PodEventReader:
    """Latest relevant Event of pods, asked for at most every `MIN_SECONDS`."""

    cluster: ClusterApi
    clock: Callable[[], float]
    """Monotonic seconds."""
    _known: OrderedDict[str, tuple[float, WaitReason | None]] = field(default_factory=OrderedDict)
    """When a pod was asked about, and the answer, by UID."""

    async def wait_reason(self, namespace: str, pod: PodView) -> WaitReason | None:
        """Words of the latest Event that says why the pod does not start; None when none does."""
        now, known = self.clock(), self._known.get(pod.uid)
        if known is not None and now - known[0] < MIN_SECONDS:
            return known[1]
        try:
            events, _ = await self.cluster.list(
                EVENTS, namespace, field_selector=f"involvedObject.uid={pod.uid}", limit=PAGE
            )
        except Forbidden:
            events = []  # an installation without this right: the pod's status has to do
        except ApiError:
            return known[1] if known is not None else None
        words = latest_reason(events)
        self._known[pod.uid] = (now, words)
        self._known.move_to_end(pod.uid)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return words


def latest_reason(events: list[Raw]) -> WaitReason | None:
    """The latest warning; without one, the latest Event that reports work."""
    told = [event for event in events if event.get("reason") not in _NO_NEWS]
    warnings = [event for event in told if event.get("type") == "Warning"]
    latest = max(warnings or told, key=_time, default=None)
    if latest is None or not latest.get("message"):
        return None
    return WaitReason(latest.get("reason", ""), sanitize(latest["message"]))


def _time(event: Raw) -> str:
    """RFC 3339 in UTC: comparable as text to the second."""
    series = event.get("series") or {}
    found = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(found or event["metadata"].get("creationTimestamp", ""))
