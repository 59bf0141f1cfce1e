"""Progress of long work: a bar on a terminal, nothing in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import pyarrow as pa
from tqdm import tqdm  # type: ignore[import-untyped]

_Item = TypeVar("_Item")


def watched(items: Sequence[_Item], what: str) -> Iterable[_Item]:
    """The items, with a bar on standard error that counts them."""
    shown: Iterable[_Item] = tqdm(items, desc=what, disable=None, leave=False)
    return shown


def watched_rows(batches: Iterable[pa.RecordBatch], what: str) -> Iterable[pa.RecordBatch]:
    """The batches, with a bar on standard error that counts their rows."""
    with tqdm(desc=what, unit=" rows", unit_scale=True, disable=None, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(batch.num_rows)
