"""Zigzag labels against an obvious reference that searches backwards for every pivot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_trainer.pipeline.labels import BUY, HOLD, SELL, UNLABELLED, Labels, zigzag


def reference_pivots(close: list[float], threshold: float) -> list[tuple[int, int, str]]:
    """By the words of the definition: at each bar, look back over all since the last pivot."""
    pivots: list[tuple[int, int, str]] = []
    for now in range(len(close)):
        begin = pivots[-1][0] if pivots else 0
        since = close[begin : now + 1]
        high, low = begin + since.index(max(since)), begin + since.index(min(since))
        last = pivots[-1][2] if pivots else ""
        if last != "high" and close[now] <= close[high] * (1 - threshold):
            pivots.append((high, now, "high"))
        elif last != "low" and close[now] >= close[low] * (1 + threshold):
            pivots.append((low, now, "low"))
    return pivots


def reference(close: list[float], threshold: float, lookahead: int | None) -> Labels:
    pivots = reference_pivots(close, threshold)
    value, end = [], []
    for bar in range(len(close)):
        ahead = [pivot for pivot in pivots if pivot[0] >= bar]
        before = [pivot for pivot in pivots if pivot[0] < bar]
        if not ahead:
            value.append(UNLABELLED)
            end.append(bar)
            continue
        place, confirmed, kind = ahead[0]
        hold = place == bar or not before or (lookahead is not None and place - bar > lookahead)
        value.append(HOLD if hold else BUY if kind == "high" else SELL)
        end.append(confirmed)
    return Labels(np.array(value), np.array(end))


@settings(deadline=None, max_examples=200)
@given(
    close=st.lists(st.integers(80, 120).map(float), min_size=1, max_size=80),
    threshold=st.sampled_from([0.02, 0.05, 0.1, 0.3]),
    lookahead=st.none() | st.integers(1, 10),
)
def test_zigzag_equals_reference(
    close: list[float], threshold: float, lookahead: int | None
) -> None:
    got = zigzag(np.array(close), threshold=threshold, lookahead=lookahead)
    want = reference(close, threshold, lookahead)
    assert got.value.tolist() == want.value.tolist()
    assert got.end.tolist() == want.end.tolist()


@settings(deadline=None)
@given(
    close=st.lists(st.integers(80, 120).map(float), min_size=2, max_size=60),
    future=st.lists(st.integers(50, 200).map(float), min_size=1, max_size=10),
    data=st.data(),
)
def test_zigzag_label_does_not_depend_on_bars_behind_its_end(
    close: list[float], future: list[float], data: st.DataObject
) -> None:
    labels = zigzag(np.array(close), threshold=0.05)
    bar = data.draw(st.integers(0, len(close) - 1))
    if labels.value[bar] != UNLABELLED:
        seen = close[: labels.end[bar] + 1]
        other = zigzag(np.array(seen + future), threshold=0.05)
        assert other.value[bar] == labels.value[bar]


def test_zigzag_worked_example() -> None:
    close = [100, 98, 100, 104, 110, 108, 104, 100, 103, 106, 107]
    labels = zigzag(np.array(close, dtype=float), threshold=0.05)
    assert labels.value.tolist() == [
        *(HOLD, HOLD, BUY, BUY, HOLD, SELL, SELL, HOLD),
        *(UNLABELLED, UNLABELLED, UNLABELLED),
    ]
    assert labels.end.tolist() == [3, 3, 6, 6, 6, 9, 9, 9, 8, 9, 10]


@pytest.mark.parametrize("close", [[], [1.0], [1.0] * 50, list(np.linspace(100, 101, 50))])
def test_zigzag_without_a_reversal_labels_nothing(close: list[float]) -> None:
    assert set(zigzag(np.array(close), threshold=0.05).value.tolist()) <= {UNLABELLED}
