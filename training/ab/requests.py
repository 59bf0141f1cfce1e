"""Outcome tables as requests of a test: rows of one request together, with its arm, its unit and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Float64Array
from training.outcomes import read_outcomes

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DAY_US = 86_400_000_000
_TEXTS = ("request_id", "arm", "version", "segment", "session_id", "tenant", "prompt_id")
_NUMBERS = ("success", "cost_usd", "latency_ms", "input_tokens", "cached_input_tokens")
_LIMIT_WORDS = r"(?i)\b429\b|rate.?limit|quota|budget|too many requests|throttl|insufficient.?(credit|balance)"

Predictor = Callable[[pa.RecordBatch], Float64Array]
"""Success and cost [rows, 2] that one version predicts of the rows of an outcome table, whatever their arm."""


class UnitKind(StrEnum):
    """What is assigned to an arm as a whole."""

    SESSION = "session"
    TENANT = "tenant"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Requests:
    """n requests in order of time; names that the indices stand for; NaN is unknown."""

    arms: tuple[str, ...]
    """By name."""
    segments: tuple[str, ...]
    versions: tuple[str, ...]
    unit_kind: UnitKind
    time_us: Ints
    arm: Ints
    """[n], of the arm under which the request was answered; -1 without one."""
    unit: Ints
    """[n], numbered in order of their first request."""
    segment: Ints
    """[n], -1 unknown."""
    version: Ints
    """[n], -1 unknown."""
    success: Float64Array
    """[n], the best of the models that answered."""
    cost_usd: Float64Array
    """[n], of all models that were called."""
    latency_ms: Float64Array
    """[n], of all models that were called, one after the other."""
    input_tokens: Float64Array
    cached_input_tokens: Float64Array
    failed: Bools
    """[n], every model that was called gave an error."""
    fell_back: Bools
    """[n], more than one model was called, or another one than was decided (a row of such has no propensity)."""
    hit_limit: Bools
    """[n], an error speaks of a rate limit, quota or budget."""
    predicted: Float64Array
    """[n, p], success and cost that one version predicts, whatever the arm; p = 0 without predictions."""
    rows_left_out: Mapping[str, int]
    """Why -> rows."""

    def __len__(self) -> int:
        return len(self.time_us)

    @property
    def day(self) -> Ints:
        """Whole days (UTC) since that of the first request, [n]."""
        days = self.time_us // DAY_US
        return np.asarray(days - days[0])

    @property
    def n_days(self) -> int:
        return int(self.day[-1]) + 1

    def where(self, keep: Bools) -> Requests:
        """The marked requests [n] only; units are numbered anew."""
        return _with_units_in_order(_select(self, np.flatnonzero(keep)))

    def of_arms(self, names: Sequence[str]) -> Requests:
        """Those of these arms only, as if there were no others; InputError where there is none of them."""
        place = np.array([names.index(arm) if arm in names else -1 for arm in self.arms] + [-1])
        keep = place[self.arm] >= 0
        if not keep.any():
            raise InputError(f"no row is of {' or '.join(names)}")
        return replace(self, arms=tuple(names), arm=place[self.arm]).where(keep)


def read_requests(
    paths: Sequence[Path],
    *,
    unit: UnitKind | None = None,
    prompt_column: str = "prompt",
    since: datetime | None = None,
    until: datetime | None = None,
    predictor: Predictor | None = None,
    rejects: Path | None = None,
) -> Requests:
    """Requests of outcome tables (Parquet, JSONL, CSV, folders), from `since` up to but not at `until`.

    `unit`: what was assigned; None: sessions where the table has them, otherwise requests. A row without a session
    or tenant is a unit of its own. InputError names what is missing: timestamps, sessions, tenants.
    """
    read = read_outcomes(paths, prompt_column=prompt_column, rejects=rejects, needs_prompt=False)
    table = pa.Table.from_batches(_slimmed(read.batches(), predictor))
    left_out = {f"rejected as not valid ({reason})": n for reason, n in read.report.rejected_by_reason().items()}
    table = _in_time(table, since, until, left_out)
    unit = unit or (UnitKind.SESSION if table["session_id"].null_count < len(table) else UnitKind.REQUEST)
    return _requests(table, unit, left_out)


def _slimmed(batches: Iterator[pa.RecordBatch], predictor: Predictor | None) -> Iterator[pa.RecordBatch]:
    """Only what is needed, so that a month fits into memory."""
    for batch in batches:
        error = batch["error"]
        columns = {name: batch[name] for name in ("timestamp", *_TEXTS, *_NUMBERS)}
        columns["failed"] = error.is_valid()
        columns["hit_limit"] = pc.fill_null(pc.match_substring_regex(error, _LIMIT_WORDS), False)
        columns["propensity"] = batch["propensity"]
        if predictor is not None:
            success, cost = predictor(batch).T
            columns |= {"p_success": pa.array(success), "p_cost": pa.array(cost)}
        yield pa.RecordBatch.from_pydict(columns)


def _in_time(table: pa.Table, since: datetime | None, until: datetime | None, left_out: dict[str, int]) -> pa.Table:
    time = table["timestamp"]
    if time.null_count == len(table):
        raise InputError("no row has a `timestamp`; a test is read in order of time: give each request its time")
    keep = time.is_valid()
    if time.null_count:
        left_out["without a `timestamp`"] = time.null_count
    for bound, compare in ((since, pc.greater_equal), (until, pc.less)):
        if bound is not None:
            keep = pc.and_(keep, compare(time, pa.scalar(bound, time.type)))
    table = table.filter(keep)
    if not len(table):
        raise InputError("no row lies between --since and --until; give times within the logs")
    return table


def _requests(table: pa.Table, unit: UnitKind, left_out: dict[str, int]) -> Requests:
    time = _numbers(table["timestamp"].cast(pa.int64())).astype(np.int64)
    request = _index(table["request_id"])
    # Rows of one request stand together, in the order of the file; requests in order of time.
    earliest = np.full(int(request.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(earliest, request, time)
    order = np.lexsort((np.arange(len(time)), request, earliest[request]))
    begins = np.flatnonzero(np.diff(request[order], prepend=-1))
    first = order[begins]

    def numbers(name: str, combine: np.ufunc) -> Float64Array:
        return np.asarray(combine.reduceat(_numbers(table[name])[order], begins))

    def marked(name: str, combine: np.ufunc) -> Bools:
        return np.asarray(combine.reduceat(table[name].to_numpy()[order], begins), dtype=np.bool_)

    undecided = table["propensity"].is_null()
    if table["propensity"].null_count == len(table):
        undecided = pc.invert(undecided)
    table = table.append_column("other_model", undecided)
    names, codes = {}, {}
    for name in ("arm", "segment", "version"):
        found, texts = _named(table[name])
        codes[name], names[name] = found[first], texts
    predicted = [numbers(name, np.fmax) for name in ("p_success", "p_cost") if name in table.column_names]
    return _with_units_in_order(
        Requests(
            arms=names["arm"],
            segments=names["segment"],
            versions=names["version"],
            unit_kind=unit,
            time_us=earliest[request[first]],
            unit=_unit_codes(table, unit)[first],
            **codes,
            success=numbers("success", np.fmax),
            cost_usd=numbers("cost_usd", np.add),
            latency_ms=numbers("latency_ms", np.add),
            input_tokens=numbers("input_tokens", np.add),
            cached_input_tokens=numbers("cached_input_tokens", np.add),
            failed=marked("failed", np.logical_and),
            fell_back=(np.diff(begins, append=len(order)) > 1) | marked("other_model", np.logical_or),
            hit_limit=marked("hit_limit", np.logical_or),
            predicted=np.column_stack(predicted) if predicted else np.empty((len(first), 0)),
            rows_left_out=left_out,
        )
    )


def _unit_codes(table: pa.Table, unit: UnitKind) -> Ints:
    request = table["request_id"]
    if unit is UnitKind.REQUEST:
        return _index(request)
    column = f"{unit}_id" if unit is UnitKind.SESSION else str(unit)
    values = table[column]
    if values.null_count == len(table):
        raise InputError(f"--unit {unit} needs the column `{column}`, which is empty; give it, or use --unit request")
    # No session id can look like this, so that none is taken for a request.
    alone = pc.binary_join_element_wise("\x00request", request, "")
    return _index(pc.coalesce(values, alone))


def _index(values: pa.ChunkedArray) -> Ints:
    """A number for each distinct value, [n]."""
    return np.asarray(values.combine_chunks().dictionary_encode().indices.to_numpy(), dtype=np.int64)


def _named(values: pa.ChunkedArray) -> tuple[Ints, tuple[str, ...]]:
    """Index of each value in the sorted names, -1 for null."""
    names = sorted(pc.unique(values.drop_null()).to_pylist())
    index = pc.index_in(values, pa.array(names, pa.string()))
    return index.fill_null(-1).to_numpy().astype(np.int64), tuple(names)


def _numbers(values: pa.ChunkedArray) -> Float64Array:
    return np.asarray(values.cast(pa.float64()).fill_null(np.nan).to_numpy(), dtype=np.float64)


def _select(requests: Requests, rows: Ints) -> Requests:
    arrays = {
        field.name: getattr(requests, field.name)[rows]
        for field in fields(requests)
        if isinstance(getattr(requests, field.name), np.ndarray)
    }
    return replace(requests, **arrays)


def _with_units_in_order(requests: Requests) -> Requests:
    _, first, inverse = np.unique(requests.unit, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return replace(requests, unit=rank[inverse])
