"""Membership functions: how much a value belongs to a fuzzy set, from 0 to 1.

Called by `features.py` on indicator outputs. Source: Zadeh, Fuzzy Sets (1965).
"""

import numpy as np

from ktrdr_api.strategy_sections import Membership
from ktrdr_trainer.pipeline.arrays import Float64s


def degree(membership: Membership, values: Float64s) -> Float64s:
    """Degrees of membership in [0, 1], same shape; 1 at the peak, NaN where the value is NaN."""
    given = membership.parameters
    # Edges nearer than a float can divide by overflow to infinity, which the clip below mends.
    with np.errstate(over="ignore"):
        if membership.type == "gaussian":
            return np.asarray(np.exp(-0.5 * ((values - given[0]) / given[1]) ** 2))
        first, last = given[0], given[-1]
        up = _ramp(values - first, given[1] - first)
        down = _ramp(last - values, last - given[-2])
        return np.clip(np.minimum(up, down), 0.0, 1.0)


def _ramp(distance: Float64s, width: float) -> Float64s:
    """Above 0 inside the edge, 1 at `width` inside it; a step where the edge has no width."""
    if width > 0:
        return distance / width
    return np.where(np.isnan(distance), np.nan, np.where(distance >= 0, 1.0, 0.0))
