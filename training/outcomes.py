"""The outcome table: its schema, its reader and its writer.

One row is one prompt on one model. Whatever the files hold, what the reader
yields is valid and in the schema's types: unknown is null, never zero, NaN or blank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from router_ml.errors import InputError
from router_ml.features import SIDE_FEATURES
from router_ml.text import clean
from training.atomic import fresh_file
from training.columns import EMBEDDING, TIMESTAMP, Column, cast_column, cast_messages, expected
from training.conversation import messages_text
from training.header import Header, wanted_columns
from training.read_report import ReadReport, Tally, check_not_empty
from training.rejects import RejectsFile, plain_value
from training.sources import RawBatch, find_sources, read_source
from training.validation import Fault, Findings, RejectReason, SeenKeys, check_rows, embedding_lengths

OUTCOME_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("prompt_id", pa.string()),
        ("timestamp", TIMESTAMP),
        ("prompt", pa.string()),
        ("messages", pa.string()),
        ("embedding", EMBEDDING),
        ("side_features", EMBEDDING),
        ("prompt_tokens", pa.float64()),
        ("encoder_sha256", pa.string()),
        ("segment", pa.string()),
        ("session_id", pa.string()),
        ("tenant", pa.string()),
        ("model", pa.string()),
        ("offer", pa.string()),
        ("propensity", pa.float64()),
        ("version", pa.string()),
        ("arm", pa.string()),
        ("success", pa.float64()),
        ("reported_at", TIMESTAMP),
        ("input_tokens", pa.int32()),
        ("cached_input_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("cost_usd", pa.float64()),
        ("latency_ms", pa.float64()),
        ("ttft_ms", pa.float64()),
        ("error", pa.string()),
        ("split", pa.string()),
    ]
)
"""One row per request and model. Required: `model`, and one of `prompt`, `messages` (JSON text) and `embedding`;
ids are made where they lack. `success` lies in 0 to 1, `propensity` above 0 and at most 1; costs in US dollars, times
in milliseconds. `reported_at` is when `success` was reported, which may be long after `timestamp`; see `labels`.
`side_features`, `prompt_tokens` and `encoder_sha256` come with an embedding that a bundle made of a text which was not
kept: numbers in the order of SIDE_FEATURES, tokens by the bundle's tokenizer, hash of the encoder. `split` is the
user's own: `train`, `test` or null."""

__all__ = ["OUTCOME_SCHEMA", "OutcomeReader", "ReadReport", "prompt_id_of", "read_outcomes", "write_outcomes"]


def prompt_id_of(text: str) -> str:
    """Sixteen hex digits that equal prompts share: the start of the SHA-256 of the text as encoders take it."""
    return hashlib.sha256(clean(text).encode("utf-8")).hexdigest()[:16]


def read_outcomes(
    paths: Sequence[Path],
    *,
    prompt_column: str = "prompt",
    rejects: Path | None = None,
    now: datetime | None = None,
    needs_prompt: bool = True,
) -> OutcomeReader:
    """Valid rows of Parquet, JSONL or CSV files and folders of them.

    `prompt_column` names the column of the text. Rows that are not valid go to
    the JSONL file `rejects`. Timestamps later than a day after `now` (default:
    the clock) are not valid, nor are rows without text or embedding, unless
    `needs_prompt` is False. InputError: a file or folder that is not there.
    """
    return OutcomeReader(find_sources(paths), prompt_column, rejects, now or datetime.now(UTC), needs_prompt)


