"""From features to estimates: one run of the bundle's graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from router_ml.features import Features
from router_ml.types import Estimates, Float32Array

OUTPUTS = ("estimates",)
"""[n, 3 m], model after model: odds of success, expected output tokens, expected latency in ms."""

VECTOR = "vector"
"""[n, d], embedding of each prompt, in a graph that embeds text; costs nothing where it is not asked for."""


DEVIATION = ("deviation",)
"""[n, m], standard deviation of each model's log-odds of success: the output of a bundle's second graph."""


class Row(NamedTuple):
    """The estimates of one request in plain numbers, each [m]; NaN: unknown."""

    p_success: list[float]
    output_tokens: list[float]
    latency_ms: list[float]
    input_tokens: list[float]


def estimate(session: ort.InferenceSession, features: Features, input_token_ratio: Float32Array) -> Estimates:
    """Run the graph on n requests; `input_token_ratio` [m] turns tokens of the bundle into billed ones."""
    (flat,) = session.run(OUTPUTS, features.feed())
    p_success, output_tokens, latency_ms = of_graph(flat)
    input_tokens = np.multiply.outer(features.n_tokens, input_token_ratio)
    return Estimates(p_success, output_tokens, latency_ms, input_tokens)


def deviations(
    session: ort.InferenceSession, vector: Float32Array, side: Float32Array, segment: NDArray[np.int64]
) -> Float32Array:
    """Run the second graph on n embeddings [n, d], side features [n, f] and segments [n]; deviations [n, m]."""
    (found,) = session.run(DEVIATION, {"vector": vector, "side": side, "segment": segment})
    return np.asarray(found)


def rows_of(flat: Float32Array, features: Features, input_token_ratio: Sequence[float]) -> Iterator[Row]:
    """The same from the graph's output, but for the rounding of single precision; plain Python is faster here."""
    for values, n_tokens in zip(flat.tolist(), features.n_tokens.tolist(), strict=True):
        yield Row(
            [1.0 - 1.0 / (1.0 + odds) for odds in values[0::3]],
            values[1::3],
            values[2::3],
            [n_tokens * ratio for ratio in input_token_ratio],
        )


def of_graph(flat: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Probabilities, tokens and latency, each [n, m], of the graph's one output; infinite odds are certainty."""
    one = np.float32(1)
    return one - one / (one + flat[:, 0::3]), flat[:, 1::3], flat[:, 2::3]
