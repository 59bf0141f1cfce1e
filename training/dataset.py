"""The outcome table as numbers: what every stage after reading works on.

Prompts are kept as token ids, embedding and side features, their text is let go,
so that memory grows with tokens and not with text. Array letters: n prompts,
m models, r rows (a row is one prompt on one model), d embedding, f side features.
A prompt here is a distinct pair of text (or embedding) and segment, whatever ids a file gives it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.features import Features, no_text_side, side_features, side_matrix
from router_ml.text import Int64Array, Tokenizer
from router_ml.types import Float32Array, Float64Array
from training.conversation import messages_text
from training.outcomes import prompt_id_of
from training.progress import watched_rows

_ROW_COLUMNS = (
    "success",
    "cost_usd",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "latency_ms",
    "propensity",
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """n distinct prompts."""

    prompt_id: NDArray[np.str_]
    """[n], hash of the text or embedding: equal prompts share it, whatever segment sent them."""
    ids: NDArray[np.int32]
    """Token ids of all prompts, end to end."""
    start: NDArray[np.int64]
    """[n + 1], where each prompt begins in `ids`."""
    embedding: Float32Array
    """[n, d], unit length; zero for a prompt without any token."""
    given: NDArray[np.bool_]
    """[n], whether the embedding came with the log, without text."""
    side: Float32Array
    """[n, f]"""
    n_tokens: Float32Array
    """[n], NaN without text."""
    segment: NDArray[np.int64]
    """[n], index into `Dataset.segments` plus one; 0 where unknown."""

    def __len__(self) -> int:
        return len(self.prompt_id)

    def ids_of(self, i: int) -> NDArray[np.int32]:
        return self.ids[self.start[i] : self.start[i + 1]]


@dataclass(frozen=True, slots=True)
class Rows:
    """r outcomes; NaN where unknown."""

    prompt: NDArray[np.int64]
    model: NDArray[np.int64]
    success: Float64Array
    cost_usd: Float64Array
    input_tokens: Float64Array
    cached_input_tokens: Float64Array
    output_tokens: Float64Array
    latency_ms: Float64Array
    propensity: Float64Array
    time_us: NDArray[np.int64]
    """Unix microseconds; -1 where unknown."""
    own_split: NDArray[np.str_]
    """The file's own `split`; empty where it has none."""
    session: NDArray[np.int64]
    """Number of the session; -1 where unknown."""

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Prompts, rows, and the names that their indices stand for."""

    prompts: Prompts
    rows: Rows
    models: tuple[str, ...]
    segments: tuple[str, ...]
    fingerprint: str
    """SHA-256 over the rows read, in their order."""

    def where(self, rows: NDArray[np.bool_]) -> Dataset:
        """The same prompts with only the marked rows [r]."""
        return replace(self, rows=_take(self.rows, rows))

    def keep_models(self, names: tuple[str, ...]) -> Dataset:
        """Only the rows of these models, in this order; one that has no rows is kept as a name."""
        place = {name: new for new, name in enumerate(names)}
        index = np.array([place.get(name, -1) for name in self.models], dtype=np.int64)
        model = index[self.rows.model]
        return replace(self, rows=_take(replace(self.rows, model=model), model >= 0), models=names)

    def keep_segments(self, names: tuple[str, ...]) -> Dataset:
        """Segments renumbered by these names; any other becomes unknown."""
        place = {name: new + 1 for new, name in enumerate(names)}
        index = np.array([0, *(place.get(name, 0) for name in self.segments)], dtype=np.int64)
        return replace(self, prompts=replace(self.prompts, segment=index[self.prompts.segment]), segments=names)

    def cells(self, values: Float64Array, weight: Float64Array | None = None) -> tuple[Float64Array, Float64Array]:
        """Mean of a row value and number of known rows per prompt and model, both [n, m]; NaN where none is known."""
        known = ~np.isnan(values)
        flat = self.rows.prompt[known] * len(self.models) + self.rows.model[known]
        shape, size = (len(self.prompts), len(self.models)), len(self.prompts) * len(self.models)
        w = np.ones(known.sum()) if weight is None else weight[known]
        count = np.asarray(np.bincount(flat, w, size), dtype=np.float64)
        total = np.bincount(flat, w * values[known], size)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (total / count).reshape(shape), count.reshape(shape)

    def model_means(self, values: Float64Array) -> Float64Array:
        """Mean of a row value per model, [m]; NaN where none is known."""
        known, m = ~np.isnan(values), len(self.models)
        with np.errstate(invalid="ignore"):
            total = np.bincount(self.rows.model[known], values[known], m)
            return np.asarray(total / np.bincount(self.rows.model[known], minlength=m))

    def prompts_with_rows(self) -> NDArray[np.int64]:
        """Ascending indices of prompts that have at least one row."""
        return np.unique(self.rows.prompt)

    def features(self, index: NDArray[np.int64], pad_id: int) -> Features:
        """Inputs of the graph for the prompts `index`."""
        p = self.prompts
        rows = [p.ids_of(i) for i in index]
        ids = np.full((len(index), max(1, max((len(row) for row in rows), default=1))), pad_id, dtype=np.int64)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = row
        embedding = np.where(p.given[index, None], p.embedding[index], np.float32(0))
        return Features(ids, embedding, p.side[index], p.segment[index], p.n_tokens[index])


def _take(rows: Rows, mask: NDArray[Any]) -> Rows:
    return Rows(**{name: getattr(rows, name)[mask] for name in Rows.__slots__})


class TextEncoder(Protocol):
    """Text to ids and vectors: an encoder, or a bundle's tokenizer where the graph makes the vectors."""

    tokenizer: Tokenizer

    @property
    def sha256(self) -> str | None:
        """Names the encoder; None: one of an older bundle, which has no name."""

    def encode_ids(self, rows: Sequence[Int64Array]) -> Float32Array:
        """Vectors [n, d] of n rows of ids."""


