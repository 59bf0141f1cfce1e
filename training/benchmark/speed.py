"""What the quality costs at serving: latency of a decision in process, and the size of the bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.router import Router

TOKENS = (16, 128, 512, 2048)
_CALLS = 1500


@dataclass(frozen=True, slots=True)
class Speed:
    """One thread, in process, from text to decision, warm."""

    table: str
    n_models: int
    bundle_mb: float
    p50_us: dict[int, float]
    """By tokens of the prompt."""
    p99_us: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_speed(table: str, bundle: Path, texts: Sequence[str]) -> Speed:
    """Route prompts made of the words of `texts`, each different, at four lengths."""
    router = Router.load(bundle)
    size = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
    p50, p99 = {}, {}
    for n_tokens in TOKENS:
        prompts = _prompts(router, texts, n_tokens)
        for text in prompts[: _CALLS // 4]:
            router.route(text)
        taken = []
        for text in prompts:
            start = time.perf_counter_ns()
            router.route(text)
            taken.append((time.perf_counter_ns() - start) / 1e3)
        p50[n_tokens], p99[n_tokens] = (float(value) for value in np.percentile(taken, (50, 99)))
    return Speed(table, len(router.bundle.manifest.models), size, p50, p99)


def _prompts(router: Router, texts: Sequence[str], n_tokens: int) -> list[str]:
    assert router.bundle.tokenizer is not None, "the benchmark trains on text"
    words = np.array(" ".join(texts[:2000]).split())
    rng = np.random.default_rng(0)
    sample = " ".join(rng.choice(words, 1000))[:8000]
    per_word = len(router.bundle.tokenizer.ids(sample)) / len(sample.split())
    length = max(1, round(n_tokens / per_word))
    return [" ".join(rng.choice(words, length)) for _ in range(_CALLS)]
