"""What is compared as a mean over rows: by model, by column, and over all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training.drift.clustered import Totals, totals
from training.drift.findings import Kind
from training.drift.observed import Observed

_MOST_BILLED = 0.5
"""From that share of the priced rows on, both samples are priced by logged tokens alone, which has no noise."""


def figures(current: Observed, reference: Observed) -> Iterator[tuple[Kind, str, Totals, Totals]]:
    """Kind, subject and both totals of each mean that may have changed.

    Success, length and price are residuals of what is expected of the row's own prompt and model. So it does not
    matter with which probability the logging policy chose the model for a prompt, as long as it chose by what the
    champion sees too; nor that other prompts come in, as long as the champion's error is alike on them.
    """
    by_tokens = all(_mostly_billed(each) for each in (current, reference))
    values = [_by_model(each, by_tokens=by_tokens) for each in (current, reference)]
    for kind in values[0]:
        for model in sorted(set(current.model.tolist()) & set(reference.model.tolist())):
            yield (
                kind,
                model,
                _totals(values[0][kind], current, current.model == model),
                _totals(values[1][kind], reference, reference.model == model),
            )
    for name in current.missing:
        if name != "success":  # the label rate
            yield Kind.MISSING, name, _missing(current, name), _missing(reference, name)


def label_totals(observed: Observed) -> Totals:
    """Whether the success of each answered call is known."""
    return _totals((~observed.missing["success"]).astype(np.float64), observed, ~observed.failed)


def _missing(observed: Observed, name: str) -> Totals:
    return _totals(observed.missing[name].astype(np.float64), observed, ~observed.failed)


def _by_model(observed: Observed, *, by_tokens: bool) -> dict[Kind, Float64Array]:
    """[r] of each kind; NaN where there is nothing to compare."""
    price = _log_ratio(observed.cost_usd, observed.expected_cost)
    return {
        Kind.SUCCESS: observed.success - observed.p_success,
        Kind.PRICE: np.where(observed.billed, price, np.nan) if by_tokens else price,
        Kind.OUTPUT_LENGTH: _log_ratio(observed.output_tokens, observed.expected_tokens),
        Kind.ERRORS: observed.failed.astype(np.float64),
    }


def _mostly_billed(observed: Observed) -> bool:
    priced = ~np.isnan(observed.cost_usd)
    return bool(priced.any() and observed.billed[priced].mean() >= _MOST_BILLED)


def _log_ratio(found: Float64Array, expected: Float64Array) -> Float64Array:
    """Unknown, too, where either is zero; rounded, so that equal prices are equal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.round(np.log(found / expected), 6)
    return np.asarray(np.where(np.isfinite(ratio), ratio, np.nan))


def _totals(values: Float64Array, observed: Observed, rows: NDArray[np.bool_]) -> Totals:
    return totals(values[rows], observed.cluster[rows])
