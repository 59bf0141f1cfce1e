"""From requests to the inputs of a bundle's graph: what each holds, and which are run together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from router_ml.bundle import Bundle
from router_ml.features import Features, no_text_side, side_features, side_matrix
from router_ml.text import prompt_text
from router_ml.types import Float32Array, Request

_BATCH_TOKENS = 2048
"""Token positions in one run of the graph: the vectors of more would fall out of the processor's cache."""
_ROW_TOKENS = 8
"""What a row of the graph costs beside its tokens."""

_Rows = list[NDArray[np.int64]]


class RequestFeatures:
    """Makes the features of requests that the bundle takes. Safe to share between threads."""

    def __init__(self, bundle: Bundle) -> None:
        self._tokenizer = bundle.tokenizer
        self._embedding_size = bundle.manifest.embedding_size
        self._segment_index = {name: k + 1 for k, name in enumerate(bundle.manifest.segments)}

    def together(self, requests: Sequence[Request]) -> Features:
        """Features of requests that are run together, whatever their lengths."""
        rows, side, n_tokens = self._texts(requests)
        # One row needs no padding, unless it is empty.
        ids = rows[0][None] if len(rows) == 1 and rows[0].size else self._padded(rows)
        return Features(ids, self._embedding(requests), side, self._segment(requests), n_tokens)

    def parts(self, requests: Sequence[Request], *, alone: bool = False) -> Iterator[tuple[NDArray[np.intp], Features]]:
        """Places of requests of like length, which are to be run together, and their features; `alone`: of each."""
        rows, side, n_tokens = self._texts(requests)
        embedding, segment = self._embedding(requests), self._segment(requests)
        lengths = np.array([len(row) for row in rows], dtype=np.intp)
        order = np.argsort(lengths, kind="stable")
        start = 0
        while start < len(order):
            stop = start + 1
            while (
                not alone
                and stop < len(order)
                and (stop - start + 1) * (lengths[order[stop]] + _ROW_TOKENS) <= _BATCH_TOKENS
            ):
                stop += 1
            part = order[start:stop]
            ids = self._padded([rows[i] for i in part.tolist()])
            yield part, Features(ids, embedding[part], side[part], segment[part], n_tokens[part])
            start = stop

    def _texts(self, requests: Sequence[Request]) -> tuple[_Rows, Float32Array, Float32Array]:
        """Token ids [n], not padded, `side` and `n_tokens`; all as of no text for requests without."""
        n = len(requests)
        if self._tokenizer is None:
            return [np.zeros(1, dtype=np.int64)] * n, no_text_side(n), np.full(n, np.nan, dtype=np.float32)
        texts = [request.text if request.text is not None else prompt_text(request.messages) for request in requests]
        tokens = self._tokenizer.tokens(texts)
        rows = [row.ids for row in tokens]
        side = side_matrix([side_features(text, row.n_whole) for text, row in zip(texts, tokens, strict=True)])
        n_tokens = np.array([row.n_whole for row in tokens], dtype=np.float32)
        vectors = [i for i, request in enumerate(requests) if request.embedding is not None]
        if vectors:
            side[vectors], n_tokens[vectors] = 0.0, np.nan
            for i in vectors:
                rows[i] = rows[i][:0]
        return rows, side, n_tokens

    def _padded(self, rows: _Rows) -> NDArray[np.int64]:
        return np.stack(rows) if self._tokenizer is None else self._tokenizer.pad(rows)

    def _embedding(self, requests: Sequence[Request]) -> Float32Array:
        embedding = np.zeros((len(requests), self._embedding_size), dtype=np.float32)
        for i, request in enumerate(requests):
            if request.embedding is not None:
                embedding[i] = request.embedding / np.linalg.norm(request.embedding)
        return embedding

    def _segment(self, requests: Sequence[Request]) -> NDArray[np.int64]:
        index = self._segment_index
        return np.array([index.get(request.segment or "", 0) for request in requests], dtype=np.int64)
