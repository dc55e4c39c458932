"""The feature columns of one symbol: indicators on native bars, joined to base bars on the close.

Called by `prepare.py`; the ids and their order come from `Strategy.features`. A row whose
indicators have not all warmed up is NaN somewhere and will be dropped, never filled.
"""

from collections.abc import Callable, Mapping

import numpy as np

from ktrdr_api.strategy import Strategy
from ktrdr_trainer.pipeline.align import NONE, latest_closed
from ktrdr_trainer.pipeline.arrays import Float64s
from ktrdr_trainer.pipeline.bars import Bars
from ktrdr_trainer.pipeline.fuzzy import degree
from ktrdr_trainer.pipeline.indicators import outputs


def feature_columns(
    strategy: Strategy, bars: Mapping[str, Bars], *, check_stop: Callable[[], None]
) -> list[Float64s]:
    """Columns in the order of `Strategy.features`.

    Args:
        strategy: What to compute.
        bars: Of one symbol, by timeframe, with every timeframe of the strategy.
        check_stop: Called before each indicator; raises to stop.

    Returns:
        One column (base bars,) a feature; NaN in the warm-up and where no fresh bar was known.
    """
    base = bars[strategy.base_timeframe]
    places = {timeframe: latest_closed(base, other) for timeframe, other in bars.items()}
    computed: dict[tuple[str, str], Mapping[str, Float64s]] = {}
    columns = []
    for feature in strategy.features():
        name, _, output = feature.reference.partition(".")
        key = (feature.timeframe, name)
        if key not in computed:
            check_stop()
            computed[key] = outputs(strategy.indicators[name], bars[feature.timeframe])
        native = computed[key][output]
        if feature.membership is not None:
            native = degree(feature.membership, native)
        place = places[feature.timeframe]
        columns.append(np.where(place == NONE, np.nan, native[place]))
    return columns
