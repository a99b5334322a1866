"""Model: the day's orders, from the orders so far and the share of a day's orders that comes by this minute in the baseline.

FutureHourlyForecastUDF of the article, whose formula is not printed. Arrow in, Arrow out; one pass per distinct baseline.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MINUTES = 1_440


def predict_hour_gmv(order_cnt: pa.Int64Array, mm: pa.StringArray, minute_ratio_feat: pa.StringArray) -> pa.StringArray:
    """The orders over share(minute), rounded, as text; null where there is no baseline, or its share at that minute is 0.

    Shapes: all (n,). Units: order_cnt is a count since midnight, mm is HHmm, a share is in 0..1.
    """
    encoded = pc.dictionary_encode(minute_ratio_feat)
    shares = np.array([shares_of(text) for text in encoded.dictionary.to_pylist()] or [np.full(MINUTES, np.nan)])
    hours, minutes = (pc.utf8_slice_codeunits(mm, begin, begin + 2).cast(pa.int64()) for begin in (0, 2))
    places = pc.add(pc.multiply(hours, 60), minutes).to_numpy(zero_copy_only=False)
    rows = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    share = shares[rows, places]
    counts = order_cnt.to_numpy(zero_copy_only=False)
    is_known = (share > 0) & pc.is_valid(minute_ratio_feat).to_numpy(zero_copy_only=False)
    forecast = np.rint(np.divide(counts, share, out=np.zeros(len(share)), where=is_known)).astype(np.int64)
    return pc.if_else(pa.array(is_known), pa.array(forecast).cast(pa.string()), pa.scalar(None, pa.string()))


def shares_of(text: str) -> np.ndarray:
    """The share at each minute of the day. Shapes: -> (1440,). Errors: ValueError for another text.

    >>> shares_of(feature_of(np.linspace(0, 1, 1440)))[-1]
    1.0
    """
    shares = np.array([float(part.split("=")[1]) for part in text.split(",")])
    if len(shares) != MINUTES:
        raise ValueError(f"a baseline of {len(shares)} minutes; it has {MINUTES}")
    return shares


def feature_of(shares: np.ndarray) -> str:
    """The inverse of shares_of. Shapes: (1440,) ->."""
    return ",".join(f"{minute // 60:02}{minute % 60:02}={share:.9f}" for minute, share in enumerate(shares))
