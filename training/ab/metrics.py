"""What a test is judged by: ratios over requests, each with the direction that is better."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from router_ml.types import Float64Array
from training.ab.requests import Requests


class Kind(StrEnum):
    """How a metric is shown."""

    SHARE = "share"
    USD = "usd"
    MS = "ms"


@dataclass(frozen=True, slots=True)
class Metric:
    """Sum of a numerator over sum of a denominator."""

    name: str
    words: str
    kind: Kind
    better: int
    """1: higher is better, -1: lower."""
    needs_outcome: bool
    """Whether it waits for outcomes, which may be late."""

    @property
    def is_share(self) -> bool:
        return self.kind is Kind.SHARE


SUCCESS = Metric("success", "success", Kind.SHARE, 1, True)
COST = Metric("cost_per_request", "cost per request", Kind.USD, -1, False)
COST_PER_SUCCESS = Metric("cost_per_success", "cost per success", Kind.USD, -1, True)
LATENCY = Metric("latency_ms", "mean latency", Kind.MS, -1, False)
FAILED = Metric("error_rate", "errors", Kind.SHARE, -1, False)
FELL_BACK = Metric("fallback_rate", "fallbacks", Kind.SHARE, -1, False)

METRICS = {each.name: each for each in (SUCCESS, COST, COST_PER_SUCCESS, LATENCY, FAILED, FELL_BACK)}

MISSING = Metric("missing_outcomes", "requests without a known outcome", Kind.SHARE, -1, True)
CACHED = Metric("cached_share", "input tokens read from a cache", Kind.SHARE, 1, False)


def sums(metric: Metric, requests: Requests) -> tuple[Float64Array, Float64Array]:
    """Numerator and denominator of each request, [n]; both NaN where the metric is unknown."""
    r, ones = requests, np.ones(len(requests))
    unjudged = np.isnan(r.success)
    numerator, denominator = {
        SUCCESS.name: (r.success, ones),
        COST.name: (r.cost_usd, ones),
        COST_PER_SUCCESS.name: (r.cost_usd, r.success),
        LATENCY.name: (r.latency_ms, ones),
        FAILED.name: (r.failed.astype(np.float64), ones),
        FELL_BACK.name: (r.fell_back.astype(np.float64), ones),
        # Of a call that failed nobody judges the answer: there is none.
        MISSING.name: (unjudged.astype(np.float64), np.where(r.failed & unjudged, np.nan, 1.0)),
        CACHED.name: (r.cached_input_tokens, r.input_tokens),
    }[metric.name]
    unknown = np.isnan(numerator) | np.isnan(denominator)
    return np.where(unknown, np.nan, numerator), np.where(unknown, np.nan, denominator)
