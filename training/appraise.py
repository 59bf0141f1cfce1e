"""A bundle on outcome tables, by default on rows that its training did not use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router_ml.bundle import Bundle
from router_ml.catalog import Catalog
from router_ml.errors import InputError
from router_ml.policy import Policy
from router_ml.text import Int64Array, Tokenizer
from router_ml.types import Estimates, Float32Array
from training.dataset import Dataset, build_dataset
from training.evaluate import Judgement, SegmentMeans, evaluate, held_of
from training.export import estimates_of
from training.labels import Labels, LabelSettings
from training.off_policy.policy_report import report_policy
from training.outcomes import ReadReport, read_outcomes
from training.split import TEST, SplitSettings, assign_split


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """How a version is evaluated."""

    prompt_column: str = "prompt"
    all_rows: bool = False
    """Also rows that training may have used; the figures are then too good to be true."""


@dataclass(frozen=True, slots=True)
class Appraisal:
    """An evaluation and what it was made of."""

    judgement: Judgement
    read: ReadReport
    rows_used: str
    """Which rows, in words."""


class _GraphText:
    """The bundle's tokenizer; its graph makes the vectors from the ids."""

    def __init__(self, tokenizer: Tokenizer, size: int, sha256: str | None) -> None:
        self.tokenizer = tokenizer
        self.sha256 = sha256
        self._size = size

    def encode_ids(self, rows: Sequence[Int64Array]) -> Float32Array:
        return np.zeros((len(rows), self._size), dtype=np.float32)


def text_of(opened: Bundle) -> _GraphText | None:
    """How a bundle reads text, for `build_dataset`; None where it was trained on embeddings alone."""
    if opened.tokenizer is None:
        return None
    return _GraphText(opened.tokenizer, opened.manifest.embedding_size, opened.manifest.encoder.get("sha256"))


@dataclass(frozen=True, slots=True)
class Estimated:
    """Rows to judge by, and what the version says of their prompts."""

    data: Dataset
    index: NDArray[np.int64]
    """Prompts that have rows."""
    estimates: Estimates
    """Of the prompts `index`, by the bundle's own graph."""
    read: ReadReport
    rows_used: str
    """Which rows, in words."""
    notes: tuple[str, ...]
    """What a person should know of the rows."""


def estimate_logs(
    logs: Sequence[Path], opened: Bundle, settings: EvaluateSettings, rejects: Path, say: Callable[[str], None]
) -> Estimated:
    """Read `logs` and estimate their prompts; InputError when no row is left to judge by."""
    manifest = opened.manifest
    say("reading the logs")
    table = read_outcomes(logs, prompt_column=settings.prompt_column, rejects=rejects)
    labels = Labels(LabelSettings.from_dict(manifest.split.get("labels")))
    data = build_dataset(labels.watch(table.batches()), text_of(opened))
    mature, notes = labels.mature()
    data = data.where(mature)
    if strange := [name for name in data.models if name not in manifest.models]:
        notes.append(f"in the logs but unknown to the version, so left out: {', '.join(strange)}")
    if rests_on := manifest.verdict.get("rests_on"):
        notes.append(f"of this version's training: {rests_on}")
    rows, words = _held_rows(data, opened, settings)
    data = data.where(rows).keep_models(manifest.models).keep_segments(manifest.segments)
    if not (~np.isnan(data.rows.success)).any():
        raise InputError(
            f"no row with a known `success` is left to judge by ({words}); "
            "give newer logs, or --all-rows to use every row, knowing that training may have seen them"
        )
    say("estimating")
    index = data.prompts_with_rows()
    pad_id = opened.tokenizer.settings.pad_id if opened.tokenizer else 0
    estimates = estimates_of(opened.session, data, index, pad_id, manifest.input_token_ratio)
    return Estimated(data, index, estimates, table.report, words, tuple(notes))


def appraise(
    logs: Sequence[Path],
    opened: Bundle,
    catalog: Catalog | None,
    settings: EvaluateSettings,
    rejects: Path,
    say: Callable[[str], None],
) -> Appraisal:
    """Evaluate `opened` on `logs`; InputError when no row is left to judge by."""
    found = estimate_logs(logs, opened, settings, rejects, say)
    say("evaluating")
    manifest, data, estimates = opened.manifest, found.data, found.estimates
    used, baseline = catalog or opened.catalog, _baseline(manifest.baseline)
    held = held_of(data, found.index)
    judgement = evaluate(used, manifest.models, opened.points, estimates, held, baseline)
    # The catalog of the day of each decision is not in the table: prices are those of the catalog given.
    off_policy = report_policy(data, found.index, Policy(used, manifest.models, opened.points), estimates)
    report = judgement.report.with_off_policy(off_policy)
    for note in found.notes:
        report = report.with_note(note)
    return Appraisal(replace(judgement, report=report), found.read, found.rows_used)


def _held_rows(data: Dataset, opened: Bundle, settings: EvaluateSettings) -> tuple[NDArray[np.bool_], str]:
    """Rows that training held out, or that came after it."""
    split = opened.manifest.split
    if settings.all_rows:
        return np.ones(len(data.rows), dtype=bool), "all, also those that training may have used"
    test_from = split["test_from_us"]
    if test_from is not None and data.fingerprint != opened.manifest.data_fingerprint:
        day = datetime.fromtimestamp(test_from / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")
        return data.rows.time_us >= test_from, f"those from {day} on, when the version stopped learning"
    found = assign_split(
        data.prompts.prompt_id[data.rows.prompt],
        data.rows.time_us,
        data.rows.own_split,
        settings=SplitSettings(**(split["settings"] | {"by": split["by"]})),
    )
    how = {"own": "the file's own split", "time": "the newest", "random": "drawn by prompt"}[found.by]
    return found.part == TEST, f"those held out in training ({how})"


def _baseline(stored: dict[str, list[list[float]]]) -> SegmentMeans:
    unknown = [None] * len(stored["cost_usd"])
    names = ("success", "cost_usd", "output_tokens", "latency_ms")
    return SegmentMeans(*(np.array(stored.get(name, unknown), dtype=np.float64) for name in names))
