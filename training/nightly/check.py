"""The second stage: what the table itself says against training on it, before any time goes into a model.

New rows are those since the last night; the rest of the history is what they are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training.nightly.gates import Gate

_DAY_US = 86_400_000_000
FEWEST_OUTCOMES = 500
_FEWEST_OF_MODEL = 50
_MOST_REJECTED = 0.05
_MOST_MORE_MISSING = 0.2
_LEAST_LABELS = 0.5
"""Of the usual share."""
FEWEST_TO_COMPARE = 100
CONTRADICTION = -4.0
"""Standard errors: by chance one day in thirty thousand is below, were estimates worth nothing; fewer if they are."""
_COLUMNS = ("segment", "cost_usd", "output_tokens", "latency_ms", "propensity")
_OF_ANSWERS = ("cost_usd", "output_tokens", "latency_ms")
"""Not there for a call that failed."""


@dataclass(frozen=True, slots=True)
class _Rows:
    time_us: NDArray[np.int64]
    model: NDArray[np.int64]
    segment: NDArray[np.int64]
    """0: unknown."""
    success: Float64Array
    failed: NDArray[np.bool_]
    missing: dict[str, NDArray[np.bool_]]
    models: tuple[str, ...]


def check(outcomes: Path, gathered: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Gates on the table; `earlier` is what this stage told in nights before, oldest first."""
    rows = _read(outcomes)
    since = gathered["since_us"]
    new = rows.time_us > (rows.time_us.max() - _DAY_US if since is None else since)
    known = ~np.isnan(rows.success)
    labels = float(known[new].mean()) if new.any() else None
    gates = [
        _enough(rows, known),
        _schema(gathered),
        _missing(rows, new),
        _labels(labels, int(new.sum()), [told["new_labels"] for told in earlier]),
        _plausible(rows, known),
        _models(rows, new),
    ]
    return {
        "gates": [gate.to_dict() for gate in gates],
        "rows": len(new),
        "new_rows": int(new.sum()),
        "new_from": None if since is None else _iso(since),
        "new_labels": labels,
        "days": round((int(rows.time_us.max()) - int(rows.time_us.min())) / _DAY_US, 2),
    }


def _read(outcomes: Path) -> _Rows:
    table = pq.read_table(outcomes, columns=["timestamp", "model", "success", "error", *_COLUMNS])
    models = table["model"].combine_chunks().dictionary_encode()
    segments = table["segment"].combine_chunks().dictionary_encode()
    return _Rows(
        table["timestamp"].cast(pa.int64()).to_numpy(),
        models.indices.to_numpy().astype(np.int64),
        pc.fill_null(pc.add(segments.indices.cast(pa.int64()), 1), 0).to_numpy(zero_copy_only=False),
        table["success"].cast(pa.float64()).fill_null(np.nan).to_numpy(),
        table["error"].is_valid().to_numpy(),
        {name: table[name].is_null().to_numpy() for name in _COLUMNS},
        tuple(models.dictionary.to_pylist()),
    )


def _enough(rows: _Rows, known: NDArray[np.bool_]) -> Gate:
    counts = np.bincount(rows.model[known], minlength=len(rows.models))
    usable = int((counts >= _FEWEST_OF_MODEL).sum())
    values = np.unique(rows.success[known])
    n = int(known.sum())
    words = f"{n:,} known outcomes of {len(known):,} rows, {usable} models with {_FEWEST_OF_MODEL} or more"
    if n and len(values) == 1:
        return Gate(
            "enough data",
            False,
            n,
            FEWEST_OUTCOMES,
            f"every known success is {values[0]:g}",
            "Check how outcomes are labelled: with one class there is nothing to learn",
        )
    return Gate(
        "enough data",
        n >= FEWEST_OUTCOMES and usable >= 2,
        n,
        FEWEST_OUTCOMES,
        f"{words}; at least {FEWEST_OUTCOMES} and 2 are needed",
        "Wait for more traffic, take more history (--days), report more outcomes, or add logs of a second model",
    )


def _schema(gathered: dict[str, Any]) -> Gate:
    read, rejected = gathered["rows_read"], gathered["rows_rejected"]
    share = rejected / read if read else 0.0
    return Gate(
        "valid rows",
        share <= _MOST_REJECTED,
        share,
        _MOST_REJECTED,
        f"{rejected:,} of {read:,} rows were not valid ({share:.1%}, at most {_MOST_REJECTED:.0%})",
        "See the rejects files in the folder of the night, each row with its reason, and mend what wrote them",
    )


def _missing(rows: _Rows, new: NDArray[np.bool_]) -> Gate:
    # What is reported with an outcome is not missing where nothing was reported yet.
    reported = ~np.isnan(rows.success)
    for name in _OF_ANSWERS:
        reported |= ~rows.missing[name]
    rises: dict[str, tuple[float, float]] = {}
    for name, missing in rows.missing.items():
        counted = reported & ~rows.failed if name in _OF_ANSWERS else np.ones(len(new), dtype=np.bool_)
        fresh, old = missing[new & counted], missing[~new & counted]
        if min(len(fresh), len(old)) >= FEWEST_TO_COMPARE:
            rises[name] = float(old.mean()), float(fresh.mean())
    if not rises:
        return Gate("missing values", True, None, _MOST_MORE_MISSING, "too few rows to compare new ones with")
    name = max(rises, key=lambda name: rises[name][1] - rises[name][0])
    before, now = rises[name]
    rise = now - before
    words = (
        f"`{name}` is missing in {now:.1%} of the new rows, {before:.1%} before" if rise > 0 else "no more than before"
    )
    return Gate(
        "missing values",
        rise <= _MOST_MORE_MISSING,
        max(rise, 0.0),
        _MOST_MORE_MISSING,
        f"{words} (at most {_MOST_MORE_MISSING:.0%} more)",
        "Find out what stopped writing it; if it is meant so, it becomes usual as days pass",
    )


