"""What silence means, and when it may be heard: outcomes that come late, and outcomes that nobody reports.

A success is often reported hours after its request, and failures faster than successes or slower; so the newest rows
know mostly the fast kind. They are left out until they are as old as nearly all reports take (a maturity window).
And where only complaints are reported, the known outcomes are no sample of all: what an unreported row stands for has
to be declared, for no log can tell silence after a success from silence after a failure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Float64Array

_REPORTED = 0.95
"""Share of the reports that have come in when a row is called mature, for the slower of successes and failures."""
_FEWEST_REPORTS = 50
"""Of one kind, to take its delay from; fewer follow the delay of all."""
_FEWEST_KNOWN = 30
_ONE_SIDED = 0.02
"""Up to this share of successes among the few outcomes known, failures alone are taken to be reported."""
_SELDOM = 0.5
_NEWEST = 0.05
_HOUR_US = 3.6e9


class Silence(StrEnum):
    """What a row stands for of which nothing was reported."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"
    """Nothing: the known outcomes are taken for a fair sample."""


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """How outcomes are reported; InputError when a value is out of its range."""

    unreported: Mapping[str, Silence] = field(default_factory=dict)
    """By segment; under an empty name, of all others. A call with an `error` stays unknown."""
    delay_hours: float | None = None
    """How long reports take; None: as `reported_at` tells, none where no row has it."""

    def __post_init__(self) -> None:
        if self.delay_hours is not None and not 0 <= self.delay_hours < math.inf:
            raise InputError(f"the label delay must be a number of hours, 0 or more; found {self.delay_hours}")

    @classmethod
    def declared(cls, words: Sequence[str], delay_hours: float | None) -> LabelSettings:
        """From `success` or `SEGMENT=success` as the command line has them."""
        found: dict[str, Silence] = {}
        for word in words:
            segment, _, silence = word.rpartition("=")
            if silence not in list(Silence):
                raise InputError(
                    f"--unreported {word}: expected one of {', '.join(Silence)}, or SEGMENT= before one of them"
                )
            found[segment] = Silence(silence)
        return cls(found, delay_hours)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as `from_dict` takes them."""
        return {"unreported": {name: str(each) for name, each in self.unreported.items()}, "delay": self.delay_hours}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any] | None) -> LabelSettings:
        """None: of a version that knows no settings."""
        stored = stored or {"unreported": {}, "delay": None}
        return cls({name: Silence(each) for name, each in stored["unreported"].items()}, stored["delay"])

    def of(self, segment: str) -> Silence | None:
        """None where nothing was declared."""
        return self.unreported.get(segment, self.unreported.get(""))


@dataclass(slots=True)
class _Count:
    """Of one segment, calls that failed with an error aside."""

    rows: int = 0
    known: int = 0
    successes: float = 0.0


class Labels:
    """Watches outcome rows go by: gives the unreported ones their meaning, and tells in the end which are mature."""

    def __init__(self, settings: LabelSettings) -> None:
        self._settings = settings
        self._counts: dict[str, _Count] = {}
        self._filled: Counter[Silence] = Counter()
        self._times: list[NDArray[np.int64]] = []
        self._reported: list[NDArray[np.int64]] = []
        self._success: list[Float64Array] = []

    def watch(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass on batches of OUTCOME_SCHEMA with declared outcomes in place of unreported ones."""
        for batch in batches:
            success = _numbers(batch.column("success"))
            self._times.append(_microseconds(batch.column("timestamp")))
            self._reported.append(_microseconds(batch.column("reported_at")))
            self._success.append(success)
            yield self._declared(batch, success)

    def _declared(self, batch: pa.RecordBatch, success: Float64Array) -> pa.RecordBatch:
        called = batch.column("error").is_null().to_numpy(zero_copy_only=False)
        segments = batch.column("segment").fill_null("").dictionary_encode()
        known, filled = ~np.isnan(success), success.copy()
        for k, name in enumerate(segments.dictionary.to_pylist()):
            inside = (segments.indices.to_numpy() == k) & called
            count = self._counts.setdefault(name, _Count())
            count.rows += int(inside.sum())
            count.known += int((inside & known).sum())
            count.successes += float(success[inside & known].sum())
            silence, silent = self._settings.of(name), inside & ~known
            if silence in (Silence.SUCCESS, Silence.FAILURE):
                filled[silent] = float(silence is Silence.SUCCESS)
                self._filled[silence] += int(silent.sum())
        if not self._filled:
            return batch
        values = pa.array(filled, from_pandas=True)  # NaN is null
        return batch.set_column(batch.schema.get_field_index("success"), batch.schema.field("success"), values)

    def mature(self) -> tuple[NDArray[np.bool_], list[str]]:
        """[r], rows old enough for their outcome to be in, and notes on what was found.

        InputError where a segment reports failures alone and silence has no declared meaning.
        """
        self._check_one_sided()
        if not self._times:
            return np.zeros(0, dtype=bool), []
        time, reported = np.concatenate(self._times), np.concatenate(self._reported)
        success = np.concatenate(self._success)
        notes = [
            f"{count:,} rows of which nothing was reported were taken for a {silence}, as declared"
            for silence, count in sorted(self._filled.items())
        ]
        latest = int(max(time.max(), reported.max()))
        delay = self._settings.delay_hours
        delay_us = _delay(time, reported, success, latest) if delay is None else delay * _HOUR_US
        young = (time >= 0) & (time > latest - delay_us) if delay_us else np.zeros(len(time), dtype=bool)
        if delay is None and young.any() and _none_missing(success, young):
            young[:] = False
        if young.any():
            how = "as declared" if delay is not None else f"as {_REPORTED:.0%} of the slower kind were"
            notes.append(
                f"{int(young.sum()):,} rows are younger than {delay_us / _HOUR_US:,.1f} hours, within which outcomes "
                f"are reported ({how}), and were left out: what is known of them so far is no sample"
            )
        if young.all():
            raise InputError(
                f"no row is older than the {delay_us / _HOUR_US:,.1f} hours that outcomes take to be reported; "
                "wait, or add older logs"
            )
        if delay is None and not (reported >= 0).any():
            notes += _late_by_looks(time, ~np.isnan(success))
        return ~young, notes

    def _check_one_sided(self) -> None:
        doubtful = [
            name for name, count in self._counts.items() if self._settings.of(name) is None and _one_sided(count)
        ]
        if not doubtful:
            return
        everywhere = len(doubtful) == len(self._counts) or "" in doubtful
        names = tuple(self._counts) if everywhere else (doubtful[0],)
        rows, known = (sum(getattr(self._counts[name], field) for name in names) for field in ("rows", "known"))
        where, option = ("", "") if everywhere else (f"in segment `{names[0]}` ", f"{names[0]}=")
        raise InputError(
            f"{where}{known:,} of {rows:,} rows have a known outcome, and nearly all are failures: it looks as if only "
            "complaints are reported, which would teach that every model fails. If silence means success, say "
            f"--unreported {option}success; if the known rows are a fair sample, --unreported {option}unknown"
        )


