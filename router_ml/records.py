"""Decisions and outcomes as lines of a journal, and those lines read back.

The line format is `proto/router_ml/v1/log.proto` in its JSON form. Lines are
built without protobuf, in a third of the time its own JSON printer takes; a
test holds the two equal.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from google.protobuf import json_format
from numpy.typing import NDArray

from router_ml.errors import InputError, RequestError
from router_ml.request import check_number, check_tokens
from router_ml.types import NO_CONSTRAINTS, Candidate, Constraints, Decision, Request, ShadowDecision
from router_ml.v1 import log_pb2
from router_ml.weighed import Weighed

if TYPE_CHECKING:
    from router_ml.exploration import Drawn

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_KIND = re.compile(rb'\s*\{\s*"(decision|outcome|loss|shadow)"')


class RecordKind(StrEnum):
    """What one line holds."""

    DECISION = "decision"
    OUTCOME = "outcome"
    LOSS = "loss"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class OutcomeReport:
    """What came of one decision, or a part of it. None means unknown, never zero.

    RequestError, which names the field, on a value out of its range.
    """

    decision_id: str
    """Empty: of a decision that a client made by default; clients do not send it."""
    offer: str | None = None
    """Offer that answered; None: the chosen one, unless `model` names another model."""
    model: str | None = None
    """Model that answered; None: the offer's."""
    success: float | None = None
    """How well it answered, in [0, 1]."""
    input_tokens: int | None = None
    """Billed input tokens, cached ones included."""
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    """Time to the first token of the answer."""
    error: str | None = None
    """What went wrong with the call, e.g. "timeout"."""

    def __post_init__(self) -> None:
        if not isinstance(self.decision_id, str):
            raise RequestError(f"`decision_id` must be the id of a decision; found {self.decision_id!r}")
        check_number("success", self.success, high=1.0)
        for name in ("cost_usd", "latency_ms", "ttft_ms"):
            check_number(name, getattr(self, name))
        for name in ("input_tokens", "cached_input_tokens", "output_tokens"):
            check_tokens(name, getattr(self, name))
        for name in ("offer", "model", "error"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise RequestError(f"`{name}` must be a string or None; found {value!r}")


def decision_line(
    request: Request,
    decision: Decision,
    time_unix_micros: int,
    *,
    number: int = 0,
    prompt: Mapping[str, Any] | None = None,
) -> bytes:
    """One journal line, ended by a line feed; a number that is not finite is unknown.

    `number` counts the decisions of this process, 0: not told. `prompt` holds the fields of RequestRecord
    that stand in for the prompt, None: the prompt itself, see `prompt_fields`.
    """
    record = {
        "decision_id": decision.decision_id,
        "time_unix_micros": str(time_unix_micros),
        "request": dict(prompt_fields(request) if prompt is None else prompt) | _request(request),
        "offer": decision.offer,
        "model": decision.model,
        "fallbacks": decision.fallbacks,
        "candidates": _candidates(decision.candidates),
        "reasons": decision.reasons,
        "propensity": decision.propensity,
        "quality_target": decision.quality_target,
        "version": decision.version,
        "arm": decision.arm,
        "bundle_sha256": decision.bundle_sha256,
        "exploration": None if decision.exploration is None else _exploration(decision.exploration),
        "arm_propensity": decision.arm_propensity,
        "number": str(number) if number else None,  # last, where `writers` looks for it
    }
    return _line(RecordKind.DECISION, record)


def outcome_line(report: OutcomeReport, time_unix_micros: int) -> bytes:
    """One journal line, ended by a line feed; RequestError when the outcome names no decision."""
    _check_named(report.decision_id)
    record = {
        "decision_id": report.decision_id,
        "time_unix_micros": str(time_unix_micros),
        "offer": report.offer or None,
        "model": report.model or None,
        "success": report.success,
        "input_tokens": report.input_tokens,
        "cached_input_tokens": report.cached_input_tokens,
        "output_tokens": report.output_tokens,
        "cost_usd": report.cost_usd,
        "latency_ms": report.latency_ms,
        "ttft_ms": report.ttft_ms,
        "error": report.error or None,
    }
    return _line(RecordKind.OUTCOME, record)


def shadow_line(shadow: ShadowDecision, time_unix_micros: int) -> bytes:
    """One journal line, ended by a line feed; a number that is not finite is unknown."""
    numbers: dict[str, float | None] = {
        "p_success": shadow.p_success,
        "cost_usd": shadow.cost_usd,
        "served_p_success": shadow.served_p_success,
        "served_cost_usd": shadow.served_cost_usd,
    }
    known = {name: value if value is not None and isfinite(value) else None for name, value in numbers.items()}
    told = {
        "time_unix_micros": str(time_unix_micros),
        "micros": str(shadow.micros),
        "agrees": shadow.agrees or None,
        "served_propensity": shadow.served_propensity or None,
    }
    return _line(RecordKind.SHADOW, shadow._asdict() | known | told)


def loss_line(writer: str, last_number: int, decisions: int | None, reason: str, time_unix_micros: int) -> bytes:
    """One journal line, ended by a line feed: so many decisions, up to this number, are lost; None: unknown."""
    record = {
        "writer": writer,
        "last_number": str(last_number),
        "decisions": None if decisions is None else str(decisions),
        "reason": reason,
        "time_unix_micros": str(time_unix_micros),
    }
    return _line(RecordKind.LOSS, record)


def outcome_report(record: log_pb2.OutcomeRecord) -> OutcomeReport:
    """The report as it was given; RequestError where a record of another writer is out of range."""
    _check_named(record.decision_id)
    return OutcomeReport(
        **{field.name: value for field, value in record.ListFields() if field.name != "time_unix_micros"}
    )


def _check_named(decision_id: str) -> None:
    if not decision_id:
        raise RequestError("`decision_id` must be the id of a decision; found none")


def record_kind(line: bytes) -> RecordKind | None:
    """What a line holds, told by its beginning; None for a line that is no record or of a kind yet unknown."""
    match = _KIND.match(line)
    return RecordKind(match[1].decode()) if match else None


def parse_line(line: bytes) -> log_pb2.JournalRecord:
    """The record of one line; InputError says what is wrong with it, without its content.

    Fields that this version does not know are ignored.
    """
    if record_kind(line) is None:
        raise InputError(f"holds none of {', '.join(f'`{kind}`' for kind in RecordKind)}")
    record = log_pb2.JournalRecord()
    try:
        json_format.Parse(line, record, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InputError(f"not a journal record ({type(error).__name__})") from None
    if record.WhichOneof("record") is None:
        raise InputError("holds an empty record")
    return record


def prompt_fields(request: Request) -> dict[str, Any]:
    """Fields of RequestRecord that hold the prompt as it was given."""
    if request.text is not None:
        return {"text": request.text}
    if request.embedding is not None:
        return {"embedding_f32": floats(request.embedding)}
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    return {"messages": json.dumps(messages, ensure_ascii=False)}


def floats(values: NDArray[np.floating]) -> str:
    """Numbers as a `bytes` field of 32-bit floats has them in JSON."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _request(request: Request) -> dict[str, Any]:
    """All but the prompt."""
    limits = request.constraints
    return _known(
        segment=request.segment,
        session_id=request.session_id,
        tenant=request.tenant,
        # Identity first: it holds for most, and comparing takes ten times as long.
        constraints=None if limits is NO_CONSTRAINTS or limits == NO_CONSTRAINTS else _constraints(limits),
        quality_target=request.quality_target,
        min_success_probability=request.min_success_probability,
        input_tokens=request.input_tokens,
        cached_input_tokens=dict(request.cached_input_tokens) or None,
        batch=request.batch or None,
    )


def _exploration(drawn: Drawn) -> dict[str, Any]:
    settings, deviation = drawn
    return _known(
        rule=settings.rule,
        share=settings.share,
        cost_multiple=settings.cost_multiple,
        floor=settings.floor or None,
        salt=settings.salt or None,
        deviation_f32=None if deviation is None else floats(np.array(deviation)),
    )


def _constraints(constraints: Constraints) -> dict[str, Any]:
    return _known(
        allowed_models=constraints.allowed_models,
        denied_models=constraints.denied_models,
        allowed_regions=constraints.allowed_regions,
        required_capabilities=constraints.required_capabilities,
        max_cost_usd=constraints.max_cost_usd,
        max_output_tokens=constraints.max_output_tokens,
    )


def _candidates(candidates: Sequence[Candidate]) -> Weighed | list[dict[str, Any]]:
    return candidates if isinstance(candidates, Weighed) else [_candidate(each) for each in candidates]


def _candidate(candidate: Candidate) -> dict[str, Any]:
    offer, model, p_success, output_tokens, cost_usd, latency_ms, rejected = candidate
    record: dict[str, Any] = {"offer": offer, "model": model}
    numbers = (
        ("p_success", p_success), ("output_tokens", output_tokens), ("cost_usd", cost_usd), ("latency_ms", latency_ms)
    )  # fmt: skip
    for name, value in numbers:
        if value is not None and isfinite(value):
            record[name] = value
    if rejected is not None:
        record["rejected"] = rejected
    return record


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _line(kind: RecordKind, record: dict[str, Any]) -> bytes:
    whole = {kind.value: _known(**record)}
    try:
        return orjson.dumps(whole, default=_prepared, option=_OPTIONS)
    except TypeError:  # lone surrogates, which UTF-8 cannot carry
        text = json.dumps(whole, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        return _LONE_SURROGATE.sub("\ufffd", text).encode() + b"\n"


def _prepared(value: Any) -> orjson.Fragment:
    """For orjson, what it cannot write itself: candidates that are bytes already."""
    if isinstance(value, Weighed) and (candidates := value.json()) is not None:
        return orjson.Fragment(candidates)
    raise TypeError


def _plain(value: Any) -> Any:
    """For `json`, what it cannot write itself: candidates, and numbers of numpy."""
    return list(map(_candidate, value)) if isinstance(value, Weighed) else float(value)
