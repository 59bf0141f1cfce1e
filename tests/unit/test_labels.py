"""Outcomes that come late are waited for, and silence means what was declared."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from router_ml.errors import InputError
from training.labels import Labels, LabelSettings, Silence
from training.outcomes import OUTCOME_SCHEMA

START = datetime(2026, 11, 1, tzinfo=UTC)


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    filled = [{name: row.get(name) for name in OUTCOME_SCHEMA.names} | {"model": "m"} for row in rows]
    return pa.RecordBatch.from_pylist(filled, schema=OUTCOME_SCHEMA)


def watched(rows: list[dict[str, Any]], settings: LabelSettings | None = None) -> tuple[list[Any], Any, list[str]]:
    """Successes as passed on, which rows are mature, and the notes."""
    labels = Labels(settings or LabelSettings())

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), 400):
            yield batch(rows[start : start + 400])

    passed = [value for each in labels.watch(batches()) for value in each.column("success").to_pylist()]
    return passed, *labels.mature()


def row(hour: float, success: float | None, delay: float | None = None, **other: Any) -> dict[str, Any]:
    time = START + timedelta(hours=hour)
    reported = None if delay is None or success is None else time + timedelta(hours=delay)
    return {"timestamp": time, "success": success, "reported_at": reported} | other


def late(n: int = 4000, hours: float = 400.0) -> list[dict[str, Any]]:
    """Failures are reported after one hour, successes after 20; half and half; what is not in by the end is null."""
    rows = []
    for i in range(n):
        time, success, delay = hours * i / n, float(i % 2), 20.0 if i % 2 else 1.0
        rows.append(row(time, success if time + delay <= hours else None, delay))
    return rows


def test_rows_younger_than_the_slower_kind_of_report_takes_are_left_out() -> None:
    rows = late()
    _, mature, notes = watched(rows)
    assert mature.sum() == pytest.approx(3800, abs=12)  # the newest 20 of 400 hours
    assert mature[:3780].all() and not mature[3820:].any()
    known = np.array([each["success"] for each in rows], dtype=float)
    assert np.nanmean(known) < 0.49 and np.nanmean(known[mature]) == pytest.approx(0.5, abs=0.001)
    assert "younger than 20.0 hours" in notes[0] and "were left out" in notes[0]


def test_a_slow_kind_of_report_is_waited_for_however_rare() -> None:
    kinds = [(i / 10, float(i % 33 == 0), 20.0 if i % 33 == 0 else 1.0) for i in range(4000)]
    rows = [row(time, success if time + delay <= 400 else None, delay) for time, success, delay in kinds]
    mature = watched(rows)[1]
    assert mature[:3500].all() and not mature[-150:].any()


def test_young_rows_of_which_none_is_missing_stay() -> None:
    rows = [row(hour / 100, float(hour % 2), 3.0) for hour in range(400)]  # as of a journal that was read afterwards
    _, mature, notes = watched(rows)
    assert mature.all() and notes == []


def test_a_declared_delay_goes_before_what_the_report_times_tell() -> None:
    assert watched(late(), LabelSettings(delay_hours=100))[1].sum() == pytest.approx(3000, abs=12)
    assert watched(late(), LabelSettings(delay_hours=0))[1].all()


def test_without_times_of_reports_nothing_is_left_out_but_a_falling_label_rate_is_told() -> None:
    rows = [each | {"reported_at": None} for each in late()]
    _, mature, notes = watched(rows)
    assert mature.all()
    assert "seem to be reported late" in notes[0] and "--label-delay" in notes[0]
    steady = [row(i / 10, float(i % 2) if i % 3 else None) for i in range(4000)]
    assert watched(steady)[2] == []


def test_rows_without_times_are_mature() -> None:
    rows = [{"success": float(i % 2)} for i in range(50)]
    _, mature, notes = watched(rows)
    assert mature.all() and notes == []


def test_reports_that_take_longer_than_the_log_is_old_are_an_error() -> None:
    with pytest.raises(InputError, match=r"no row is older than the 1,000\.0 hours"):
        watched(late(), LabelSettings(delay_hours=1000))


def complaints(segment: str | None = None, n: int = 200) -> list[dict[str, Any]]:
    """One failure in ten rows, and nothing else."""
    return [row(i, 0.0 if i % 10 == 0 else None, 0.5, segment=segment) for i in range(n)] + [
        row(n, None, segment=segment, error="timeout")
    ]


def test_a_log_of_complaints_alone_is_refused_with_what_to_say() -> None:
    with pytest.raises(InputError, match=r"only complaints are reported.*say --unreported success"):
        watched(complaints() * 2)
    with pytest.raises(InputError, match=r"in segment `chat` 40 of 400 rows.*--unreported chat=success"):
        watched(complaints("chat", 400) + [row(i, float(i % 2), 0.1, segment="code") for i in range(400)])


def test_silence_stands_for_what_was_declared_and_a_failed_call_stays_unknown() -> None:
    passed, _, notes = watched([*complaints("chat"), row(1, None, segment="code")], _declared("chat=success"))
    assert passed[:3] == [0.0, 1.0, 1.0] and passed[-2:] == [None, None]
    assert sum(value == 1.0 for value in passed) == 180
    assert notes[0] == "180 rows of which nothing was reported were taken for a success, as declared"
    passed, _, _ = watched(complaints("chat"), _declared("failure", "chat=unknown"))
    assert passed.count(None) == 181
    passed, _, _ = watched(complaints(None), _declared("failure"))
    assert passed.count(0.0) == 200


def test_a_few_failures_or_outcomes_of_most_rows_are_no_log_of_complaints() -> None:
    watched([row(i, 0.0 if i < 25 else None) for i in range(500)])
    watched([row(i, 0.0 if i % 3 else None) for i in range(500)])
    watched([row(i, 0.0 if i % 20 else 1.0) if i % 4 == 0 else row(i, None) for i in range(500)])


def test_settings_come_back_from_plain_types_and_wrong_words_are_an_error() -> None:
    settings = _declared("success", "a=b=failure", delay=3.5)
    assert settings.unreported == {"": Silence.SUCCESS, "a=b": Silence.FAILURE}
    assert LabelSettings.from_dict(settings.to_dict()) == settings
    assert LabelSettings.from_dict(None) == LabelSettings()
    for word in ("sucess", "chat=", "chat=1"):
        with pytest.raises(InputError, match="expected one of success, failure, unknown"):
            _declared(word)
    with pytest.raises(InputError, match="number of hours"):
        LabelSettings(delay_hours=-1.0)


def _declared(*words: str, delay: float | None = None) -> LabelSettings:
    return LabelSettings.declared(words, delay)
