"""Logged rows as drift sees them: what came of each, beside what the champion expected of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from router_ml.bundle import Bundle
from router_ml.errors import InputError
from router_ml.heads import OUTPUTS, VECTOR, of_graph
from router_ml.policy import Policy
from router_ml.router import Router
from router_ml.types import Estimates, Float32Array, Float64Array
from training.appraise import text_of
from training.dataset import Dataset, build_dataset
from training.export import chunks

WATCHED_COLUMNS = ("segment", "session_id", "offer", "propensity", "input_tokens", "output_tokens", "cost_usd")
"""Of which the share of unknown values is watched, besides `success` and `latency_ms`."""


@dataclass(frozen=True, slots=True)
class Observed:
    """r rows of an outcome table on n prompts; NaN where unknown or where the champion cannot say."""

    cluster: NDArray[np.int64]
    """[r], rows that are not independent: of one session, or of one prompt where the session is unknown."""
    prompt: NDArray[np.int64]
    """[r], row of `vector`."""
    vector: Float32Array | None
    """[n, d], embeddings by the champion; None: its graph does not give them."""
    segment: NDArray[np.str_]
    """[r]; empty where unknown."""
    model: NDArray[np.str_]
    """[r]"""
    success: Float64Array
    """[r], in [0, 1]."""
    p_success: Float64Array
    """[r], the champion's probability for the row's prompt and model, made without the row's own outcome."""
    output_tokens: Float64Array
    expected_tokens: Float64Array
    cost_usd: Float64Array
    expected_cost: Float64Array
    """[r], at the catalog's prices: of the logged tokens where `billed`, else of the expected ones."""
    billed: NDArray[np.bool_]
    """[r], whether input and output tokens were logged."""
    failed: NDArray[np.bool_]
    """[r], calls that ended in an error."""
    missing: dict[str, NDArray[np.bool_]]
    """Column -> [r], whether its value is unknown."""

    def __post_init__(self) -> None:
        r = len(self.cluster)
        for field in fields(self):
            values = getattr(self, field.name)
            columns = values if isinstance(values, dict) else {field.name: values}
            for name, column in columns.items():
                if field.name != "vector" and len(column) != r:
                    raise ValueError(f"`{name}` must have a value for each of the {r} rows, found {len(column)}")
        if not r:
            raise InputError("no row to look for drift in; expected outcomes of at least one request")

    def __len__(self) -> int:
        return len(self.cluster)


def observe(table: pa.Table, router: Router) -> Observed:
    """Rows of OUTCOME_SCHEMA beside the estimates of `router`, at the prices of its catalog.

    The rows should be none that the router's version was fitted on: on those its estimates are too good,
    and every later day would look worse. InputError where there is no row, or none that the version can read.
    """
    if not len(table):
        raise InputError("no row to look for drift in; expected outcomes of at least one request")
    manifest, bundle = router.bundle.manifest, router.bundle
    data = build_dataset(table.to_batches(), text_of(bundle))
    column = np.array([_index(manifest.models, name) for name in data.models])[data.rows.model]
    estimates, vector = _estimates(data.keep_segments(manifest.segments), bundle)
    at, judged = np.arange(len(column)), column >= 0
    of_rows = estimates.take(data.rows.prompt)
    expected_cost, billed = _expected_cost(table, data, of_rows, column, router.policy)
    return Observed(
        cluster=_clusters(table, data),
        prompt=data.rows.prompt,
        vector=vector,
        segment=np.array(table["segment"].fill_null("").to_pylist(), dtype=np.str_),
        model=np.array(data.models, dtype=np.str_)[data.rows.model],
        success=data.rows.success,
        p_success=np.where(judged, of_rows.p_success[at, column], np.nan).astype(np.float64),
        output_tokens=data.rows.output_tokens,
        expected_tokens=np.where(judged, of_rows.output_tokens[at, column], np.nan).astype(np.float64),
        cost_usd=data.rows.cost_usd,
        expected_cost=expected_cost,
        billed=billed,
        failed=_known(table, "error"),
        missing={name: ~_known(table, name) for name in ("success", "latency_ms", *WATCHED_COLUMNS)},
    )


def _known(table: pa.Table, name: str) -> NDArray[np.bool_]:
    return np.asarray(table[name].is_valid().to_numpy())


def _index(names: tuple[str, ...], name: str | None) -> int:
    return names.index(name) if name in names else -1


def _clusters(table: pa.Table, data: Dataset) -> NDArray[np.int64]:
    sessions = table["session_id"].to_pylist()
    prompts = data.prompts.prompt_id[data.rows.prompt].tolist()
    names = [f"s {one}" if one is not None else f"p {other}" for one, other in zip(sessions, prompts, strict=True)]
    return np.asarray(np.unique(np.array(names), return_inverse=True)[1], dtype=np.int64)


def _estimates(data: Dataset, bundle: Bundle) -> tuple[Estimates, Float32Array | None]:
    """Of every prompt, with its embedding, in one run of the graph that serves."""
    embeds = VECTOR in {output.name for output in bundle.session.get_outputs()}
    names = (*OUTPUTS, VECTOR) if embeds else OUTPUTS
    pad_id = bundle.tokenizer.settings.pad_id if bundle.tokenizer else 0
    runs = [
        bundle.session.run(names, data.features(part, pad_id).feed())
        for part in chunks(data, np.arange(len(data.prompts)))
    ]
    n_tokens = np.multiply.outer(data.prompts.n_tokens, np.array(bundle.manifest.input_token_ratio, np.float32))
    estimates = Estimates(*of_graph(np.concatenate([run[0] for run in runs])), n_tokens)
    given = data.prompts.given[:, None]
    if embeds:
        return estimates, np.where(given, data.prompts.embedding, np.concatenate([run[1] for run in runs]))
    return estimates, data.prompts.embedding if given.all() else None


def _expected_cost(
    table: pa.Table, data: Dataset, estimates: Estimates, column: NDArray[np.int64], policy: Policy
) -> tuple[Float64Array, NDArray[np.bool_]]:
    """Of each row at its own offer, or at its model's cheapest where the log names none; NaN: not in the catalog."""
    rows = data.rows
    billed = ~np.isnan(rows.input_tokens) & ~np.isnan(rows.output_tokens)
    inputs, outputs = (
        np.where(billed[:, None], logged[:, None], estimated).astype(np.float32)
        for logged, estimated in (
            (rows.input_tokens, estimates.input_tokens),
            (rows.output_tokens, estimates.output_tokens),
        )
    )
    cached = np.broadcast_to(rows.cached_input_tokens[:, None], inputs.shape)
    offers = tuple(offer.name for offer in policy.offers)
    cost = policy.price(Estimates(estimates.p_success, outputs, estimates.latency_ms, inputs), cached=cached)
    offer = np.array([_index(offers, name) for name in table["offer"].to_pylist()])
    at = np.arange(len(cost))
    unnamed = (column >= 0) & ~_known(table, "offer")
    cheapest = np.where(unnamed, policy.cheapest(cost)[at, column], np.nan)
    return np.where(offer >= 0, cost[at, offer], cheapest), billed
