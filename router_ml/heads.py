"""From features to estimates: one run of the bundle's graph."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from router_ml.features import Features
from router_ml.types import Estimates, Float32Array

OUTPUTS = ("p_success", "output_tokens", "latency_ms")


def estimate(session: ort.InferenceSession, features: Features, input_token_ratio: Float32Array) -> Estimates:
    """Run the graph on n requests; `input_token_ratio` [m] turns tokens of the bundle into billed ones."""
    p_success, output_tokens, latency_ms = session.run(OUTPUTS, features.feed())
    input_tokens = np.multiply.outer(features.n_tokens, input_token_ratio)
    return Estimates(p_success, output_tokens, latency_ms, input_tokens)
