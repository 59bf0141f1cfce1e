"""Opens the files an outcome table may come from as batches of raw columns, in bounded memory.

Known names end in .parquet, .pq, .jsonl, .ndjson, .json (one object per line)
or .csv; the text formats also with .gz behind. Row numbers start at 1: the line
of a JSON file, the data row (header not counted) of the others.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from router_ml.errors import InputError

REJECTS_SUFFIX = ".rejects.jsonl"
"""Rejects files carry it, so that a folder can be read again without reading them."""

BATCH_ROWS = 16_384
BATCH_BYTES = 16 << 20
CSV_BLOCK_BYTES = 8 << 20
"""The parser reads several ahead; no row may be longer."""
LONGEST_LINE_BYTES = 64 << 20
"""Beyond it a file is taken for something other than lines of JSON."""


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row that is not a row: broken JSON, or a wrong number of CSV fields."""

    row: int
    problem: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class RawBatch:
    """Rows of one file as they stand there; only the wanted columns are loaded."""

    names: tuple[str, ...]
    """All columns that the file holds, wanted or not."""
    columns: Mapping[str, pa.Array]
    rows: NDArray[np.int64]
    """[n], row number in the file."""
    unreadable: tuple[UnreadableRow, ...] = ()


Reader = Callable[[Path, Collection[str]], Iterator[RawBatch]]


def find_sources(paths: Sequence[Path]) -> list[Path]:
    """The files behind `paths`; folders are searched to any depth, in order of name.

    Hidden files, rejects files and files of other formats in folders are left out.
    InputError: nothing given, no such file, a folder without a file to read, a format not known.
    """
    if not paths:
        raise InputError("no file was given; name at least one Parquet, JSONL or CSV file, or a folder of them")
    return list(dict.fromkeys(chain.from_iterable(_expand(Path(path)) for path in paths)))


