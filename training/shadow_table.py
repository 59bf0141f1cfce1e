"""Shadow decisions of a journal as a table: what a version would have decided that only looked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from router_ml.records import RecordKind
from router_ml.segments import read_records
from router_ml.v1 import log_pb2

SHADOW_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("test", pa.string()),
        ("version", pa.string()),
        ("offer", pa.string()),
        ("model", pa.string()),
        ("p_success", pa.float64()),
        ("cost_usd", pa.float64()),
        ("agrees", pa.bool_()),
        ("served_p_success", pa.float64()),
        ("served_cost_usd", pa.float64()),
        ("served_propensity", pa.float64()),
        ("decision_us", pa.int64()),
        ("error", pa.string()),
    ]
)
"""One row per shadow test and decision, which has the same `request_id` in the outcome table. Null: unknown, or, where
`error` says why, nothing was chosen. `p_success` and `cost_usd` are the shadow's estimates of its choice, the `served_`
ones its estimates of the offer that was chosen; `served_propensity` in [0, 1] is the probability with which it would
have chosen the model that was; `decision_us` are the microseconds that it took."""

_OPTIONAL = ("p_success", "cost_usd", "served_p_success", "served_cost_usd")


def read_shadows(source: str | Path | Iterable[str | Path]) -> pa.Table:
    """Rows of SHADOW_SCHEMA from a journal folder or segment files, each once; InputError where there is none such."""
    return pa.Table.from_pylist(list(_rows(source)), SHADOW_SCHEMA)


def _rows(source: str | Path | Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    seen: set[tuple[str, str]] = set()
    for record in read_records(source, only=(RecordKind.SHADOW,)):
        shadow = record.shadow
        key = shadow.decision_id, shadow.test
        if key not in seen:
            seen.add(key)
            yield _row(shadow)


def _row(shadow: log_pb2.ShadowRecord) -> dict[str, Any]:
    return {
        "request_id": shadow.decision_id,
        "timestamp": shadow.time_unix_micros,
        "test": shadow.test,
        "version": shadow.version,
        "offer": shadow.offer or None,
        "model": shadow.model or None,
        "agrees": shadow.agrees,
        "served_propensity": shadow.served_propensity,
        "decision_us": shadow.micros,
        "error": shadow.error or None,
    } | {name: getattr(shadow, name) if shadow.HasField(name) else None for name in _OPTIONAL}