def write_outcomes(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches of OUTCOME_SCHEMA as Parquet; returns the number of rows.

    The file is whole or not there. InputError when it cannot be written.
    """
    n_rows = 0
    with fresh_file(path) as scratch, pq.ParquetWriter(scratch, OUTCOME_SCHEMA, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            n_rows += batch.num_rows
    return n_rows


class OutcomeReader:
    """Reads once, in bounded memory; `report` is complete when `batches` is exhausted.

    - `dataset` is read as `segment` where there is no `segment`.
    - A missing `prompt_id` is made from the text, the text of the messages, or the embedding;
      a missing `request_id` from the file's content and the row number, so that a file given twice is noticed.
    - Blank text, NaN in a numeric column, an empty embedding and empty messages are null.
    - Times without a zone are UTC.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        prompt_column: str,
        rejects: Path | None,
        now: datetime,
        needs_prompt: bool,
    ) -> None:
        self._sources = sources
        self._prompt_column = prompt_column
        self._rejects = RejectsFile(rejects)
        self._now = now
        self._needs_prompt = needs_prompt
        self._tally = Tally()
        self._seen = SeenKeys()
        self._embedding_size = 0

    @property
    def report(self) -> ReadReport:
        """What was found so far."""
        return self._tally.report()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Batches of OUTCOME_SCHEMA, none of them empty.

        InputError: a file that is damaged, lacks a required column or holds one of a wrong type;
        at the end, when there was no row, or no valid one.
        """
        with self._rejects:
            for path in self._sources:
                yield from self._read(path)
        check_not_empty(self.report)

    def table(self) -> pa.Table:
        """All batches in memory."""
        return pa.Table.from_batches(self.batches(), OUTCOME_SCHEMA)

    def _read(self, path: Path) -> Iterator[pa.RecordBatch]:
        self._tally.files += 1
        before = self._tally.rows_read
        mark = _content_mark(path)
        checked = False
        for raw in read_source(path, wanted_columns(OUTCOME_SCHEMA.names, self._prompt_column)):
            header = Header(path, raw.names, tuple(OUTCOME_SCHEMA.names), self._prompt_column)
            if raw.names and not checked:
                header.check(needs_prompt=self._needs_prompt)
                checked = True
            self._tally.note_columns(header)
            batch = self._take(raw, header, mark)
            if batch.num_rows:
                self._tally.keep(batch)
                yield batch
        if self._tally.rows_read == before:
            self._tally.empty_files.append(str(path))

    def _take(self, raw: RawBatch, header: Header, mark: str) -> pa.RecordBatch:
        """The valid rows of one batch; the others are counted and written to the rejects file."""
        self._tally.rows_read += len(raw.rows) + len(raw.unreadable)
        for broken in raw.unreadable:
            fault = Fault(RejectReason.UNREADABLE_ROW, "row", "one whole row")
            self._reject(
                header.path, broken.row, fault, broken.problem, {"problem": broken.problem, "text": broken.text}
            )
        try:
            columns = self._cast(raw, header)
        except InputError as error:
            raise InputError(
                f"{header.path}: {error}; convert the column, or rename it if it is something else"
            ) from None
        findings = Findings(len(raw.rows))
        for field in OUTCOME_SCHEMA:
            findings.mark(columns[field.name].unreadable, RejectReason.UNREADABLE_VALUE, field.name, expected(field))
        check_rows(columns, findings, now=self._now, needs_prompt=self._needs_prompt)
        self._check_embedding(columns["embedding"], findings)
        side_lengths = embedding_lengths(columns["side_features"])
        expected_side = f"{len(SIDE_FEATURES)} numbers, as a journal without text holds them"
        wrong = (side_lengths > 0) & (side_lengths != len(SIDE_FEATURES))
        findings.mark(wrong, RejectReason.UNREADABLE_VALUE, "side_features", expected_side)
        arrays = {name: column.values for name, column in columns.items()}
        arrays["request_id"] = _with_request_ids(arrays["request_id"], raw, mark)
        self._check_duplicates(arrays, findings)
        for i, fault in findings.faults():
            values = {name: plain_value(column, i) for name, column in raw.columns.items()}
            found = values.get(header.source(fault.field))
            self._reject(header.path, int(raw.rows[i]), fault, found, values)
        return _valid_batch(arrays, findings)

    def _cast(self, raw: RawBatch, header: Header) -> dict[str, Column]:
        n = len(raw.rows)
        columns: dict[str, Column] = {}
        for field in OUTCOME_SCHEMA:
            values = raw.columns.get(header.source(field.name), pa.nulls(n))
            column = cast_messages(values) if field.name == "messages" else cast_column(values, field)
            if column.n_nan:
                self._tally.nan[field.name] += column.n_nan
            columns[field.name] = column
        columns["split"] = self._own_split(columns["split"])
        return columns

    def _own_split(self, column: Column) -> Column:
        values = pc.utf8_lower(pc.utf8_trim_whitespace(column.values))
        strange = pc.invert(pc.is_in(values, pa.array(["train", "test", None], pa.string())))
        if pc.any(strange).as_py():
            example = values.filter(strange)[0].as_py()[:40]
            self._tally.hints[f"`split` knows train and test; rows of another value (`{example}`) have none"] = None
        return Column(pc.if_else(strange, None, values), column.unreadable)

    def _check_embedding(self, embedding: Column, findings: Findings) -> None:
        lengths = embedding_lengths(embedding)
        given = findings.valid & (lengths > 0)
        if given.any() and not self._embedding_size:
            self._embedding_size = int(lengths[np.argmax(given)])
        wrong = (lengths > 0) & (lengths != self._embedding_size)
        findings.mark(
            wrong, RejectReason.EMBEDDING_LENGTH, "embedding", f"{self._embedding_size} numbers as in the first row"
        )

    def _check_duplicates(self, arrays: Mapping[str, pa.Array], findings: Findings) -> None:
        valid = findings.valid
        mask = pa.array(valid)
        duplicate = np.zeros(len(valid), dtype=np.bool_)
        duplicate[valid] = self._seen.add(arrays["request_id"].filter(mask), arrays["model"].filter(mask))
        findings.mark(duplicate, RejectReason.DUPLICATE, "request_id")

    def _reject(self, path: Path, row: int, fault: Fault, found: object, values: Mapping[str, object]) -> None:
        self._tally.reject(fault, str(path), row, _short(found))
        self._rejects.write(path, row, fault, values)
        if self._rejects.path is not None:
            self._tally.rejects_file = str(self._rejects.path)


def _valid_batch(arrays: Mapping[str, pa.Array], findings: Findings) -> pa.RecordBatch:
    mask = pa.array(findings.valid)
    kept = {name: values.filter(mask) for name, values in arrays.items()}
    kept["prompt_id"] = _with_prompt_ids(kept)
    return pa.RecordBatch.from_arrays([kept[f.name].cast(f.type) for f in OUTCOME_SCHEMA], schema=OUTCOME_SCHEMA)


def _with_prompt_ids(kept: Mapping[str, pa.Array]) -> pa.Array:
    missing = kept["prompt_id"].is_null()
    if not pc.any(missing).as_py():
        return kept["prompt_id"]
    made: dict[str, str] = {}
    ids = kept["prompt_id"].to_pylist()
    for i in np.flatnonzero(missing.to_numpy(zero_copy_only=False)).tolist():
        text = kept["prompt"][i].as_py()
        if text is None and kept["messages"][i].is_valid:
            text = messages_text(kept["messages"][i].as_py())
        if text is None and kept["embedding"][i].is_valid:
            text = kept["embedding"][i].values.to_numpy().astype("<f4").tobytes().hex()
        if text is None:  # nothing tells prompts without text apart
            text = kept["request_id"][i].as_py()
        ids[i] = made.get(text) or made.setdefault(text, prompt_id_of(text))
    return pa.array(ids, pa.string())


def _with_request_ids(request_ids: pa.Array, raw: RawBatch, mark: str) -> pa.Array:
    if not request_ids.null_count:
        return request_ids
    made = pc.binary_join_element_wise(mark, pa.array(raw.rows).cast(pa.string()), "-")
    return pc.coalesce(request_ids, made)


def _content_mark(path: Path) -> str:
    """Twelve hex digits of a file's size and first 64 KB: independent of its name and place."""
    try:
        with path.open("rb") as stream:
            head = stream.read(1 << 16)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    return hashlib.sha256(str(path.stat().st_size).encode() + head).hexdigest()[:12]


def _short(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
