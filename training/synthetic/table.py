"""Traffic as outcome tables, and the truth behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.outcomes import OUTCOME_SCHEMA, prompt_id_of
from training.synthetic.prices import cheapest_offers
from training.synthetic.prompts import IntArray
from training.synthetic.traffic import TrafficSettings, TrafficSlice, draw_traffic
from training.synthetic.world import World

TRUTH_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("prompt_id", pa.string()),
        ("segment", pa.string()),
        ("model", pa.string()),
        ("p_success", pa.float64()),
        ("output_tokens", pa.float64()),
        ("cost_usd", pa.float64()),
        ("propensity", pa.float64()),
    ]
)
"""One row per request and model that could be called, logged or not: true probability of success, expected output
tokens, expected cost of an answered call with the prompt cache as it stood, and the logging policy's probability."""

FAILURE_MS = 1200.0
"""How long a call takes to fail while a provider is down."""


def simulate(world: World, settings: TrafficSettings) -> Iterator[pa.RecordBatch]:
    """The traffic as outcome rows, in order of time within a few thousand requests.

    A call that fails for an outage has its error and no success: the offer failed, not the model.
    With full information every model's row has a request id of its own and no propensity.
    """
    slices = draw_traffic(world, settings)
    return (outcome_batch(part, full_information=settings.full_information) for part in slices)


def outcome_batch(part: TrafficSlice, *, full_information: bool) -> pa.RecordBatch:
    """Outcome rows of one slice: of the chosen model, or of every available one."""
    order = np.argsort(part.time_us, kind="stable")
    rows, models = _pairs(part, order) if full_information else (order, part.chosen[order])
    columns = {
        "request_id": pa.array(_request_ids(part, rows, models, full_information)),
        "timestamp": pa.array(part.time_us[rows], type=pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "prompt": _take(part.prompts.texts, rows),
        "session_id": _take(part.session_ids, rows),
        "tenant": _take(
            [f"tenant-{k + 1:02d}" for k in range(part.world.settings.n_tenants)], part.prompts.tenant[rows]
        ),
        "offer": _take([offer.name for offer in cheapest_offers(part.world.catalog)], models),
        **_keys(part, rows, models),
        **_results(part, rows, models),
    }
    if not full_information:
        columns["propensity"] = pa.array(part.propensity[rows, models])
    nothing = pa.nulls(len(rows))
    return pa.RecordBatch.from_arrays(
        [columns.get(field.name, nothing).cast(field.type) for field in OUTCOME_SCHEMA], schema=OUTCOME_SCHEMA
    )


def truth_batch(part: TrafficSlice, *, full_information: bool) -> pa.RecordBatch:
    """Rows of `TRUTH_SCHEMA` of one slice; join them with outcomes by request id and model."""
    rows, models = _pairs(part, np.argsort(part.time_us, kind="stable"))
    columns = {
        "request_id": pa.array(_request_ids(part, rows, models, full_information)),
        **_keys(part, rows, models),
        "p_success": pa.array(part.world.true_success(part.prompts)[rows, models]),
        "output_tokens": pa.array(part.world.true_output_tokens(part.prompts)[rows, models]),
        "cost_usd": pa.array(part.expected_cost()[rows, models]),
        "propensity": pa.array(part.propensity[rows, models]),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in TRUTH_SCHEMA.names], schema=TRUTH_SCHEMA)


def _pairs(part: TrafficSlice, order: IntArray) -> tuple[IntArray, IntArray]:
    """Every request with every model that could be called."""
    models = np.flatnonzero(part.available)
    return np.repeat(order, len(models)), np.tile(models, len(order))


def _request_ids(part: TrafficSlice, rows: IntArray, models: IntArray, full_information: bool) -> list[str]:
    if not full_information:
        return [part.request_ids[i] for i in rows]
    return [f"{part.request_ids[i]}-m{j}" for i, j in zip(rows.tolist(), models.tolist(), strict=True)]


def _keys(part: TrafficSlice, rows: IntArray, models: IntArray) -> dict[str, pa.Array]:
    return {
        "prompt_id": _take([prompt_id_of(text) for text in part.prompts.texts], rows),
        "segment": _take([segment.name for segment in part.world.segments], part.prompts.segment[rows]),
        "model": _take(part.world.models, models),
    }


def _results(part: TrafficSlice, rows: IntArray, models: IntArray) -> dict[str, pa.Array]:
    """What came of the calls; a failed one took its time and left an error."""
    world, outcomes, failed = part.world, part.outcomes, part.failed[rows, models]
    inputs = world.input_tokens(part.prompts)
    cost = world.price(inputs, outcomes.output_tokens, part.cached_tokens)
    known = {
        "success": outcomes.success,
        "input_tokens": inputs,
        "cached_input_tokens": part.cached_tokens,
        "output_tokens": outcomes.output_tokens,
        "cost_usd": cost,
        "ttft_ms": outcomes.ttft_ms,
    }
    providers = [offer.provider for offer in cheapest_offers(world.catalog)]
    errors = [
        f"503 service unavailable: {providers[j]}" if bad else None for j, bad in zip(models, failed, strict=True)
    ]
    columns = {name: pa.array(values[rows, models], mask=failed) for name, values in known.items()}
    if part.reported_us is not None:
        reported = part.reported_us[rows, models]
        silent = failed | (reported < 0)
        columns["success"] = pa.array(outcomes.success[rows, models], mask=silent)
        columns["reported_at"] = pa.array(reported, mask=silent).cast(pa.timestamp("us", tz="UTC"))
    return {
        **columns,
        "latency_ms": pa.array(np.where(failed, FAILURE_MS, outcomes.latency_ms[rows, models])),
        "error": pa.array(errors, type=pa.string()),
    }


def _take(values: Sequence[str], index: NDArray[Any]) -> pa.Array:
    return pa.array(values, type=pa.string()).take(pa.array(index))
