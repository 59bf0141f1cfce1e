"""The gathered rows of some days, with their outcomes as the version that reads them was told to take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.labels import Labels, LabelSettings

_OF_LABELS = ["timestamp", "reported_at", "success", "segment", "error"]


def rows_between(outcomes: Path, first_us: int, last_us: int | None, labels: LabelSettings) -> pa.Table:
    """Rows from one moment to another, both included; None: to the newest.

    Where nothing was reported success is what was declared, and null where it is too early to know.
    """
    whole = pq.read_table(outcomes, columns=_OF_LABELS)
    watch = Labels(labels)
    told = pa.Table.from_batches(watch.watch(iter(whole.to_batches())), whole.schema)
    mature, _ = watch.mature()
    at = pc.field("timestamp")
    asked = at >= _moment(first_us)
    inside = pc.greater_equal(whole["timestamp"], _moment(first_us))
    if last_us is not None:
        asked &= at <= _moment(last_us)
        inside = pc.and_(inside, pc.less_equal(whole["timestamp"], _moment(last_us)))
    rows = pq.read_table(outcomes, filters=asked)
    inside = inside.fill_null(False).to_numpy()
    success = told["success"].fill_null(np.nan).to_numpy()[inside]
    success = pa.array(np.where(mature[inside], success, np.nan), from_pandas=True)  # NaN is null
    return rows.set_column(rows.schema.get_field_index("success"), rows.schema.field("success"), success)


def _moment(us: int) -> pa.Scalar:
    return pa.scalar(us, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
