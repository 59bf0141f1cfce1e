"""Canary prompts: what a version answered where it was made, to be asked again wherever it is loaded.

The parity gate of training holds the graph equal to the native models on the machine that trained.
Canaries carry that on: other versions of onnxruntime and tokenizers, or another processor, must
give the same estimates, or the version is refused before it decides anything. The prompts are
made of the tokenizer's own vocabulary (or of random vectors), so no user's prompt is among them.
"""

from __future__ import annotations

import math

import numpy as np

from router_ml.bundle import Bundle, Canary
from router_ml.errors import BundleError
from router_ml.types import Estimates, Request

_LENGTHS = (1, 12, 120, 900)
"""In tokens; the longest also meets the cut of most tokenizers."""
_ODD_TEXT = "Größe 数据 🙂 naïve\tCafé — x=3; {y: `z`}\n\n1,234.5 % ?"
_P_TOLERANCE = 1e-3
_RELATIVE_TOLERANCE = 1e-2


def request_of(canary: Canary) -> Request:
    """What is asked."""
    vector = None if canary.embedding is None else np.array(canary.embedding, dtype=np.float32)
    return Request(text=canary.text, embedding=vector, segment=canary.segment)


def canary_requests(bundle: Bundle) -> list[Request]:
    """Prompts for a bundle, the same each time."""
    rng = np.random.default_rng(0)
    segments = (*bundle.manifest.segments[:2], None)
    if bundle.tokenizer is None:
        texts: list[str | None] = [None] * len(_LENGTHS)
    else:
        texts = [*(bundle.tokenizer.sample(rng, length) for length in _LENGTHS), _ODD_TEXT]
    return [
        Request(
            text=text,
            embedding=None if text else rng.normal(size=bundle.manifest.embedding_size).astype(np.float32),
            segment=segments[i % len(segments)],
        )
        for i, text in enumerate(texts)
    ]


def canaries_of(requests: list[Request], estimates: Estimates) -> tuple[Canary, ...]:
    """Requests with what was estimated for them, to be kept in a manifest."""
    return tuple(
        Canary(
            text=request.text,
            embedding=None if request.embedding is None else tuple(request.embedding.tolist()),
            segment=request.segment,
            p_success=tuple(p),
            output_tokens=tuple(map(_known, tokens)),
            latency_ms=tuple(map(_known, latency)),
        )
        for request, p, tokens, latency in zip(
            requests,
            estimates.p_success.tolist(),
            estimates.output_tokens.tolist(),
            estimates.latency_ms.tolist(),
            strict=True,
        )
    )


def check_canaries(bundle: Bundle, found: Estimates) -> None:
    """BundleError unless `found`, the estimates for the bundle's canaries, are those of where it was made.

    Allowed are 0.001 of a probability and 1 % of tokens and latency: many times what rounding does.
    """
    for i, canary in enumerate(bundle.manifest.canaries):
        for name in ("p_success", "output_tokens", "latency_ms"):
            stated = np.array([np.nan if value is None else value for value in getattr(canary, name)])
            given = getattr(found, name)[i].astype(np.float64)
            allowed = _P_TOLERANCE if name == "p_success" else _RELATIVE_TOLERANCE * np.abs(stated)
            wrong = (np.isnan(stated) != np.isnan(given)) | (np.abs(stated - given) > allowed)
            if wrong.any():
                j = int(np.flatnonzero(wrong)[0])
                raise BundleError(
                    f"version {bundle.manifest.version} does not answer as where it was made: canary prompt {i}, "
                    f"model {bundle.manifest.models[j]}, `{name}` {given[j]:.6g}, expected {stated[j]:.6g}; compare "
                    "the installed onnxruntime and tokenizers with `packages` of its manifest"
                )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
