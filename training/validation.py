"""Which rows of an outcome table are valid, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.columns import Column

BoolArray = NDArray[np.bool_]

COUNTED_FROM_ZERO = (
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "cost_usd",
    "latency_ms",
    "ttft_ms",
    "prompt_tokens",
)
CLOCK_SKEW = timedelta(days=1)
"""A timestamp may be this far ahead: clocks differ, and so do ideas of the time zone."""


class RejectReason(StrEnum):
    """Why a row is left out; the first that applies is reported."""

    UNREADABLE_ROW = "unreadable_row"
    UNREADABLE_VALUE = "unreadable_value"
    NO_MODEL = "no_model"
    NO_PROMPT = "no_prompt"
    SUCCESS_RANGE = "success_out_of_range"
    PROPENSITY_RANGE = "propensity_out_of_range"
    NEGATIVE = "negative_value"
    FUTURE = "timestamp_in_future"
    EMBEDDING_LENGTH = "embedding_length"
    DUPLICATE = "duplicate_request"


EXPECTED: Mapping[RejectReason, str] = {
    RejectReason.UNREADABLE_ROW: "one whole row",
    RejectReason.UNREADABLE_VALUE: "a value of the column's type",
    RejectReason.NO_MODEL: "the name of the model that answered",
    RejectReason.NO_PROMPT: "a `prompt` that is not blank, `messages` or an `embedding`",
    RejectReason.SUCCESS_RANGE: "0 to 1, or null where it is not known",
    RejectReason.PROPENSITY_RANGE: "above 0 and at most 1, or null where it is not known",
    RejectReason.NEGATIVE: "0 or more, or null where it is not known",
    RejectReason.FUTURE: "a time that has passed; is the clock or the zone right?",
    RejectReason.EMBEDDING_LENGTH: "as many numbers as the first row's embedding",
    RejectReason.DUPLICATE: "each `request_id` once per model; the first is kept",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A reason, the field it is about, and what that field should have held."""

    reason: RejectReason
    field: str
    expected: str


class Findings:
    """The first fault of each of n rows, gathered check by check."""

    def __init__(self, n: int) -> None:
        self._code: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
        self._faults: list[Fault] = []

    def mark(self, bad: BoolArray, reason: RejectReason, field: str, expected: str | None = None) -> None:
        """Note the rows `bad` [n] that had no fault so far."""
        new = bad & self.valid
        if new.any():
            self._faults.append(Fault(reason, field, expected or EXPECTED[reason]))
            self._code[new] = len(self._faults)

    @property
    def valid(self) -> BoolArray:
        """[n], rows without a fault."""
        return np.equal(self._code, 0)

    def faults(self) -> list[tuple[int, Fault]]:
        """Index of each faulty row with its fault, in row order."""
        return [(int(i), self._faults[self._code[i] - 1]) for i in np.flatnonzero(self._code)]


def check_rows(columns: Mapping[str, Column], findings: Findings, *, now: datetime, needs_prompt: bool = True) -> None:
    """Mark rows that miss what is required, or hold a number out of its range.

    `columns` holds every column of the table; `now` has a time zone.
    """
    findings.mark(columns["model"].is_null(), RejectReason.NO_MODEL, "model")
    no_text = columns["prompt"].is_null() & columns["messages"].is_null()
    if needs_prompt:
        findings.mark(no_text & columns["embedding"].is_null(), RejectReason.NO_PROMPT, "prompt")
    success = columns["success"].numbers()
    findings.mark((success < 0) | (success > 1), RejectReason.SUCCESS_RANGE, "success")
    propensity = columns["propensity"].numbers()
    findings.mark((propensity <= 0) | (propensity > 1), RejectReason.PROPENSITY_RANGE, "propensity")
    for name in COUNTED_FROM_ZERO:
        findings.mark(columns[name].numbers() < 0, RejectReason.NEGATIVE, name)
    latest = (now + CLOCK_SKEW).timestamp() * 1e6
    for name in ("timestamp", "reported_at"):
        findings.mark(columns[name].numbers() > latest, RejectReason.FUTURE, name)


def embedding_lengths(embedding: Column) -> NDArray[np.int64]:
    """Numbers in each row's embedding [n]; 0 where it has none."""
    lengths: NDArray[np.int64] = embedding.values.value_lengths().fill_null(0).to_numpy().astype(np.int64)
    return lengths


class SeenKeys:
    """The request ids and models met so far, as 64-bit hashes: 8 bytes a row.

    Two different keys are taken for one with probability n² / 2^65 over n rows.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []

    def add(self, request_ids: pa.Array, models: pa.Array) -> BoolArray:
        """Remember n keys; returns [n], the keys met before, here or in an earlier call."""
        pairs = zip(request_ids.to_pylist(), models.to_pylist(), strict=True)
        keys = np.fromiter(map(hash, pairs), dtype=np.int64, count=len(models))
        first = np.unique(keys, return_index=True)[1]
        seen = np.ones(len(keys), dtype=np.bool_)
        seen[first] = False
        for run in self._runs:
            seen |= run[np.minimum(np.searchsorted(run, keys), len(run) - 1)] == keys
        self._remember(np.sort(keys[~seen]))
        return seen

    def _remember(self, keys: NDArray[np.int64]) -> None:
        """Sorted runs, each more than twice as long as the next, so that few have to be searched."""
        if not len(keys):
            return
        self._runs.append(keys)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate((self._runs[-1], last)), kind="stable")
