"""How long to wait after the n-th failure in a row: exponential, with jitter, bounded."""

import random
from typing import Final

FIRST_SECONDS: Final = 0.25
MAX_SECONDS: Final = 15.0
"""An API server that comes back after an hour is noticed within this."""


def backoff_seconds(failures: int, *, max_seconds: float = MAX_SECONDS) -> float:
    """Seconds to wait; between half of the bound and the bound, so that 500 trainers spread.

    Args:
        failures: In a row, from 1; 0 waits not at all.
        max_seconds: Upper bound.
    """
    if failures == 0:
        return 0.0
    bound = min(max_seconds, FIRST_SECONDS * 2.0 ** min(failures, 16))
    return bound * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