def _labels(labels: float | None, n_new: int, earlier: Sequence[float | None]) -> Gate:
    usual = [share for share in earlier if share is not None][-7:]
    if labels is None or n_new < FEWEST_TO_COMPARE or not usual:
        told = "no new row" if labels is None else f"known for {labels:.1%} of {n_new:,} new rows"
        return Gate("outcomes reported", True, labels, None, f"{told}, too little to compare with earlier nights")
    limit = _LEAST_LABELS * float(np.median(usual))
    return Gate(
        "outcomes reported",
        labels >= limit,
        labels,
        limit,
        f"known for {labels:.1%} of {n_new:,} new rows, usually {float(np.median(usual)):.1%} at this time",
        "Find out why backends report fewer outcomes; late ones flow into a later night",
    )


def _plausible(rows: _Rows, known: NDArray[np.bool_]) -> Gate:
    """Does any day's outcome contradict what all other days say, as labels turned around would?"""
    day = rows.time_us // _DAY_US
    worst: tuple[float, float, int] | None = None
    bad: list[str] = []
    for number in np.unique(day):
        inside = (day == number) & known
        if inside.sum() < FEWEST_TO_COMPARE:
            continue
        r, z = agreement(_usual(rows, known & ~inside, inside), rows.success[inside], rows.model[inside])
        if worst is None or z < worst[1]:
            worst = r, z, int(number)
        if z < CONTRADICTION:
            bad.append(date_of(int(number)))
    if worst is None:
        return Gate("plausible outcomes", True, None, CONTRADICTION, "too few outcomes a day to compare days")
    r, z, number = worst
    words = f"least agreement with all other days: {date_of(number)}, correlation {r:+.2f} ({z:+.1f} standard errors)"
    options = " ".join(f"--leave-out-day {name}" for name in bad)
    return Gate(
        "plausible outcomes",
        not bad,
        z,
        CONTRADICTION,
        words + (f"; outcomes of {', '.join(bad)} contradict those of the other days" if bad else ""),
        f"Success and failure may have been exchanged: report these outcomes again, corrected, or run with {options}",
    )


def _usual(rows: _Rows, others: NDArray[np.bool_], inside: NDArray[np.bool_]) -> Float64Array:
    """Mean success of the segment and model of each row in `inside`, over the rows `others`; shrunk to the model's."""
    m, n = len(rows.models), int(rows.segment.max()) + 1
    cell = rows.segment * m + rows.model
    count = np.bincount(cell[others], minlength=n * m).reshape(n, m)
    total = np.bincount(cell[others], rows.success[others], n * m).reshape(n, m)
    mean = (total.sum(axis=0) + 1) / (count.sum(axis=0) + 2)
    return np.asarray(((total + 10 * mean) / (count + 10)).ravel()[cell[inside]])


def agreement(expected: Float64Array, found: Float64Array, group: NDArray[np.int64]) -> tuple[float, float]:
    """Correlation of [n] estimates with [n] outcomes within groups, and how many standard errors it is from none.

    Within a group (a model) only the order of its rows counts, so a model that got better or worse as a whole
    contradicts nothing. (0, 0) where estimates or outcomes do not differ within any group.
    """
    x, y = _within(expected, group), _within(found, group)
    scale = math.sqrt(float(x @ x) * float(y @ y))
    if scale < 1e-12:
        return 0.0, 0.0
    error = math.sqrt(float((x * y) @ (x * y)))
    return float(x @ y) / scale, float(x @ y) / error if error else 0.0


def _within(values: Float64Array, group: NDArray[np.int64]) -> Float64Array:
    count = np.bincount(group)
    mean = np.bincount(group, values) / np.maximum(count, 1)
    return np.asarray(values - mean[group])


def _models(rows: _Rows, new: NDArray[np.bool_]) -> Gate:
    now = np.bincount(rows.model[new], minlength=len(rows.models))
    before = np.bincount(rows.model[~new], minlength=len(rows.models))
    fresh = [name for name, a, b in zip(rows.models, now, before, strict=True) if a and not b]
    gone = [name for name, a, b in zip(rows.models, now, before, strict=True) if b >= _FEWEST_OF_MODEL and not a]
    told = [f"new: {', '.join(fresh)}"] if fresh else []
    told += [f"no longer called: {', '.join(gone)}"] if gone else []
    called = int((now > 0).sum())
    return Gate(
        "models",
        True,
        float(called),
        None,
        f"{called} called in the new rows; " + ("; ".join(told) or "none new, none gone"),
    )


def date_of(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds")
