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
_STEPS: Final = frozenset({"Scheduled", "Pulling", "Pulled", "Created", "Started"})
"""Reasons of Events that say that the pod has got further: what was warned of before is over."""


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
    """The latest warning since the pod's latest step; without one, the latest Event about work."""
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
    """When it happened last: RFC 3339 in UTC, comparable as text without fractions."""
    series = event.get("series") or {}
    found = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(found or event["metadata"].get("creationTimestamp", ""))[:19]
