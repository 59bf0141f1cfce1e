"""What one version predicts of every request of a test, to be used as covariates.

One version for all arms: what each arm's own version predicted, as the journal has it, is influenced by
the arm, and adjusting for it would take away part of the very difference that is asked for.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from router_ml.router import Router
from router_ml.types import Float64Array, Request
from training.ab.requests import Predictor
from training.conversation import messages_text


def predictor_of(router: Router) -> Predictor:
    """Success and cost of the offer that `router` would choose; NaN for a row without a prompt that it can read."""

    def predict(batch: pa.RecordBatch) -> Float64Array:
        asked, rows = requests_in(batch, router)
        found = np.full((len(batch), 2), np.nan)
        if asked:
            found[rows] = _chosen(router, asked)
        return found

    return predict


def requests_in(batch: pa.RecordBatch, router: Router) -> tuple[list[Request], list[int]]:
    """The rows of an outcome table that `router` can read, as requests, and which they are."""
    size = router.bundle.manifest.embedding_size
    columns = (batch[name].to_pylist() for name in ("prompt", "messages", "embedding", "segment"))
    asked: list[Request] = []
    rows: list[int] = []
    for i, (prompt, messages, embedding, segment) in enumerate(zip(*columns, strict=True)):
        text = prompt if prompt is not None or messages is None else messages_text(messages)
        if text is not None and router.bundle.tokenizer is not None:
            asked.append(Request(text=text, segment=segment))
        elif text is None and embedding is not None and len(embedding) == size and np.any(embedding):
            asked.append(Request(embedding=np.asarray(embedding, dtype=np.float32), segment=segment))
        else:
            continue
        rows.append(i)
    return asked, rows


def _chosen(router: Router, asked: list[Request]) -> Float64Array:
    estimates = router.estimate(asked)
    choices = router.policy.choose(estimates)
    chosen, at = choices.chosen, np.arange(len(asked))
    success = estimates.p_success[at, router.policy.column[chosen]].astype(np.float64)
    cost = choices.cost_usd[at, chosen].astype(np.float64)
    # Where no offer fits, nothing is predicted.
    return np.where((chosen >= 0)[:, None], np.column_stack([success, cost]), np.nan)