def read_source(path: Path, wanted: Collection[str]) -> Iterator[RawBatch]:
    """Yield the rows of one file; InputError names it when it is damaged or of another format.

    A file with columns and no rows yields one batch of no rows; an empty file yields nothing.
    """
    kind, reader = _format_of(path)
    try:
        if path.stat().st_size:
            yield from reader(path, wanted)
    except (pa.ArrowException, OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        detail = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(f"{path}: cannot be read as {kind} ({detail}); {_remedy(detail)}") from None


def _remedy(detail: str) -> str:
    if "utf" in detail.lower():
        return "save it as UTF-8"
    if "straddl" in detail:
        return f"a row is longer than {CSV_BLOCK_BYTES >> 20} MB: is a quote left open?"
    return "is the file whole, and of the format in its name?"


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_dir():
        _format_of(path)
        return [path]
    found = sorted(file for file in path.rglob("*") if _is_source(file.relative_to(path)) and file.is_file())
    if not found:
        raise InputError(f"{path}: the folder holds no file to read; expected names ending in {', '.join(_FORMATS)}")
    return found


def _is_source(name: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return not hidden and not name.name.endswith(REJECTS_SUFFIX) and _suffix(name) in _FORMATS


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _format_of(path: Path) -> tuple[str, Reader]:
    try:
        return _FORMATS[_suffix(path)]
    except KeyError:
        raise InputError(f"{path}: format not known by its name; expected one of {', '.join(_FORMATS)}") from None


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_parquet(path: Path, wanted: Collection[str]) -> Iterator[RawBatch]:
    # Buffered pages instead of whole column chunks: pandas writes one row group of a million rows.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        names = tuple(file.schema_arrow.names)
        columns = [name for name in names if name in wanted]
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        per_row = max(1, size // max(1, file.metadata.num_rows))
        batch_rows = int(np.clip(BATCH_BYTES // per_row, 64, BATCH_ROWS))
        start = 1
        for batch in file.iter_batches(batch_size=batch_rows, columns=columns):
            yield RawBatch(names, dict(zip(columns, batch.columns, strict=True)), _numbers(start, batch.num_rows))
            start += batch.num_rows
        if start == 1:
            empty = file.schema_arrow.empty_table()
            yield RawBatch(names, {name: empty[name].combine_chunks() for name in columns}, _numbers(1, 0))


def _read_csv(path: Path, wanted: Collection[str]) -> Iterator[RawBatch]:
    names = _csv_header(path)
    columns = [name for name in names if name in wanted]
    broken: list[UnreadableRow] = []

    def skip(row: Any) -> str:
        problem = f"expected {row.expected_columns} fields, found {row.actual_columns}"
        broken.append(UnreadableRow(row.number - 1, problem, row.text))
        return "skip"

    with _open(path) as stream:
        reader = pa_csv.open_csv(
            stream,
            # One thread, or rows that are skipped would not know their number.
            pa_csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK_BYTES),
            pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            # Everything as text: one odd cell must cost its row, not the file.
            pa_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=columns,
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
        yield from _csv_batches(names, columns, reader, broken)


def _csv_header(path: Path) -> tuple[str, ...]:
    with _open(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        names = tuple(next(csv.reader(text), ()))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: the header names {twice} more than once; column names must be unique")
    return names


def _csv_batches(
    names: tuple[str, ...], columns: list[str], batches: Iterable[pa.RecordBatch], broken: list[UnreadableRow]
) -> Iterator[RawBatch]:
    yield RawBatch(names, {name: pa.array([], pa.string()) for name in columns}, _numbers(1, 0))
    start = 1
    gaps: set[int] = set()
    for batch in batches:
        # The parser may be ahead of this batch: broken rows of later batches can be among these already.
        faults = tuple(broken)
        broken.clear()
        gaps |= {fault.row for fault in faults}
        candidates = _numbers(start, batch.num_rows + len(gaps))
        rows = candidates[~np.isin(candidates, list(gaps))][: batch.num_rows]
        start = int(rows[-1]) + 1 if len(rows) else start
        gaps = {row for row in gaps if row >= start}
        yield RawBatch(names, dict(zip(columns, batch.columns, strict=True)), rows, faults)
    if broken:
        yield RawBatch(names, {name: pa.array([], pa.string()) for name in columns}, _numbers(start, 0), tuple(broken))


def _read_json_lines(path: Path, wanted: Collection[str]) -> Iterator[RawBatch]:
    with _open(path) as stream:
        for block in _line_blocks(path, stream):
            yield _parse_lines(block, wanted)


def _line_blocks(path: Path, stream: BinaryIO) -> Iterator[list[tuple[int, bytes]]]:
    block: list[tuple[int, bytes]] = []
    size = number = 0
    while line := stream.readline(LONGEST_LINE_BYTES):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
            if line.lstrip().startswith(b"["):
                raise InputError(f"{path}: expected one JSON object per line, found a JSON array; write JSONL instead")
        if len(line) == LONGEST_LINE_BYTES:
            raise InputError(f"{path}: line {number} is longer than {LONGEST_LINE_BYTES >> 20} MB; is this JSONL?")
        if line.strip():
            block.append((number, line))
            size += len(line)
        if len(block) == BATCH_ROWS or size > BATCH_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _parse_lines(block: list[tuple[int, bytes]], wanted: Collection[str]) -> RawBatch:
    objects: list[dict[str, Any]] = []
    rows: list[int] = []
    broken: list[UnreadableRow] = []
    for number, line in block:
        text = line.decode("utf-8", errors="replace")
        try:
            value = json.loads(text)
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, found {type(value).__name__}")
        except (ValueError, RecursionError) as error:
            broken.append(UnreadableRow(number, f"not a JSON object ({error})", text.rstrip("\n")))
            continue
        objects.append(value)
        rows.append(number)
    names = tuple(dict.fromkeys(chain.from_iterable(objects)))
    columns = {name: _json_column([value.get(name) for value in objects]) for name in names if name in wanted}
    return RawBatch(names, columns, np.array(rows, dtype=np.int64), tuple(broken))


def _json_column(values: list[Any]) -> pa.Array:
    """Arrow's own type where all values agree, else each value as text for the cast to sort out."""
    if {dict, list} & set(map(type, values)):
        values = [value if value is None or _is_vector(value) else _as_text(value) for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return pa.array([None if value is None else _as_text(value) for value in values], pa.string())


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int, float}


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # A lone surrogate such as "\ud800" is legal in JSON and not in UTF-8; a pair of them is one character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _numbers(start: int, n: int) -> NDArray[np.int64]:
    return np.arange(start, start + n, dtype=np.int64)


_JSON: tuple[str, Reader] = ("JSONL", _read_json_lines)
_CSV: tuple[str, Reader] = ("CSV", _read_csv)
_PARQUET: tuple[str, Reader] = ("Parquet", _read_parquet)
_FORMATS: Mapping[str, tuple[str, Reader]] = {
    ".parquet": _PARQUET,
    ".pq": _PARQUET,
    ".csv": _CSV,
    ".csv.gz": _CSV,
    **{name + end: _JSON for name in (".jsonl", ".ndjson", ".json") for end in ("", ".gz")},
}
