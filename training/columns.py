"""Raw columns cast to the types of the outcome table; what cannot be read is marked, row by row.

A type that could never hold the values (a list where a number belongs) is an
InputError of the file; a single odd value costs its row only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from router_ml.errors import InputError

TIMESTAMP = pa.timestamp("us", tz="UTC")
EMBEDDING = pa.list_(pa.float32())

_NO_NUMBER = frozenset({"", "null", "none", "na", "n/a", "<na>"})
_BOOLEAN = {"true": 1.0, "false": 0.0}
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column of n rows; whole numbers stay float64 until the range checks are done."""

    values: pa.Array
    unreadable: NDArray[np.bool_]
    """[n], rows whose value is of the wrong kind; null in `values`."""
    n_nan: int = 0
    """NaN that were read as null."""

    def numbers(self) -> NDArray[np.float64]:
        """Values [n] of a numeric or time column (then microseconds), NaN where null."""
        values = self.values.cast(pa.int64()) if pa.types.is_timestamp(self.values.type) else self.values
        result: NDArray[np.float64] = values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
        return result

    def is_null(self) -> NDArray[np.bool_]:
        """[n], rows without a value."""
        result: NDArray[np.bool_] = self.values.is_null().to_numpy(zero_copy_only=False)
        return result


def cast_column(raw: pa.Array, field: pa.Field) -> Column:
    """The column as `field` wants it; InputError states the type found and the type expected."""
    if pa.types.is_dictionary(raw.type):
        raw = raw.dictionary_decode()
    if pa.types.is_null(raw.type):
        return Column(pa.nulls(len(raw), _stored_type(field)), _none(raw))
    try:
        return _CASTS[str(field.type)](raw, field)
    except (pa.ArrowNotImplementedError, TypeError):
        raise InputError(
            f"column `{field.name}` is of type {raw.type}, which cannot be read as {_WORDS[str(field.type)]}"
        ) from None


def cast_messages(raw: pa.Array) -> Column:
    """Conversations as JSON text: from text, or from a list of objects as Arrow holds it.

    An empty list or object means none. Unreadable is what is not a list of objects.
    """
    nested = pa.types.is_list(raw.type) or pa.types.is_large_list(raw.type)
    texts = pa.array([json.dumps(x) if x is not None else None for x in raw.to_pylist()]) if nested else raw
    column = cast_column(texts, pa.field("messages", pa.string()))
    return _one_by_one(column.values, _conversation, pa.string())


def expected(field: pa.Field) -> str:
    """What the values of a column must be, in words."""
    return _WORDS["messages" if field.name == "messages" else str(field.type)]


def _text(raw: pa.Array, field: pa.Field) -> Column:
    n_nan = 0
    if pa.types.is_floating(raw.type):
        raw, n_nan = _without_nan(raw)
    if pa.types.is_nested(raw.type):
        raise TypeError
    try:
        values = raw.cast(pa.string())
        values.validate(full=True)  # Parquet files may hold strings that are not UTF-8
    except pa.ArrowInvalid:
        values = pa.array(
            [None if x is None else x.decode("utf-8", "replace") for x in raw.cast(pa.binary()).to_pylist()],
            pa.string(),
        )
    blank = pc.or_(pc.equal(values, ""), pc.utf8_is_space(values))
    # Blank is unknown, so that null is the only way to say it.
    return Column(pc.if_else(blank, None, values) if pc.any(blank).as_py() else values, _none(raw), n_nan)


def _number(raw: pa.Array, field: pa.Field) -> Column:
    bad = _none(raw)
    if _is_text(raw.type):
        parsed = _parse_numbers(raw)
        values, bad = parsed.values, parsed.unreadable
    elif pa.types.is_temporal(raw.type):
        raise TypeError
    else:
        values = raw.cast(pa.float64(), safe=False)
    values, n_nan = _without_nan(values)
    numbers = values.fill_null(0.0).to_numpy(zero_copy_only=False)
    bad = bad | ~np.isfinite(numbers)
    if pa.types.is_integer(field.type):
        # Negative ones are whole: the range check names them.
        bad |= (numbers != np.trunc(numbers)) | (np.abs(numbers) > np.iinfo(np.int32).max)
    return Column(pc.if_else(pa.array(bad), None, values), bad, n_nan)


