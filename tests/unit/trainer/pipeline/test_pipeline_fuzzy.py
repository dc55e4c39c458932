"""Memberships: worked examples, and what must hold for any parameters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_api.strategy_sections import Membership
from ktrdr_trainer.pipeline.fuzzy import degree

VALUE = st.floats(-1e6, 1e6)
EXAMPLES = [
    (
        Membership(type="triangular", parameters=(0, 10, 30)),
        [-1, 0, 5, 10, 20, 30, 31],
        [0, 0, 0.5, 1, 0.5, 0, 0],
    ),
    (
        Membership(type="trapezoidal", parameters=(0, 10, 20, 40)),
        [5, 10, 15, 20, 30, 40],
        [0.5, 1, 1, 1, 0.5, 0],
    ),
    (
        Membership(type="gaussian", parameters=(30, 15)),
        [30, 45, 15],
        [1, np.exp(-0.5), np.exp(-0.5)],
    ),
    (Membership(type="triangular", parameters=(0, 0, 10)), [-1, 0, 5], [0, 1, 0.5]),
    (Membership(type="triangular", parameters=(0, 10, 10)), [5, 10, 11], [0.5, 1, 0]),
    (Membership(type="triangular", parameters=(5, 5, 5)), [4, 5, 6], [0, 1, 0]),
    (Membership(type="trapezoidal", parameters=(0, 0, 9, 9)), [-1, 0, 5, 9, 10], [0, 1, 1, 1, 0]),
]


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    count = draw(st.integers(2, 4))
    if count == 2:
        bell = (draw(VALUE), draw(st.floats(1e-300, 1e6)))
        return Membership(type="gaussian", parameters=bell)
    edges = tuple(sorted(draw(st.lists(VALUE, min_size=count, max_size=count))))
    return Membership(type="triangular" if count == 3 else "trapezoidal", parameters=edges)


@pytest.mark.parametrize(("membership", "values", "want"), EXAMPLES)
def test_degree_of_worked_examples(
    membership: Membership, values: list[float], want: list[float]
) -> None:
    got = degree(membership, np.array(values, dtype=np.float64))
    np.testing.assert_allclose(got, want, rtol=1e-15)


@settings(deadline=None)
@given(membership=memberships(), values=st.lists(VALUE, max_size=20))
def test_degree_of_anything_is_within_0_and_1(membership: Membership, values: list[float]) -> None:
    got = degree(membership, np.array([*values, np.nan]))
    assert np.isnan(got[-1])
    assert ((got[:-1] >= 0) & (got[:-1] <= 1)).all()


@settings(deadline=None)
@given(membership=memberships())
def test_degree_at_the_peak_is_1_even_where_edges_coincide(membership: Membership) -> None:
    parameters = membership.parameters
    peaks = {
        "triangular": parameters[1:2],
        "trapezoidal": parameters[1:3],
        "gaussian": parameters[:1],
    }
    assert degree(membership, np.array(peaks[membership.type])).tolist() == [1.0] * len(
        peaks[membership.type]
    )


@settings(deadline=None)
@given(membership=memberships(), values=st.lists(VALUE, min_size=2, max_size=20))
def test_degree_falls_away_from_the_peak(membership: Membership, values: list[float]) -> None:
    peak = membership.parameters[0 if membership.type == "gaussian" else 1]
    above = np.array(sorted({max(value, peak) for value in values}))
    if membership.type == "trapezoidal":
        above = np.maximum(above, membership.parameters[2])
    got = degree(membership, above)
    assert (np.diff(got) <= 0).all()
