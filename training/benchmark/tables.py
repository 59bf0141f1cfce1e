"""A table of outcomes as every contestant sees it: texts, vectors, segments, success and cost of every model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Float32Array, Float64Array
from training.conversation import messages_text
from training.dataset import Dataset, build_dataset
from training.encoder import Encoder, EncoderSettings, prepare_encoder, teacher_vectors
from training.outcomes import prompt_id_of, read_outcomes
from training.split import FIT, TEST, TUNE, SplitSettings, assign_split

_FEWEST_SHARED = 100
"""Prompts answered by more than one model: below it a test part is too small to say anything."""


@dataclass(frozen=True, slots=True)
class Table:
    """One data set: n prompts, m models."""

    name: str
    data: Dataset
    texts: tuple[str, ...]
    """[n]"""
    vectors: Float32Array
    """[n, d] of the teacher (MiniLM)."""
    success: Float64Array
    """[n, m], NaN unknown."""
    cost_usd: Float64Array
    """[n, m], NaN unknown; calls of the better model where the table holds two models and no cost."""
    counts_calls: bool
    """Whether that is so."""
    encoder: Encoder

    def hidden(self) -> Table:
        """The same with every segment unknown."""
        return Table(
            self.name,
            self.data.keep_segments(()),
            self.texts,
            self.vectors,
            self.success,
            self.cost_usd,
            self.counts_calls,
            self.encoder,
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """Prompts to fit, to tune and to test on; ascending indices."""

    name: str
    fit: NDArray[np.int64]
    tune: NDArray[np.int64]
    test: NDArray[np.int64]


def read_table(path: Path, prompt_columns: Sequence[str], rejects: Path, encoder: EncoderSettings) -> Table:
    """Read one outcome table; the text is the first of `prompt_columns` that the file holds."""
    column = text_column(path, prompt_columns)
    batches = read_outcomes([path], prompt_column=column, rejects=rejects).batches()
    return make_table(path.stem, batches, encoder)


def make_table(name: str, batches: Iterator[pa.RecordBatch], settings: EncoderSettings) -> Table:
    """From valid rows of the outcome schema; InputError where they hold no text or nothing to choose by."""
    texts: dict[str, str] = {}
    encoder = prepare_encoder(settings)
    data = build_dataset(_remember(name, batches, texts), encoder)
    ordered = tuple(texts[key] for key in data.prompts.prompt_id.tolist())
    success, _ = data.cells(data.rows.success)
    cost, _ = data.cells(data.rows.cost_usd)
    shared = (~np.isnan(success)).sum(axis=1) > 1
    if shared.sum() < _FEWEST_SHARED:
        raise InputError(
            f"{name}: {int(shared.sum())} prompts have answers of several models, the benchmark needs "
            f"{_FEWEST_SHARED}: answers of several models to the same prompts (with one per prompt, see `evaluate`)"
        )
    counts_calls = bool(np.isnan(cost).all())
    if counts_calls:
        if len(data.models) != 2:
            raise InputError(f"{name}: no row has a `cost_usd`, so there is no curve to draw; log costs")
        strong = int(np.nanmean(success, axis=0).argmax())
        calls = np.eye(2)[strong]
        cost = np.tile(calls, (len(success), 1))
        data = replace(data, rows=replace(data.rows, cost_usd=calls[data.rows.model]))
    return Table(name, data, ordered, teacher_vectors(ordered, settings), success, cost, counts_calls, encoder)


def split_parts(table: Table, settings: SplitSettings) -> Parts:
    """FIT, TUNE and TEST prompts by `training.split`, the one place that decides what is test data."""
    rows = table.data.rows
    found = assign_split(table.data.prompts.prompt_id[rows.prompt], rows.time_us, rows.own_split, settings=settings)
    parts = [np.unique(rows.prompt[found.part == part]) for part in (FIT, TUNE, TEST)]
    name = f"seed {settings.seed}" if found.by == "random" else found.by
    return Parts(name, *parts)


def text_column(path: Path, wanted: Sequence[str]) -> str:
    """The first of the columns that a Parquet file holds; the last of them where that cannot be known."""
    held: list[str] = []
    with suppress(pa.ArrowException, OSError):  # reading the table reports what is wrong with the file
        held = pq.read_schema(path).names if path.suffix == ".parquet" else held
    return next((name for name in wanted if name in held), wanted[-1])


def _remember(name: str, batches: Iterator[pa.RecordBatch], texts: dict[str, str]) -> Iterator[pa.RecordBatch]:
    """Pass the batches on, keeping each prompt's text by its id."""
    for batch in batches:
        for prompt, messages in zip(*(batch.column(c).to_pylist() for c in ("prompt", "messages")), strict=True):
            text = prompt if prompt is not None or messages is None else messages_text(messages)
            if text is None:
                raise InputError(
                    f"{name}: the benchmark needs the text of the prompts, since baselines read it; a row has none"
                )
            texts[prompt_id_of(text)] = text
        yield batch
