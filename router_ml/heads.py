"""From features to estimates: one run of the bundle's graph."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from router_ml.features import Features
from router_ml.types import Estimates, Float32Array

OUTPUTS = ("estimates",)
"""[n, 3 m], model after model: odds of success, expected output tokens, expected latency in ms."""

VECTOR = "vector"
"""[n, d], embedding of each prompt, in a graph that embeds text; costs nothing where it is not asked for."""


def estimate(session: ort.InferenceSession, features: Features, input_token_ratio: Float32Array) -> Estimates:
    """Run the graph on n requests; `input_token_ratio` [m] turns tokens of the bundle into billed ones."""
    (flat,) = session.run(OUTPUTS, features.feed())
    return _estimates(flat, features, input_token_ratio)


def estimate_and_embed(
    session: ort.InferenceSession, features: Features, input_token_ratio: Float32Array
) -> tuple[Estimates, Float32Array]:
    """The same with the embeddings [n, d], by one run."""
    flat, vectors = session.run((*OUTPUTS, VECTOR), features.feed())
    return _estimates(flat, features, input_token_ratio), vectors


def _estimates(flat: Float32Array, features: Features, input_token_ratio: Float32Array) -> Estimates:
    p_success, output_tokens, latency_ms = of_graph(flat)
    input_tokens = np.multiply.outer(features.n_tokens, input_token_ratio)
    return Estimates(p_success, output_tokens, latency_ms, input_tokens)


def of_graph(flat: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Probabilities, tokens and latency, each [n, m], of the graph's one output; infinite odds are certainty."""
    one = np.float32(1)
    return one - one / (one + flat[:, 0::3]), flat[:, 1::3], flat[:, 2::3]
