"""Splits leak nothing: in order of time, purged of labels that look across, with an embargo."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_api.strategy_sections import DataSplit
from ktrdr_trainer.pipeline.splits import split

SPECS = [
    DataSplit(),
    DataSplit(embargo=0.0),
    DataSplit(train=0.5, validation=0.25, test=0.25, embargo=0.1),
]


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), min_size=1, max_size=200),
    spec=st.sampled_from(SPECS),
)
def test_split_never_leaks(rows: list[tuple[int, int]], spec: DataSplit) -> None:
    time = np.array([row[0] for row in rows])
    label_end = time + np.array([row[1] for row in rows])
    got = split(time, label_end, spec)
    counts = got.train.astype(int) + got.validation + got.test
    assert counts.max(initial=0) <= 1
    assert int(counts.sum()) + got.purged + got.embargoed == len(rows)
    for earlier, later in ((got.train, got.validation), (got.validation, got.test)):
        if earlier.any() and later.any():
            assert label_end[earlier].max() < time[later].min()
    for cut, resume in zip(got.cuts, got.resumes, strict=True):
        assert cut <= resume


def test_split_of_even_rows_cuts_at_the_fractions_and_embargoes_one_percent() -> None:
    time = np.arange(1000)
    got = split(time, time, DataSplit())
    places = [np.flatnonzero(mask) for mask in (got.train, got.validation, got.test)]
    assert [(int(part[0]), int(part[-1])) for part in places] == [(0, 699), (710, 849), (860, 999)]
    assert (got.purged, got.embargoed, got.cuts, got.resumes) == (0, 20, (700, 850), (710, 860))


def test_split_drops_the_rows_whose_label_crosses_the_cut() -> None:
    time = np.arange(1000)
    got = split(time, time + 25, DataSplit(embargo=0.0))
    assert (int(got.train.sum()), int(got.validation.sum()), got.purged) == (675, 125, 50)


def test_split_of_symbols_with_the_same_bars_cuts_them_at_the_same_time() -> None:
    time = np.tile(np.arange(500), 2)
    got = split(time, time, DataSplit(embargo=0.0))
    assert got.train[:500].tolist() == got.train[500:].tolist()
