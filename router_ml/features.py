"""From a request to the inputs of the graph; training calls the same functions.

Graph inputs, for n requests, L token positions, d embedding size, f side features:
`ids` int64 [n, L] padded, `embedding` float32 [n, d] (zeros where text is given),
`side` float32 [n, f], `segment` int64 [n] (0: unknown segment).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float32Array

SIDE_FEATURES = (
    "log_visible_chars",
    "log_tokens",
    "log_lines",
    "log_question_marks",
    "log_digits",
    "log_code_marks",
    "has_text",
)
"""Order of `side`; a bundle records it and is refused by a program that orders them otherwise."""


@dataclass(frozen=True, slots=True)
class Features:
    """Inputs of the graph for n requests, plus the length that prices the input."""

    ids: NDArray[np.int64]
    embedding: Float32Array
    side: Float32Array
    segment: NDArray[np.int64]
    n_tokens: Float32Array
    """[n], tokens of the whole prompt by the bundle's tokenizer, before any cut; NaN without text."""

    def feed(self) -> dict[str, NDArray[np.generic]]:
        """What `session.run` takes."""
        return {"ids": self.ids, "embedding": self.embedding, "side": self.side, "segment": self.segment}


_LINE = re.compile(r"\n\s*\S")


def side_features(text: str, n_tokens: float) -> list[float]:
    """Side features of one prompt, in the order of `SIDE_FEATURES`; counts before the logarithm is taken.

    The counts are of the text as sent, so they see line breaks that the tokenizer drops. White space
    alone changes none of them: lines are those that hold something, characters those that can be seen.
    """
    # One pass in C for each set of characters; they are all ASCII, so one byte each.
    raw = text.encode("utf-8", "replace")
    size = len(raw)
    visible = len(text) - (size - len(raw.translate(None, b" \n\t\r")))
    digits = size - len(raw.translate(None, b"0123456789"))
    code_marks = size - len(raw.translate(None, b"{(;=`"))
    lines = len(_LINE.findall(text.lstrip()))
    return [visible, n_tokens, lines, text.count("?"), digits, code_marks, 0.0]


def side_matrix(counts: Sequence[Sequence[float]]) -> Float32Array:
    """Rows of `side_features` to the graph's `side` [n, f]: logarithms, and a flag that there is text."""
    side = np.log1p(np.asarray(counts, dtype=np.float32).reshape(-1, len(SIDE_FEATURES)))
    side[:, -1] = 1.0
    return side


def no_text_side(n: int) -> Float32Array:
    """`side` of n requests that came as embeddings: all zero, which the flag tells from an empty text."""
    return np.zeros((n, len(SIDE_FEATURES)), dtype=np.float32)