def _none_missing(success: Float64Array, young: NDArray[np.bool_]) -> bool:
    """Whether outcomes are known of no smaller share of the young rows than of the others."""
    known = ~np.isnan(success)
    return bool(known[young].mean() >= (known[~young].mean() if not young.all() else 1.0))


def _one_sided(count: _Count) -> bool:
    failing = count.successes <= _ONE_SIDED * count.known
    return count.known >= _FEWEST_KNOWN and count.known < _SELDOM * count.rows and failing


def _delay(time: NDArray[np.int64], reported: NDArray[np.int64], success: Float64Array, latest: int) -> float:
    """Microseconds within which `_REPORTED` of successes and of failures are reported, whichever take longer.

    Taken from the older half of the log, where the slow ones have had time to come in; a delay of more than
    half of the log cannot be seen. 0 where no report has a time.
    """
    known = (time >= 0) & (reported >= 0) & ~np.isnan(success)
    if not known.any():
        return 0.0
    oldest = int(time[time >= 0].min())
    old = known & (time <= (oldest + latest) // 2)
    old = old if old.any() else known
    kinds = [old & (success >= 0.5), old & (success < 0.5)]
    kinds = [kind for kind in kinds if kind.sum() >= _FEWEST_REPORTS] or [old]
    delay = np.maximum(reported - time, 0)
    return max(float(np.quantile(delay[kind], _REPORTED)) for kind in kinds)


def _late_by_looks(time: NDArray[np.int64], known: NDArray[np.bool_]) -> list[str]:
    """A note where the newest rows are labelled so much less that outcomes seem to come late; none without times."""
    if (time < 0).any() or len(time) < 20 * _FEWEST_KNOWN:
        return []
    newest = time > np.quantile(time, 1 - _NEWEST)
    if not newest.any():
        return []
    new, old = known[newest].mean(), known[~newest].mean()
    error = math.sqrt(max(old * (1 - old), 1e-9) / newest.sum())
    if old - new < max(4 * error, 0.2 * old):
        return []
    return [
        f"{new:.0%} of the newest rows have a known outcome, {old:.0%} of the others: outcomes seem to be reported "
        "late, and the newest ones to be no sample; log `reported_at`, or give --label-delay HOURS"
    ]


def _numbers(column: pa.Array) -> Float64Array:
    return np.asarray(column.fill_null(np.nan).to_numpy(zero_copy_only=False), dtype=np.float64)


def _microseconds(column: pa.Array) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(column.cast(pa.int64()), -1).to_numpy(zero_copy_only=False), dtype=np.int64)
