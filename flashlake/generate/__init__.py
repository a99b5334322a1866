"""generate: made events (page visits, cart additions, exposures), shaped by the real baskets, the same for the same seed.

randoms.py   numbers that depend on seed and position only
baskets.py   the real baskets as arrays, in order of time
events.py    what one made event looks like, vectorised
series.py    which events there are, and when: by the real purchases, or at a given rate
sink.py      into a table of a store, each event of a series once; or into nothing, to measure
"""

from flashlake.generate.baskets import Baskets, load_baskets
from flashlake.generate.events import KINDS, EventBatch
from flashlake.generate.series import BasketSeries, Disorder, RateSeries, Series
from flashlake.generate.sink import GenerateReport, measure_series, write_parquet, write_series

__all__ = [
    "KINDS",
    "BasketSeries",
    "Baskets",
    "Disorder",
    "EventBatch",
    "GenerateReport",
    "RateSeries",
    "Series",
    "load_baskets",
    "measure_series",
    "write_parquet",
    "write_series",
]
