"""Estimates for a file of prompts: what the server would say of each, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from router_ml.errors import InputError
from router_ml.router import Router
from router_ml.types import Request
from training.atomic import fresh_file
from training.conversation import messages_text
from training.outcomes import prompt_id_of
from training.sources import RawBatch, find_sources, read_source

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("model", pa.string()),
        ("p_success", pa.float32()),
        ("output_tokens", pa.float32()),
        ("cost_usd", pa.float64()),
        ("chosen", pa.bool_()),
    ]
)
"""One row per prompt and offered model; `chosen` marks what the policy picks, `cost_usd` is of the cheapest offer."""

_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class PredictReport:
    """What was written."""

    out: str
    prompts: int
    repeated: int
    """Rows whose prompt had come before, e.g. of a table with a row per model."""
    without_text: int
    """Rows without a prompt; they are left out."""
    chosen: dict[str, int]
    """Prompts per chosen model."""
    unserved: int
    """Prompts that fit no offer's limits."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For a person."""
        shares = ", ".join(f"{name} {count / max(1, self.prompts):.0%}" for name, count in self.chosen.items())
        lines = [f"{self.prompts:,} prompts -> {self.out}", f"chosen: {shares}"]
        for count, words in (
            (self.repeated, "rows repeat an earlier prompt"),
            (self.without_text, "rows hold no prompt and were left out"),
            (self.unserved, "prompts fit no offer's limits; no row of theirs is marked as chosen"),
        ):
            if count:
                lines.append(f"{count:,} {words}")
        return lines


def predict(
    prompts: Sequence[Path], router: Router, out: Path, *, prompt_column: str, quality_target: float | None
) -> PredictReport:
    """Write estimates of every distinct prompt of the files; InputError when they hold none."""
    seen: set[str] = set()
    counts = {"repeated": 0, "without_text": 0, "unserved": 0}
    chosen = np.zeros(len(router.policy.models), dtype=np.int64)
    with fresh_file(out) as target, pq.ParquetWriter(target, SCHEMA) as writer:
        for batch in _prompts(prompts, prompt_column, seen, counts):
            for start in range(0, len(batch), _CHUNK):
                part = batch[start : start + _CHUNK]
                table, picked = _table(part, router, quality_target)
                writer.write_table(table)
                chosen += np.bincount(picked[picked >= 0], minlength=len(chosen))
                counts["unserved"] += int((picked < 0).sum())
        if not seen:
            raise InputError(f"no prompt to estimate; expected text in the column `{prompt_column}`")
    order = np.argsort(-chosen, kind="stable")
    by_model = {router.policy.models[j]: int(chosen[j]) for j in order if chosen[j]}
    return PredictReport(str(out), len(seen), counts["repeated"], counts["without_text"], by_model, counts["unserved"])


def _prompts(
    paths: Sequence[Path], prompt_column: str, seen: set[str], counts: dict[str, int]
) -> Iterator[list[tuple[str, Request]]]:
    wanted = {prompt_column, "prompt_id", "messages", "embedding", "segment", "dataset"}
    for path in find_sources(paths):
        for raw in read_source(path, wanted):
            _check_columns(path, raw, prompt_column)
            fresh: list[tuple[str, Request]] = []
            for prompt_id, request in _requests(raw, prompt_column):
                if request is None:
                    counts["without_text"] += 1
                elif prompt_id in seen:
                    counts["repeated"] += 1
                else:
                    seen.add(prompt_id)
                    fresh.append((prompt_id, request))
            yield fresh


def _check_columns(path: Path, raw: RawBatch, prompt_column: str) -> None:
    if not {prompt_column, "messages", "embedding"} & set(raw.names):
        raise InputError(
            f"{path}: has no column `{prompt_column}`, `messages` or `embedding`; found {sorted(raw.names)}; "
            "name the text column with --prompt-column"
        )


def _requests(raw: RawBatch, prompt_column: str) -> Iterator[tuple[str, Request | None]]:
    def column(*names: str) -> list[Any]:
        found = next((raw.columns[name] for name in names if name in raw.columns), None)
        return [None] * len(raw.rows) if found is None else found.to_pylist()

    rows = zip(
        column(prompt_column),
        column("messages"),
        column("embedding"),
        column("prompt_id"),
        column("segment", "dataset"),
        strict=True,
    )
    for text, messages, embedding, prompt_id, segment in rows:
        if text is None and messages is not None:
            text = messages_text(messages if isinstance(messages, str) else json.dumps(messages))
        if text is not None and not str(text).isspace() and text != "":
            request = Request(text=str(text), segment=segment)
        elif embedding is not None:
            request = Request(embedding=np.asarray(embedding, dtype=np.float32), segment=segment)
        else:
            yield "", None
            continue
        yield str(prompt_id) if prompt_id is not None else prompt_id_of(text or str(embedding)), request


def _table(
    part: list[tuple[str, Request]], router: Router, quality_target: float | None
) -> tuple[pa.Table, np.ndarray]:
    estimates = router.estimate([request for _, request in part])
    policy = router.policy
    choices = policy.choose(estimates, quality_target=quality_target)
    offered = np.unique(policy.column)
    picked = np.where(choices.chosen >= 0, policy.column[choices.chosen], -1)
    cost = policy.cheapest(choices.cost_usd)[:, offered]
    n, m = len(part), len(offered)
    names = pa.array([policy.models[j] for j in offered])
    columns = [
        pa.array([prompt_id for prompt_id, _ in part]).take(pa.array(np.repeat(np.arange(n), m))),
        names.take(pa.array(np.tile(np.arange(m), n))),
        pa.array(estimates.p_success[:, offered].ravel()),
        _nullable(estimates.output_tokens[:, offered].ravel(), pa.float32()),
        _nullable(cost.ravel(), pa.float64()),
        pa.array((picked[:, None] == offered).ravel()),
    ]
    return pa.table(columns, schema=SCHEMA), picked


def _nullable(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Unknown is null in a file."""
    return pa.array(values, type=kind, from_pandas=True)
