"""From rows to fit on to a graph that answers: success, length and latency models, joined and opened."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from router_ml import bundle
from router_ml.catalog import Catalog
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Float64Array
from training.cost import fit_input_ratio, fit_magnitude
from training.dataset import Dataset
from training.encoder import Encoder
from training.export import estimates_of
from training.fit import FitSettings, SuccessFit, fit_success, without_prompts
from training.graph import GraphParts, build_graph
from training.operating import fill_outcomes
from training.verdict import Layer, Rating, Verdict, judge

_MOST_PROMPTS = 20_000
"""To rate layers on: more would only cost time."""
_COMPLETE = 0.9
"""Share of the offered models' outcomes that must be known to call a table complete."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A version in the making."""

    success: SuccessFit
    parts: GraphParts
    graph: bytes
    session: ort.InferenceSession
    ratio: tuple[float, ...]
    """Billed input tokens per token of the bundle's tokenizer, [m]."""


def fit_version(
    data: Dataset,
    encoder: Encoder | None,
    settings: FitSettings,
    layer: Layer = Layer.ROUTER,
    weight: Float64Array | None = None,
) -> Fitted:
    """Fit on every row of `data`, which holds only rows to fit on; what `layer` does not look at has no weight.

    `weight` [r]: how much each row counts for the success model; None: one each.
    """
    success = fit_success(data, vocabulary=vocabulary_of(encoder), settings=_settings(settings, layer), weight=weight)
    parts = GraphParts(
        encoder=onnx.load_from_string(encoder.model_bytes) if encoder else None,
        pad_id=encoder.tokenizer.settings.pad_id if encoder else 0,
        embedding_size=data.prompts.embedding.shape[1],
        success=success.model,
        output_tokens=fit_magnitude(data, data.rows.output_tokens, success, settings.trees),
        latency_ms=fit_magnitude(data, data.rows.latency_ms, success, settings.trees),
    )
    graph = build_graph(parts)
    return Fitted(success, parts, graph, bundle.open_session(graph), fit_input_ratio(data))


def fit_verdict(
    data: Dataset,
    encoder: Encoder | None,
    settings: FitSettings,
    fitted: Fitted,
    catalog: Catalog,
    weight: Float64Array | None = None,
) -> Verdict:
    """Rate the router and what it could fall back to on the rows that it was fitted on, out of fold."""
    index = fitted.success.index
    shown = np.sort(np.random.default_rng(settings.seed).permutation(len(index))[:_MOST_PROMPTS])
    p = {Layer.ROUTER: fitted.success.p_success[shown]}
    for layer in (Layer.SEGMENT_MEANS, Layer.SINGLE_MODELS):
        own = _settings(settings, layer)
        simpler = fit_success(data, vocabulary=vocabulary_of(encoder), settings=own, weight=weight)
        p[layer] = simpler.p_success[shown]
    at = index[shown]
    estimates = estimates_of(fitted.session, data, at, fitted.parts.pad_id, fitted.ratio)
    policy = Policy(catalog, data.models, OperatingPoints((1.0,), (0.0,), (1.0,), 1.0))
    price = policy.cheapest(policy.price(estimates))
    success, count = data.cells(data.rows.success)
    offered = ~np.isnan(price).any(axis=0)
    rows = data.rows.propensity[~np.isnan(data.rows.success)]
    # Where a model was certain, nothing is known of the others, and their estimates would judge themselves.
    drawn = np.nan_to_num(rows, nan=1.0) < 1
    certain = (count[at][:, offered] > 0).mean() > _COMPLETE or drawn.mean() > _COMPLETE
    outcomes = fill_outcomes(data, at, p[Layer.ROUTER], price) if certain and offered.any() else None
    return judge(Rating(p, price, success[at], outcomes))


def _settings(settings: FitSettings, layer: Layer) -> FitSettings:
    if layer is Layer.ROUTER:
        return settings
    return without_prompts(settings, segments=layer is Layer.SEGMENT_MEANS)


def vocabulary_of(encoder: Encoder | None) -> int:
    """Number of token ids."""
    return encoder.tokenizer.vocabulary_size if encoder else 1
