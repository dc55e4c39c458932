"""Pod Events reader: why a pod does not start, where its own status does not say so.

The kubelet reports a volume that cannot be mounted, a sandbox that fails and an image that is being
pulled in Events only. They are not watched, because a cluster has too many; `observe` lists them by
field selector, for one pod at a time and rarely.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ktrdr_client.cluster import EVENTS, ApiError, ClusterApi, Forbidden
from ktrdr_operator.snapshot import PodView, WaitReason
from ktrdr_operator.views import Raw, sanitize

MIN_SECONDS: Final = 8.0
"""Minimum seconds between two lists for the same pod."""
MAX_REMEMBERED: Final = 5000
PAGE: Final = 100
"""Maximum number of Events read per pod; the kubelet counts repetitions in one Event."""
_NO_NEWS: Final = frozenset({"Scheduled"})
_STEPS: Final = frozenset({"Scheduled", "Pulling", "Pulled", "Created", "Started"})
"""Reasons of Events that report a completed step of the pod: earlier warnings are outdated."""


@dataclass
class PodEventReader:
    """Latest relevant Event of each pod, listed at most every `MIN_SECONDS`."""

    cluster: ClusterApi
    clock: Callable[[], float]
    """Monotonic seconds."""
    _known: OrderedDict[str, tuple[float, WaitReason | None]] = field(default_factory=OrderedDict)
    """Time of the latest list and its result, by UID of the pod."""

    async def wait_reason(self, namespace: str, pod: PodView) -> WaitReason | None:
        """Reason in the latest Event that explains why the pod does not start; None without one."""
        now, known = self.clock(), self._known.get(pod.uid)
        if known is not None and now - known[0] < MIN_SECONDS:
            return known[1]
        try:
            events, _ = await self.cluster.list(
                EVENTS, namespace, field_selector=f"involvedObject.uid={pod.uid}", limit=PAGE
            )
        except Forbidden:
            events = []  # an installation without this right uses the pod's status only
        except ApiError:
            return known[1] if known is not None else None
        words = latest_reason(events)
        self._known[pod.uid] = (now, words)
        self._known.move_to_end(pod.uid)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return words


def latest_reason(events: list[Raw]) -> WaitReason | None:
    """Latest warning since the pod's latest step, otherwise the latest Event about progress."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    others = [event for event in events if event.get("type") != "Warning"]
    steps = (_second(event) for event in others if event.get("reason") in _STEPS)
    step = max(steps, default="")
    current = [event for event in warnings if _second(event) >= step]
    told = [event for event in others if event.get("reason") not in _NO_NEWS]
    latest = max(current or told, key=_second, default=None)
    if latest is None or not latest.get("message"):
        return None
    words = sanitize(latest["message"])
    return WaitReason(latest.get("reason", ""), words, is_progress=not current)


def _second(event: Raw) -> str:
    """Time of the last occurrence: RFC 3339 in UTC without fractions, so comparable as text."""
    series = event.get("series") or {}
    found = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(found or event["metadata"].get("creationTimestamp", ""))[:19]