class DatasetBuilder:
    """Takes batches of the outcome table and keeps their numbers."""

    def __init__(self, encoder: TextEncoder | None) -> None:
        self._encoder = encoder
        self._prompt_index: dict[tuple[str, str], int] = {}
        self._model_index: dict[str, int] = {}
        self._segment_index: dict[str, int] = {"": 0}
        self._session_index: dict[str, int] = {}
        self._prompt_parts: list[Prompts] = []
        self._row_parts: list[Rows] = []
        self._hash = hashlib.sha256()

    def add(self, batch: pa.RecordBatch) -> None:
        """Add valid rows of OUTCOME_SCHEMA."""
        prompt_ids = _content_ids(batch)
        segments = [name or "" for name in batch.column("segment").to_pylist()]
        keys = list(zip(prompt_ids, segments, strict=True))
        fresh: list[int] = []
        for i, key in enumerate(keys):
            if key not in self._prompt_index:
                self._prompt_index[key] = len(self._prompt_index)
                fresh.append(i)
        if fresh:
            self._prompt_parts.append(self._prompts(batch.take(pa.array(fresh)), [keys[i] for i in fresh]))
        self._row_parts.append(self._rows(batch, [self._prompt_index[key] for key in keys]))

    def build(self) -> Dataset:
        """The whole table; InputError when it holds neither texts nor embeddings of one length."""
        if not self._row_parts:
            raise InputError("the logs hold no valid row; see the reasons above and in the rejects file")
        starts = [part.start[1:] for part in self._prompt_parts]
        offset = np.cumsum([0] + [int(start[-1]) for start in starts])
        prompts = {
            name: np.concatenate([getattr(part, name) for part in self._prompt_parts])
            for name in Prompts.__slots__
            if name != "start"
        }
        start = np.concatenate([[0], *(part + base for part, base in zip(starts, offset[:-1], strict=True))])
        rows = {name: np.concatenate([getattr(part, name) for part in self._row_parts]) for name in Rows.__slots__}
        return Dataset(
            Prompts(start=start.astype(np.int64), **prompts),
            Rows(**rows),
            tuple(self._model_index),
            tuple(self._segment_index)[1:],
            self._hash.hexdigest(),
        )

    def _prompts(self, batch: pa.RecordBatch, keys: list[tuple[str, str]]) -> Prompts:
        texts = [
            _text(*pair) for pair in zip(*(batch.column(c).to_pylist() for c in ("prompt", "messages")), strict=True)
        ]
        segment = np.array([self._segment(name) for _, name in keys], dtype=np.int64)
        prompt_id = np.array([name for name, _ in keys])
        given = np.array([text is None for text in texts])
        self._check_encoder(batch)
        vectors = self._given(batch) if given.any() else None
        if self._encoder is None:
            if vectors is None or not given.all():
                raise InputError("the logs mix rows with text and rows without; an encoder is needed for the text")
            empty = np.zeros(0, np.int32), np.zeros(len(keys) + 1, np.int64)
            unknown = np.full(len(keys), np.nan, dtype=np.float32)
            return Prompts(prompt_id, *empty, vectors, given, no_text_side(len(keys)), unknown, segment)
        tokens = self._encoder.tokenizer.tokens([text or "" for text in texts])
        # Not even the marks that frame a text stand before a given embedding.
        rows = [row.ids[:0] if without else row.ids for row, without in zip(tokens, given, strict=True)]
        embedding = self._encoder.encode_ids(rows)
        side = side_matrix([side_features(text or "", row.n_whole) for text, row in zip(texts, tokens, strict=True)])
        n_tokens = np.array([row.n_whole for row in tokens], dtype=np.float32)
        if vectors is not None:
            embedding = np.where(given[:, None], self._fitting(vectors, embedding.shape[1]), embedding)
            known_side, known_tokens = _digested(batch)
            side[given], n_tokens[given] = known_side[given], known_tokens[given]
        start = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        flat = np.concatenate(rows).astype(np.int32) if rows else np.zeros(0, np.int32)
        return Prompts(prompt_id, flat, start, embedding, given, side, n_tokens, segment)

    def _given(self, batch: pa.RecordBatch) -> Float32Array:
        values = batch.column("embedding").to_pylist()
        size = max(len(value) for value in values if value is not None)
        rows = np.zeros((len(values), size), dtype=np.float32)
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                row[:] = value
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))

    def _check_encoder(self, batch: pa.RecordBatch) -> None:
        """Embeddings of texts that were not kept are of use only beside the encoder that made them."""
        found = set(batch.column("encoder_sha256").to_pylist()) - {None}
        own = self._encoder.sha256 if self._encoder else None
        if strange := sorted(found - {own}):
            raise InputError(
                f"rows without text carry embeddings of the encoder {strange[0][:12]}, and training uses "
                f"{'the encoder ' + own[:12] if own else 'another one'}; name a bundle that holds that encoder with "
                "--encoder BUNDLE, and train on rows of one encoder"
            )

    def _fitting(self, vectors: Float32Array, size: int) -> Float32Array:
        if vectors.shape[1] != size:
            raise InputError(
                f"rows without text carry embeddings of {vectors.shape[1]} numbers, the encoder makes {size}; "
                "train on rows of one kind, or choose the encoder that made the embeddings"
            )
        return vectors

    def _segment(self, name: str) -> int:
        return self._segment_index.setdefault(name, len(self._segment_index))

    def _session(self, name: str | None) -> int:
        return -1 if name is None else self._session_index.setdefault(name, len(self._session_index))

    def _rows(self, batch: pa.RecordBatch, prompt: list[int]) -> Rows:
        models = batch.column("model").to_pylist()
        model = [self._model_index.setdefault(name, len(self._model_index)) for name in models]
        values = {name: _float(batch.column(name)) for name in _ROW_COLUMNS}
        time = batch.column("timestamp").cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        names = batch.schema.names
        split = batch.column("split").to_pylist() if "split" in names else [None] * len(models)
        session = [self._session(name) for name in batch.column("session_id").to_pylist()]
        self._hash.update("\n".join(batch.column("request_id").to_pylist()).encode())
        self._hash.update("\n".join(models).encode())
        for column in values.values():
            self._hash.update(column.tobytes())
        return Rows(
            prompt=np.array(prompt, dtype=np.int64),
            model=np.array(model, dtype=np.int64),
            time_us=time.astype(np.int64),
            own_split=np.array([name or "" for name in split], dtype="U5"),
            session=np.array(session, dtype=np.int64),
            **values,
        )


