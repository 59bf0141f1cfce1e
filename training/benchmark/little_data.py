"""Few logs: what a version is worth that saw 100, 300, 1,000 or 3,000 prompts, and whether it knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.benchmark.baselines import Learner, by_model, by_segment, tf_idf
from training.benchmark.contest import play
from training.benchmark.standings import Standing, standing
from training.benchmark.tables import Parts, Table
from training.fit import FitSettings

SIZES = (100, 300, 1000, 3000)
MEANS = "mean per model"
_LEARNERS: dict[str, Learner] = {MEANS: by_model, "segment means": by_segment, "TF-IDF + LR": tf_idf}
_TO_FIT = 0.8
"""Of the logged prompts; the rest sets operating points, as in `train`."""


@dataclass(frozen=True, slots=True)
class SmallTable:
    """One table at one size."""

    size: int
    """Logged prompts."""
    standing: Standing

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def little_data(table: Table, splits: Sequence[Parts], settings: FitSettings) -> Iterator[SmallTable]:
    """Sizes that leave the test parts whole; each split draws its own logs."""
    for size in SIZES:
        if min(len(parts.fit) + len(parts.tune) for parts in splits) < size:
            return
        rounds = [play(table, _logged(parts, size, seed), settings, _LEARNERS) for seed, parts in enumerate(splits)]
        yield SmallTable(size, standing(rounds, len(table.texts))[0])


def _logged(parts: Parts, size: int, seed: int) -> Parts:
    """Only `size` of the prompts that are not for testing."""
    drawn = np.random.default_rng(seed).permutation(np.concatenate([parts.fit, parts.tune]))[:size]
    edge = round(_TO_FIT * size)
    return Parts(parts.name, np.sort(drawn[:edge]), np.sort(drawn[edge:]), parts.test)
