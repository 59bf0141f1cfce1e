from __future__ import annotations

import numpy as np
import pytest

from router_ml.catalog import Catalog, Model, Offer
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.request_policy import RequestPolicy
from router_ml.types import Request
from training.synthetic.prices import bill, cheapest_offers, default_catalog, reprice


def test_the_default_catalog_holds_eight_models_each_for_sale_everywhere_and_some_in_the_eu() -> None:
    catalog = default_catalog()
    assert len(catalog.models) == 8
    assert catalog.as_of == "2026-11-20"
    assert [offer.name for offer in cheapest_offers(catalog)] == list(catalog.model_names)
    assert {offer.region for offer in catalog.offers} == {"global", "eu"}
    for offer in catalog.offers:
        assert offer.cached_input_usd_per_mtok < offer.input_usd_per_mtok < offer.output_usd_per_mtok


def test_the_cheapest_offer_of_each_model_is_found() -> None:
    catalog = Catalog(
        models=(Model("a"), Model("b")),
        offers=(
            Offer("b", "b", request_usd=0.001),
            Offer("a1", "a", input_usd_per_mtok=2.0, output_usd_per_mtok=8.0),
            Offer("a2", "a", input_usd_per_mtok=1.0, output_usd_per_mtok=8.5),
        ),
    )
    assert [offer.name for offer in cheapest_offers(catalog)] == ["a2", "b"]


def test_a_bill_counts_cached_input_at_its_own_price_where_there_is_one() -> None:
    offers = (
        Offer("a", "a", input_usd_per_mtok=2.0, output_usd_per_mtok=10.0, cached_input_usd_per_mtok=0.5),
        Offer("b", "b", input_usd_per_mtok=2.0, output_usd_per_mtok=10.0, request_usd=0.25),
        Offer("c", "c", request_usd=0.125),
    )
    million = np.full((1, 3), 1e6)
    assert bill(offers, million, million, 0.0).tolist() == [[12.0, 12.25, 0.125]]
    assert bill(offers, million, million, 0.5 * million).tolist() == [[11.25, 12.25, 0.125]]


def test_a_price_change_scales_every_price_of_one_model_only() -> None:
    before = default_catalog()
    after = reprice(before, "claude-sonnet-4-6", 0.5)
    for old, new in zip(before.offers, after.offers, strict=True):
        factor = 0.5 if old.model == "claude-sonnet-4-6" else 1.0
        assert new.output_usd_per_mtok == old.output_usd_per_mtok * factor
        assert new.cached_input_usd_per_mtok == old.cached_input_usd_per_mtok * factor
        assert (new.batch_input_usd_per_mtok is None) == (old.batch_input_usd_per_mtok is None)


def test_the_bill_and_the_router_agree_on_prices() -> None:
    catalog = default_catalog()
    rng = np.random.default_rng(0)
    inputs, outputs, cached = (
        rng.integers(lo, hi, (20, 8)).astype(np.float64) for lo, hi in ((99, 999), (1, 999), (0, 99))
    )
    offers = cheapest_offers(catalog)
    policy = Policy(catalog, catalog.model_names, OperatingPoints((0.97,), (0.0,), (0.5,), default_target=0.97))
    columns = [[offer.name for offer in policy.offers].index(offer.name) for offer in offers]
    chooser = RequestPolicy(policy)
    for input_row, output_row, cached_row in zip(inputs, outputs, cached, strict=True):
        held = {offer.name: int(cached_row[j]) for j, offer in enumerate(offers)}
        request = Request(text="x", cached_input_tokens=held)
        cost = chooser.choose(request, [0.5] * 8, output_row.tolist(), input_row.tolist()).cost_usd
        billed = bill(offers, input_row[None], output_row[None], cached_row[None])[0]
        assert [cost[k] for k in columns] == pytest.approx(billed.tolist(), rel=1e-12)
