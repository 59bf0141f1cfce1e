"""The catalog of users who give none: prices that their logs imply."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from router_ml.catalog import Catalog, Model, Offer
from router_ml.errors import InputError
from router_ml.types import Float64Array
from training.dataset import Dataset

_FEWEST_ROWS = 30
_LARGEST_ERROR = 0.05
"""Of the logged cost. List prices leave rounding alone, cached prefixes a few percent; a cost that is
not billed by the token leaves far more, and keeps its mean."""


def catalog_from_logs(data: Dataset, notes: list[str]) -> Catalog:
    """One offer per model with a logged cost: by token where its cost follows from its tokens, else at the mean cost.

    What was assumed is added to `notes`. InputError where no cost is logged.
    """
    mean_cost = data.model_means(data.rows.cost_usd)
    offers, flat = [], []
    for j, name in enumerate(data.models):
        if np.isnan(mean_cost[j]):
            continue
        per_token = _token_prices(data, j)
        if per_token is None:
            flat.append(name)
            offers.append(Offer(name, name, request_usd=float(mean_cost[j])))
        else:
            per_mtok = (float(f"{1e6 * price:.6g}") for price in per_token)
            offers.append(Offer(name, name, None, None, *per_mtok))
    if not offers:
        raise InputError("no row has a `cost_usd` and no catalog is given: pass prices with --catalog FILE")
    priced = [offer.model for offer in offers]
    unpriced = [name for name in data.models if name not in priced]
    if unpriced:
        notes.append(f"no price is known, so never chosen (give one with --catalog): {', '.join(unpriced)}")
    notes.append(_note(flat, len(priced)))
    return Catalog(tuple(Model(name) for name in priced), tuple(offers))


def _token_prices(data: Dataset, model: int) -> Float64Array | None:
    """US dollars per input and output token, [2]; None where the cost of the rows does not follow from them."""
    rows = data.rows
    if np.isnan(data.prompts.n_tokens[rows.prompt]).any():
        return None  # without the text, a request to come cannot be counted
    known = (rows.model == model) & ~np.isnan(rows.cost_usd + rows.input_tokens + rows.output_tokens)
    tokens, cost = np.column_stack([rows.input_tokens[known], rows.output_tokens[known]]), rows.cost_usd[known]
    if len(cost) < _FEWEST_ROWS or not cost.sum() > 0:
        return None
    # In units near one: costs of 1e-5 are below the solver's idea of zero.
    found, _ = nnls(tokens / tokens.mean(), cost / cost.mean())
    prices = found * cost.mean() / tokens.mean()
    if np.abs(tokens @ prices - cost).sum() > _LARGEST_ERROR * cost.sum():
        return None
    return np.asarray(prices * cost.sum() / (tokens @ prices).sum())


def _note(flat: list[str], n_priced: int) -> str:
    if len(flat) == n_priced:
        return "no catalog given: each model is priced at its mean logged cost per request"
    rest = f", but at the mean logged cost per request: {', '.join(flat)}" if flat else ""
    return f"no catalog given: models are priced by the token, at prices that follow from the logged costs{rest}"
