"""Prompts with what makes each of them hard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router_ml.types import Float64Array

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prompts:
    """n prompts in the order of their sessions; every field has n entries."""

    texts: tuple[str, ...]
    segment: IntArray
    """Index into the world's segments."""
    topic: IntArray
    """Index into the world's topics; -1 for texts that many users send word for word."""
    level: IntArray
    """0 easy to 2 hard; -1 where `topic` is."""
    session: IntArray
    turn: IntArray
    tenant: IntArray
    difficulty: Float64Array
    """Log-odds; what shows in the text."""
    hidden_difficulty: Float64Array
    """Standard normal; what no reader of the text can see."""
    skill: Float64Array
    """[n, N_SKILLS], how much each latent skill helps."""
    n_words: IntArray
    tokens: Float64Array
    """Input tokens before the model's own factor."""
    prefix_tokens: Float64Array
    """Of these, tokens of the prefix that an earlier turn of the session sent too."""
    log_output_tokens: Float64Array
    """Logarithm of the median answer's tokens before the model's own verbosity."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def length(self) -> Float64Array:
        """Logarithm of the number of words, roughly standardised, [n]."""
        return standard_length(self.n_words)

    def take(self, rows: ArrayLike) -> Prompts:
        """The prompts at these positions."""
        index = np.arange(len(self))[np.asarray(rows)]
        columns: dict[str, Any] = {}
        for field in fields(self):
            column = getattr(self, field.name)
            columns[field.name] = tuple(column[i] for i in index) if isinstance(column, tuple) else column[index]
        return Prompts(**columns)

    @classmethod
    def concatenate(cls, parts: Sequence[Prompts]) -> Prompts:
        """Parts of different sessions, one after the other."""
        columns: dict[str, Any] = {}
        for field in fields(cls):
            pieces = [getattr(part, field.name) for part in parts]
            columns[field.name] = tuple(chain(*pieces)) if isinstance(pieces[0], tuple) else np.concatenate(pieces)
        return cls(**columns)


def standard_length(n_words: IntArray) -> Float64Array:
    """Logarithm of numbers of words, less its typical mean, over its typical standard deviation."""
    return np.asarray((np.log(n_words) - np.log(60.0)) / 0.8)
