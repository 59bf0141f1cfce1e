"""Decisions that flip when a prompt is written otherwise and means the same; beside TF-IDF at equal quality."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training import metrics
from training.benchmark.baselines import Sample, TfIdf
from training.benchmark.contest import Fit, fit_router, our_sweep, sample_of, sweep
from training.benchmark.tables import Parts, Table
from training.dataset import build_dataset
from training.export import estimates_of
from training.fit import FitSettings
from training.metrics import Ints
from training.outcomes import OUTCOME_SCHEMA

QUALITY_KEPT = 0.97
"""Both routers decide at the cheapest setting that keeps this share of the best single model's quality."""
_TYPOS = 0.02
_EXAMPLES = 4
_C = 1.0

Rewrite = Callable[[str, random.Random], str]


@dataclass(frozen=True, slots=True)
class Flips:
    """Share of test prompts whose model changes."""

    table: str
    segment_known: bool
    n_prompts: int
    quality_kept: float
    router: dict[str, float]
    """By change."""
    tf_idf: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def upper_case(text: str, draw: random.Random) -> str:
    """Every letter a capital."""
    return text.upper()


def white_space(text: str, draw: random.Random) -> str:
    """Doubled spaces and line breaks, and some at both ends."""
    return "  " + re.sub(r"[ \n]", lambda found: found.group() * 2, text) + "\n\n"


def typos(text: str, draw: random.Random) -> str:
    """2 % of the characters: a letter dropped, doubled, replaced or swapped with its neighbour."""
    letters = list(text)
    places = [i for i, letter in enumerate(letters) if letter.isalpha()]
    for i in draw.sample(places, min(len(places), round(_TYPOS * len(text)))):
        kind = draw.randrange(4)
        if kind == 0:
            letters[i] = ""
        elif kind == 1:
            letters[i] *= 2
        elif kind == 2:
            letters[i] = draw.choice(string.ascii_lowercase)
        elif i + 1 < len(letters):
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
    return "".join(letters)


def politeness(text: str, draw: random.Random) -> str:
    """A polite line in front."""
    return f"Hello! Could you please help me with the following? Thank you very much.\n\n{text}"


REWRITES: dict[str, Rewrite] = {
    "upper case": upper_case,
    "white space": white_space,
    "typos in 2 % of characters": typos,
    "polite prefix": politeness,
}
SHUFFLED = "shuffled examples"


def stability(table: Table, parts: Parts, settings: FitSettings, seed: int = 0) -> Flips:
    """Fit both routers on FIT, choose each one's level on TEST as written, rewrite TEST, count flips."""
    block = metrics.complete_block(~np.isnan(table.success[parts.test]) & ~np.isnan(table.cost_usd[parts.test]))
    index, columns = parts.test[block.rows], block.columns
    ours = _Ours(table, fit_router(table, parts.fit, settings), index, columns)
    theirs = _TfIdf(table, TfIdf(sample_of(table, parts.fit), _C), parts.fit, index, columns)
    success, cost = (values[np.ix_(index, columns)] for values in (table.success, table.cost_usd))
    plain = [table.texts[i] for i in index]
    shuffled = list(_with_examples([table.texts[i] for i in parts.fit], plain, seed))
    found: list[dict[str, float]] = []
    for router in (ours, theirs):
        sweep_of = router.choices(plain)
        level = _level(sweep_of, success, cost)
        flips = {}
        for name, rewrite in REWRITES.items():
            draw = random.Random(seed)
            again = router.choices([rewrite(text, draw) for text in plain])[level]
            flips[name] = float(np.mean(again != sweep_of[level]))
        first, second = (router.choices([pair[k] for pair in shuffled])[level] for k in (0, 1))
        flips[SHUFFLED] = float(np.mean(first != second))
        found.append(flips)
    return Flips(table.name, bool(table.data.segments), len(index), QUALITY_KEPT, found[0], found[1])


@dataclass(frozen=True, slots=True)
class _Ours:
    table: Table
    fit: Fit
    index: NDArray[np.int64]
    columns: Ints

    def choices(self, texts: Sequence[str]) -> Ints:
        """[s, n] for the prompts `index` with these texts in their place."""
        segments = self.table.data.prompts.segment[self.index]
        names = [None, *self.table.data.segments]
        n = len(texts)
        columns = {name: pa.nulls(n, OUTCOME_SCHEMA.field(name).type) for name in OUTCOME_SCHEMA.names}
        columns |= {
            "request_id": pa.array([str(i) for i in range(n)]),
            "prompt": pa.array(list(texts)),
            "segment": pa.array([names[k] for k in segments], pa.string()),
            "model": pa.array([self.table.data.models[0]] * n),
        }
        batch = pa.RecordBatch.from_pydict(columns, schema=OUTCOME_SCHEMA)
        data = build_dataset([batch], self.table.encoder).keep_segments(self.table.data.segments)
        fitted = self.fit.fitted
        every = np.arange(len(data.prompts))
        estimates = estimates_of(fitted.session, data, every, fitted.parts.pad_id, fitted.ratio)
        return our_sweep(self.fit, estimates.take(data.rows.prompt), self.columns)


@dataclass(frozen=True, slots=True)
class _TfIdf:
    table: Table
    model: TfIdf
    fit: NDArray[np.int64]
    index: NDArray[np.int64]
    columns: Ints

    def choices(self, texts: Sequence[str]) -> Ints:
        """The same."""
        known = sample_of(self.table, self.index)
        sample = Sample(texts, known.vectors, known.segment, known.n_segments, known.success)
        p: Float64Array = self.model.predict(sample)[:, self.columns]
        price = np.nanmean(self.table.cost_usd[self.fit][:, self.columns], axis=0)
        return sweep(p, np.tile(price, (len(texts), 1)))


def _level(choices: Ints, success: Float64Array, cost: Float64Array) -> int:
    """The cheapest setting that keeps the quality; where none does, the best."""
    points = metrics.sweep_points(success, cost, choices)
    reached = points.quality >= QUALITY_KEPT * points.model_quality[points.best]
    if not reached.any():
        return int(points.quality.argmax())
    return int(np.where(reached, points.cost, np.inf).argmin())


def _with_examples(pool: Sequence[str], texts: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """Each text behind the same few examples in two orders."""
    draw = random.Random(seed)
    for text in texts:
        examples = draw.sample(list(pool), min(_EXAMPLES, len(pool)))
        yield "\n\n".join([*examples, text]), "\n\n".join([*reversed(examples), text])
