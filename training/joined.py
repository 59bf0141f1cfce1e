"""One decision of a journal and what was reported of it, as rows of the outcome table: pure, no I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from router_ml.errors import InputError
from router_ml.text import prompt_text
from router_ml.types import Float32Array, Message
from router_ml.v1 import log_pb2
from training.outcomes import prompt_id_of

_LATEST_MICROS = 2**53
"""The year 2255; a greater number is not in microseconds."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REPORTED = (
    "success",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "cost_usd",
    "latency_ms",
    "ttft_ms",
    "error",
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A report that found no place in the table."""

    reason: str
    detail: str
    outcome: log_pb2.OutcomeRecord


@dataclass(frozen=True, slots=True)
class Joined:
    """What one decision gave."""

    rows: tuple[dict[str, Any], ...]
    """Columns of OUTCOME_SCHEMA by name; one row per model that answered, at least one."""
    left_out: tuple[LeftOut, ...]
    is_answered: bool
    """Whether anything was reported; otherwise the one row has a null success."""


@dataclass(frozen=True, slots=True)
class _Answer:
    offer: str | None
    model: str
    outcome: log_pb2.OutcomeRecord
    """All that was reported of this offer, merged."""
    reported_micros: int | None = None
    """When its success was last reported."""


def join(decision: log_pb2.DecisionRecord, reports: Iterable[log_pb2.OutcomeRecord]) -> Joined:
    """Rows of one decision and its reports, given in the order they came in.

    Of several reports on one offer the last that tells a field wins. The table
    holds one row per request and model: where several offers of one model
    answered, as in a retry, the row is that of the last whose success is known,
    else of the last. A row of another model than the decided one has no
    propensity. InputError where the decision, of another writer, cannot be a row.
    """
    common = _common(decision)
    answers, left_out = _answers(decision, reports)
    is_answered = bool(answers)
    if not answers:
        answers = [_Answer(decision.offer, decision.model, log_pb2.OutcomeRecord())]
    kept: dict[str, _Answer] = {}
    for answer in answers:
        other = kept.get(answer.model)
        if other is None or answer.outcome.HasField("success") or not other.outcome.HasField("success"):
            kept[answer.model] = answer
    for answer in answers:
        if kept[answer.model] is not answer:
            detail = f"the row of `{answer.model}` is that of its offer `{kept[answer.model].offer}`"
            left_out.append(LeftOut("an outcome of a second offer of one model", detail, answer.outcome))
    rows = tuple(common | _own(decision, answer) for answer in kept.values())
    return Joined(rows, tuple(left_out), is_answered)


def _answers(
    decision: log_pb2.DecisionRecord, reports: Iterable[log_pb2.OutcomeRecord]
) -> tuple[list[_Answer], list[LeftOut]]:
    answers: dict[tuple[str | None, str], _Answer] = {}
    left_out: list[LeftOut] = []
    for report in reports:
        answered = _answered(decision, report)
        if answered is None:
            detail = f"`{report.offer}` is no offer of the decision; report its `model` with it"
            left_out.append(LeftOut("an outcome of an unknown offer", detail, report))
            continue
        # Taken out and put back, so that the last reported stands last.
        answer = answers.pop(answered, None) or _Answer(*answered, log_pb2.OutcomeRecord())
        answer.outcome.MergeFrom(report)
        told = report.time_unix_micros if report.HasField("success") else answer.reported_micros
        answers[answered] = replace(answer, reported_micros=told)
    return list(answers.values()), left_out


def _answered(decision: log_pb2.DecisionRecord, report: log_pb2.OutcomeRecord) -> tuple[str | None, str] | None:
    """Offer and model that this report is about; None when the model cannot be told."""
    if report.offer:
        model = report.model or next((c.model for c in decision.candidates if c.offer == report.offer), None)
        return None if model is None else (report.offer, model)
    if report.model and report.model != decision.model:
        return None, report.model
    return decision.offer, decision.model


def _own(decision: log_pb2.DecisionRecord, answer: _Answer) -> dict[str, Any]:
    """What is a row's own."""
    reported = {name: getattr(answer.outcome, name) if answer.outcome.HasField(name) else None for name in _REPORTED}
    propensity = decision.propensity if answer.model == decision.model else None
    own = {"model": answer.model, "offer": answer.offer, "propensity": propensity}
    return own | reported | {"reported_at": _moment(answer.reported_micros)}


def _moment(micros: int | None) -> datetime | None:
    """None where no time is told, or none that a table can hold."""
    return _EPOCH + timedelta(microseconds=micros) if micros and 0 < micros < _LATEST_MICROS else None


def _common(decision: log_pb2.DecisionRecord) -> dict[str, Any]:
    """What all rows of one decision share; InputError where a record of another writer cannot be one."""
    for field in ("decision_id", "model", "offer"):
        if not getattr(decision, field):
            raise InputError(f"`{field}` must not be empty")
    if not 0 < decision.propensity <= 1:
        raise InputError(f"`propensity` must be above 0 and at most 1; found {decision.propensity}")
    if not 0 < decision.time_unix_micros < _LATEST_MICROS:
        raise InputError(f"`time_unix_micros` must be microseconds since 1970; found {decision.time_unix_micros}")
    request = decision.request
    row = {name: getattr(request, name) or None for name in ("segment", "session_id", "tenant")} | _prompt(request)
    row["request_id"] = decision.decision_id
    row["timestamp"] = _EPOCH + timedelta(microseconds=decision.time_unix_micros)
    row["version"] = decision.version or None
    row["arm"] = decision.arm or None
    return row


def _prompt(request: log_pb2.RequestRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": None, "messages": None, "embedding": None}
    if request.HasField("digest"):
        row |= _digest(request.digest)
    elif request.HasField("text"):
        row["prompt"] = request.text
        row["prompt_id"] = prompt_id_of(request.text)
    elif request.HasField("messages"):
        row["messages"] = request.messages
        row["prompt_id"] = prompt_id_of(_conversation(request.messages))
    elif request.embedding_f32 and len(request.embedding_f32) % 4 == 0:
        row["embedding"] = np.frombuffer(request.embedding_f32, "<f4")
        row["prompt_id"] = prompt_id_of(request.embedding_f32.hex())
    else:
        raise InputError("`request` must hold `text`, `messages`, `embedding_f32` or `digest`")
    return row


def _digest(digest: log_pb2.DigestRecord) -> dict[str, Any]:
    """Columns of a prompt whose text the journal does not keep."""
    embedding, side = _floats("embedding_f32", digest.embedding_f32), _floats("side_f32", digest.side_f32)
    if not digest.prompt_hmac or not digest.encoder_sha256:
        raise InputError("`digest` must hold `prompt_hmac` and `encoder_sha256`")
    return {
        "prompt_id": digest.prompt_hmac[:16],
        "embedding": embedding,
        "side_features": side,
        "prompt_tokens": digest.tokens,
        "encoder_sha256": digest.encoder_sha256,
    }


def _floats(field: str, raw: bytes) -> Float32Array:
    if not raw or len(raw) % 4:
        raise InputError(f"`{field}` must hold 32-bit floats; found {len(raw)} bytes")
    return np.frombuffer(raw, "<f4")


def _conversation(messages: str) -> str:
    try:
        return prompt_text([Message(turn["role"], turn["content"]) for turn in json.loads(messages)])
    except (ValueError, TypeError, KeyError):
        raise InputError("`messages` must be a JSON array of `role` and `content`") from None
