"""Bills of calls: the world's own arithmetic, which tests hold against the router's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike

from router_ml.catalog import Catalog, Offer
from router_ml.types import Float64Array

TYPICAL_TOKENS = 200.0
"""Input and output of a typical call, to rank offers by price."""


def default_catalog() -> Catalog:
    """Eight real models at their list prices."""
    with resources.as_file(resources.files("training.synthetic").joinpath("catalog.yaml")) as path:
        return Catalog.load(path)


def typical_cost_usd(offer: Offer) -> float:
    """What a call of typical length costs."""
    per_mtok = (offer.input_usd_per_mtok or 0.0) + (offer.output_usd_per_mtok or 0.0)
    return TYPICAL_TOKENS * per_mtok / 1e6 + (offer.request_usd or 0.0)


def cheapest_offers(catalog: Catalog) -> tuple[Offer, ...]:
    """The offer of each model that a typical call costs least at, in the order of the catalog's models."""
    return tuple(
        min((offer for offer in catalog.offers if offer.model == name), key=typical_cost_usd)
        for name in catalog.model_names
    )


def bill(
    offers: Sequence[Offer], input_tokens: Float64Array, output_tokens: Float64Array, cached: ArrayLike
) -> Float64Array:
    """Cost of calls in US dollars, [n, m], one offer per column.

    `cached`, [n, m] or one number, is the part of the input that the provider's prompt cache held.
    """
    per_input = np.array([offer.input_usd_per_mtok or 0.0 for offer in offers])
    per_output = np.array([offer.output_usd_per_mtok or 0.0 for offer in offers])
    per_call = np.array([offer.request_usd or 0.0 for offer in offers])
    reads = [offer.cached_input_usd_per_mtok for offer in offers]
    per_cached = np.array([full if read is None else read for read, full in zip(reads, per_input, strict=True)])
    cached = np.asarray(cached, dtype=np.float64)
    by_token = (input_tokens - cached) * per_input + cached * per_cached + output_tokens * per_output
    return np.asarray(by_token / 1e6 + per_call)


def reprice(catalog: Catalog, model: str, factor: float) -> Catalog:
    """The catalog with every price of one model's offers `factor` times as high."""
    names = [field.name for field in fields(Offer) if "_usd" in field.name]
    offers = []
    for offer in catalog.offers:
        prices = {name: getattr(offer, name) for name in names} if offer.model == model else {}
        changed = {name: price * factor for name, price in prices.items() if price is not None}
        offers.append(replace(offer, **changed))
    return replace(catalog, offers=tuple(offers))
