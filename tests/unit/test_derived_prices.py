"""Prices that logs imply, where no catalog is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router_ml.errors import InputError
from training.dataset import Dataset
from training.derived_prices import catalog_from_logs

PRICES = np.array([[0.1, 0.4], [0.5, 1.5], [3.0, 15.0], [0.9, 0.9]])
"""US dollars per million input and output tokens, by model."""


@pytest.fixture
def data(token_world: Callable[..., Any]) -> Dataset:
    found: Dataset = token_world(n=300, seed=4).data
    return billed(found, by_token(found))


def by_token(data: Dataset) -> np.ndarray:
    rows = data.rows
    return (np.column_stack([rows.input_tokens, rows.output_tokens]) * PRICES[rows.model]).sum(axis=1) / 1e6


def billed(data: Dataset, cost: np.ndarray) -> Dataset:
    return replace(data, rows=replace(data.rows, cost_usd=cost))


def prices_of(data: Dataset) -> np.ndarray:
    offers = catalog_from_logs(data, []).offers
    return np.array([(offer.input_usd_per_mtok, offer.output_usd_per_mtok) for offer in offers])


def test_list_prices_are_found_to_the_cent(data: Dataset) -> None:
    assert prices_of(data) == pytest.approx(PRICES, rel=1e-5)
    notes: list[str] = []
    assert catalog_from_logs(data, notes).model_names == data.models
    assert notes == ["no catalog given: models are priced by the token, at prices that follow from the logged costs"]


def test_costs_that_vary_a_little_keep_their_sum(data: Dataset) -> None:
    noise = np.random.default_rng(0).uniform(0.93, 1.0, len(data.rows))  # as cached prefixes take off
    noisy = billed(data, by_token(data) * noise)
    rows = noisy.rows
    expected = (np.column_stack([rows.input_tokens, rows.output_tokens]) * prices_of(noisy)[rows.model]).sum(axis=1)
    for j in range(4):
        own = rows.model == j
        assert expected[own].sum() / 1e6 == pytest.approx(rows.cost_usd[own].sum(), rel=1e-4)


def test_a_cost_that_does_not_follow_from_tokens_stays_a_mean_for_that_model_alone(data: Dataset) -> None:
    flat = np.where(data.rows.model == 2, np.random.default_rng(1).exponential(0.01, len(data.rows)), by_token(data))
    notes: list[str] = []
    offers = catalog_from_logs(billed(data, flat), notes).offers
    assert [offer.request_usd is None for offer in offers] == [True, True, False, True]
    assert offers[2].request_usd == pytest.approx(flat[data.rows.model == 2].mean())
    assert notes[0].endswith("but at the mean logged cost per request: model-2")


def test_a_model_without_costs_has_no_offer_and_is_named(data: Dataset) -> None:
    notes: list[str] = []
    known = np.where(data.rows.model == 1, np.nan, by_token(data))
    assert catalog_from_logs(billed(data, known), notes).model_names == ("model-0", "model-2", "model-3")
    assert notes[0] == "no price is known, so never chosen (give one with --catalog): model-1"


def test_few_rows_unlogged_tokens_and_prompts_without_text_leave_mean_costs(data: Dataset) -> None:
    few = np.where(data.rows.prompt < 20, by_token(data), np.nan)
    untold = replace(data, rows=replace(data.rows, output_tokens=np.full(len(data.rows), np.nan)))
    textless = replace(data, prompts=replace(data.prompts, n_tokens=np.full(len(data.prompts), np.nan)))
    for each in (billed(data, few), untold, textless):
        notes: list[str] = []
        assert all(offer.request_usd is not None for offer in catalog_from_logs(each, notes).offers)
        assert notes == ["no catalog given: each model is priced at its mean logged cost per request"]


def test_a_free_model_costs_nothing(data: Dataset) -> None:
    free = np.where(data.rows.model == 0, 0.0, by_token(data))
    assert catalog_from_logs(billed(data, free), []).offers[0].request_usd == 0


def test_without_any_cost_a_catalog_is_asked_for(data: Dataset) -> None:
    with pytest.raises(InputError, match="--catalog"):
        catalog_from_logs(billed(data, np.full(len(data.rows), np.nan)), [])