def build_dataset(batches: Iterable[pa.RecordBatch], encoder: TextEncoder | None) -> Dataset:
    """Read all batches of an outcome table into numbers."""
    builder = DatasetBuilder(encoder)
    for batch in watched_rows(batches, "reading"):
        builder.add(batch)
    return builder.build()


def _text(prompt: str | None, messages: str | None) -> str | None:
    if prompt is not None:
        return prompt
    return None if messages is None else messages_text(messages)


def _digested(batch: pa.RecordBatch) -> tuple[Float32Array, Float32Array]:
    """Side features [n, f] and tokens [n] of texts that were not kept; zero and NaN where there are none."""
    side = no_text_side(len(batch))
    for row, value in zip(side, batch.column("side_features").to_pylist(), strict=True):
        if value is not None:
            row[:] = value
    return side, _float(batch.column("prompt_tokens")).astype(np.float32)


def _content_ids(batch: pa.RecordBatch) -> list[str]:
    ids = []
    names = ("prompt", "messages", "embedding", "prompt_id", "encoder_sha256")
    for prompt, messages, embedding, prompt_id, encoder in zip(
        *(batch.column(name).to_pylist() for name in names), strict=True
    ):
        text = _text(prompt, messages)
        if text is not None:
            ids.append(prompt_id_of(text))
        elif encoder is not None:  # of a text that was not kept: its keyed hash, for embeddings differ in the last bit
            ids.append(prompt_id)
        else:
            ids.append(prompt_id_of(str(embedding)))
    return ids


def _float(column: pa.Array) -> Float64Array:
    return np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False), dtype=np.float64)
