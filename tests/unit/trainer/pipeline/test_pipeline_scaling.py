"""Scaling against scikit-learn, and that it is fitted on the training rows only."""

import json

import numpy as np
from sklearn.preprocessing import (  # type: ignore[import-untyped]  # ships no stubs
    MinMaxScaler,
    StandardScaler,
)

from ktrdr_trainer.pipeline.scaling import Scaling, fit

RANDOM = np.random.default_rng(3)
COLUMNS = [RANDOM.normal(50, 20, 1000), RANDOM.normal(-3, 0.1, 1000), RANDOM.normal(0, 1, 1000)]
TRAIN = np.arange(1000) < 700
IDS = ("a", "b", "c")


def test_scaling_equals_scikit_learn_fitted_on_the_training_rows() -> None:
    scaling = fit(IDS, ("minmax", "zscore", "none"), COLUMNS, TRAIN)
    got = scaling.applied(COLUMNS)
    a, b, c = (column.reshape(-1, 1) for column in COLUMNS)
    want = np.hstack(
        [
            MinMaxScaler(clip=True).fit(a[TRAIN]).transform(a),
            StandardScaler().fit(b[TRAIN]).transform(b),
            c,
        ]
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert (str(got.dtype), got.flags["C_CONTIGUOUS"]) == ("float32", True)


def test_scaling_minmax_clips_what_training_never_saw() -> None:
    values = np.array([0.0, 1.0, 5.0, -5.0])
    scaling = fit(("x",), ("minmax",), [values], np.array([True, True, False, False]))
    assert scaling.applied([values]).ravel().tolist() == [0.0, 1.0, 1.0, 0.0]


def test_scaling_of_a_constant_is_zero() -> None:
    values = np.full(9, 0.1)
    scaling = fit(("x", "y"), ("minmax", "zscore"), [values, values], np.ones(9, dtype=bool))
    other = np.array([0.1, 7.0])
    assert scaling.applied([other, other]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_scaling_survives_json_exactly() -> None:
    scaling = fit(IDS, ("minmax", "zscore", "none"), COLUMNS, TRAIN)
    text = json.dumps(scaling.to_json(), allow_nan=False)
    assert Scaling.from_json(json.loads(text)) == scaling