def _parse_numbers(raw: pa.Array) -> Column:
    try:
        return Column(raw.cast(pa.float64()), _none(raw))
    except pa.ArrowInvalid:
        return _one_by_one(raw, _parse_number, pa.float64())


def _parse_number(text: str) -> float | None:
    word = text.strip().lower()
    if word in _NO_NUMBER:
        return None
    return _BOOLEAN[word] if word in _BOOLEAN else float(word)


def _time(raw: pa.Array, field: pa.Field) -> Column:
    if _is_text(raw.type):
        for kind in (TIMESTAMP, pa.timestamp("us")):
            try:
                return Column(raw.cast(kind).cast(TIMESTAMP), _none(raw))
            except pa.ArrowInvalid:
                continue
        return _one_by_one(raw, _parse_time, TIMESTAMP)
    if not (pa.types.is_timestamp(raw.type) or pa.types.is_date(raw.type)):
        raise TypeError
    return Column(
        raw.cast(pa.timestamp("us", tz=getattr(raw.type, "tz", None)), safe=False).cast(TIMESTAMP), _none(raw)
    )


def _parse_time(text: str) -> datetime | None:
    if text.strip().lower() in {*_NO_NUMBER, "nat"}:
        return None
    return datetime.fromisoformat(text.strip())  # without a zone Arrow takes it as UTC


def _embedding(raw: pa.Array, field: pa.Field) -> Column:
    if _is_text(raw.type):
        column = _one_by_one(raw, _parse_vector, EMBEDDING)
    elif pa.types.is_nested(raw.type) and not pa.types.is_struct(raw.type):
        column = Column(raw.cast(EMBEDDING, safe=False), _none(raw))
    else:
        raise TypeError
    lengths = pc.list_value_length(column.values).fill_null(0).to_numpy()
    numbers = column.values.flatten().fill_null(np.nan).to_numpy(zero_copy_only=False)
    bad = column.unreadable.copy()
    bad[np.repeat(np.arange(len(raw)), lengths)[~np.isfinite(numbers)]] = True
    return Column(pc.if_else(pa.array(bad | (lengths == 0)), pa.scalar(None, EMBEDDING), column.values), bad)


def _parse_vector(text: str) -> list[float] | None:
    if not text.strip():
        return None
    value = json.loads(text)
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError
    return [float(number) for number in value]


def _conversation(text: str) -> str | None:
    value = json.loads(text)
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError
    return text


def _one_by_one(raw: pa.Array, read: Callable[[str], _Value | None], kind: pa.DataType) -> Column:
    values: list[_Value | None] = []
    bad = _none(raw)
    for i, text in enumerate(raw.to_pylist()):
        try:
            values.append(None if text is None else read(text))
        except (ValueError, TypeError, RecursionError, OverflowError):
            values.append(None)
            bad[i] = True
    return Column(pa.array(values, kind), bad)


def _without_nan(values: pa.Array) -> tuple[pa.Array, int]:
    is_nan = pc.is_nan(values).fill_null(False)
    return pc.if_else(is_nan, None, values), int(pc.sum(is_nan).as_py() or 0)


def _stored_type(field: pa.Field) -> pa.DataType:
    return pa.float64() if pa.types.is_integer(field.type) else field.type


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _none(raw: pa.Array) -> NDArray[np.bool_]:
    return np.zeros(len(raw), dtype=np.bool_)


_Cast = Callable[[Any, Any], Column]
_CASTS: dict[str, _Cast] = {
    str(pa.string()): _text,
    str(pa.float64()): _number,
    str(pa.int32()): _number,
    str(TIMESTAMP): _time,
    str(EMBEDDING): _embedding,
}
_WORDS = {
    str(pa.string()): "text",
    str(pa.float64()): "a finite number",
    str(pa.int32()): "a whole number below 2^31",
    str(TIMESTAMP): "a time such as 2026-11-20T10:00:00Z",
    str(EMBEDDING): "a list of finite numbers",
    "messages": "a JSON list of messages",
}
