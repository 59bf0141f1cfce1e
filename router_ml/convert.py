"""The nouns of a decision to and from the messages of the contract, `proto/router_ml/v1/router.proto`.

`x_to_proto` gives the message, `x_fields` the same as a mapping: protobuf builds
a message from nested mappings in half the time it takes to copy messages.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from router_ml.errors import NoEligibleOfferError, RequestError, RouterMlError, RouterUnavailable
from router_ml.records import OutcomeReport
from router_ml.request import MAX_MESSAGES, check_request
from router_ml.types import (
    NO_CONSTRAINTS,
    AbTest,
    ArmDescription,
    Candidate,
    Constraints,
    Decision,
    Description,
    Message,
    Reason,
    Rejection,
    Request,
    ShadowTest,
)
from router_ml.v1 import router_pb2 as pb
from router_ml.weighed import REJECTION_NUMBER, Weighed

MAX_ITEMS = 1024
"""Most requests of a batch, and most outcomes of a report."""

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Longest message a server takes unless it is told otherwise."""

ERROR_KEY = "router-ml-error-bin"
"""Trailing metadata that carries the Error of a failed unary call."""

_REJECTION = {number: rejection for rejection, number in REJECTION_NUMBER.items()}
_REJECTION_NUMBER_OF_VALUE = {rejection.value: number for rejection, number in REJECTION_NUMBER.items()}
_REASON_NUMBER = {reason: pb.Reason.Value(f"REASON_{reason.name}") for reason in Reason}
_REASON = {number: reason for reason, number in _REASON_NUMBER.items()}
_CONSTRAINTS = tuple(field.name for field in dataclasses.fields(Constraints))

# The first row that fits decides.
_ERROR_CODES: tuple[tuple[type[Exception], pb.ErrorCode], ...] = (
    (RequestError, pb.ERROR_CODE_INVALID_REQUEST),
    (NoEligibleOfferError, pb.ERROR_CODE_NO_ELIGIBLE_OFFER),
    (RouterUnavailable, pb.ERROR_CODE_UNAVAILABLE),
    (RouterMlError, pb.ERROR_CODE_NOT_SET_UP),
)

_DECISION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def request_to_proto(request: Request) -> pb.RouteRequest:
    """The message of a request; RequestError, which names the field, when a value is out of range.

    Lone surrogates, which UTF-8 cannot carry, become U+FFFD.
    """
    check_request(request)
    fields = _request_fields(request)
    try:
        return pb.RouteRequest(**fields)
    except UnicodeEncodeError:
        return pb.RouteRequest(**_without_surrogates(fields))


def request_from_proto(message: pb.RouteRequest) -> Request:
    """The request of a message, unchecked: the router checks what it is asked."""
    given = {field.name: value for field, value in message.ListFields()}
    conversation, embedding = given.get("messages"), given.get("embedding")
    return Request(
        text=given.get("text"),
        # One more than may be, so that the check sees it: 4 MiB can hold two million, three seconds of work.
        messages=tuple(Message(turn.role, turn.content) for turn in conversation.messages[: MAX_MESSAGES + 1])
        if conversation is not None
        else (),
        embedding=np.array(embedding.values, dtype=np.float32) if embedding is not None else None,
        segment=given.get("segment"),
        session_id=given.get("session_id"),
        tenant=given.get("tenant"),
        constraints=NO_CONSTRAINTS if given.keys().isdisjoint(_CONSTRAINTS) else _constraints(message),
        quality_target=given.get("quality_target"),
        min_success_probability=given.get("min_success_probability"),
        input_tokens=given.get("input_tokens"),
        cached_input_tokens=dict(given["cached_input_tokens"]) if "cached_input_tokens" in given else {},
        batch="batch" in given,
    )


def decision_to_proto(decision: Decision) -> pb.RouteResponse:
    """The message of a decision."""
    candidates = _prepared(decision)
    message = pb.RouteResponse(**_decision_fields(decision, candidates))
    if candidates is not None:
        message.MergeFromString(candidates)
    return message


def batch_to_proto(results: Sequence[Decision | Exception]) -> pb.RouteBatchResponse:
    """The answer to a batch."""
    candidates = [_prepared(result) for result in results]
    fields = [_result_fields(result, prepared) for result, prepared in zip(results, candidates, strict=True)]
    message = pb.RouteBatchResponse(items=fields)
    for item, prepared in zip(message.items, candidates, strict=True):
        if prepared is not None:
            item.decision.MergeFromString(prepared)
    return message


def stream_answer_to_proto(mark: str, result: Decision | Exception) -> pb.RouteStreamResponse:
    """The answer to the message of a stream that has this mark."""
    candidates = _prepared(result)
    message = pb.RouteStreamResponse(id=mark, **_result_fields(result, candidates))
    if candidates is not None:
        message.decision.MergeFromString(candidates)
    return message


def decision_from_proto(message: pb.RouteResponse) -> Decision:
    """The decision of a message; reasons that only a newer server knows are left out."""
    return Decision(
        decision_id=message.decision_id,
        offer=message.offer,
        model=message.model,
        fallbacks=tuple(message.fallbacks),
        candidates=tuple(map(_candidate, message.candidates)),
        reasons=tuple(_REASON[number] for number in message.reasons if number in _REASON),
        propensity=message.propensity,
        quality_target=_optional(message, "quality_target"),
        version=message.version,
        arm=message.arm,
        bundle_sha256=message.bundle_sha256,
    )


def outcome_to_proto(outcome: OutcomeReport) -> pb.Outcome:
    """The message of an outcome; lone surrogates become U+FFFD."""
    fields = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
    try:
        return pb.Outcome(**fields)
    except UnicodeEncodeError:
        return pb.Outcome(**_without_surrogates(fields))


def outcome_from_proto(message: pb.Outcome) -> OutcomeReport:
    """The outcome of a message; RequestError, which names the field, when a value is out of range."""
    if not _DECISION_ID.fullmatch(message.decision_id):
        raise RequestError(
            "`decision_id` must be the id of a decision as the router gave it, a UUID of version 7 in lower case; "
            f"found {message.decision_id[:64]!r}"
        )
    return OutcomeReport(
        decision_id=message.decision_id,
        offer=message.offer or None,
        model=message.model or None,
        success=_optional(message, "success"),
        input_tokens=_optional(message, "input_tokens"),
        cached_input_tokens=_optional(message, "cached_input_tokens"),
        output_tokens=_optional(message, "output_tokens"),
        cost_usd=_optional(message, "cost_usd"),
        latency_ms=_optional(message, "latency_ms"),
        ttft_ms=_optional(message, "ttft_ms"),
        error=message.error or None,
    )


def description_to_proto(description: Description) -> pb.DescribeResponse:
    """The message of a description."""
    return pb.DescribeResponse(
        **{field.name: _plain(getattr(description, field.name)) for field in dataclasses.fields(description)}
    )


def description_from_proto(message: pb.DescribeResponse) -> Description:
    """The description of a message."""
    return Description(
        version=message.version,
        bundle_sha256=message.bundle_sha256,
        bundle_format=message.bundle_format,
        created=message.created,
        training_start=message.training_start or None,
        training_end=message.training_end or None,
        encoder=message.encoder,
        embedding_size=message.embedding_size,
        models=tuple(message.models),
        offers=tuple(message.offers),
        catalog_as_of=message.catalog_as_of or None,
        segments=tuple(message.segments),
        quality_targets=tuple(message.quality_targets),
        default_quality_target=message.default_quality_target,
        max_text_chars=message.max_text_chars,
        refused=message.refused or None,
        exploration=message.exploration or None,
        layer_salt=message.layer_salt,
        tests=tuple(map(_test, message.tests)),
        shadows=tuple(map(_shadow, message.shadows)),
    )


def error_code(error: Exception) -> pb.ErrorCode:
    """Which kind of fault an error is to clients."""
    return next((code for kind, code in _ERROR_CODES if isinstance(error, kind)), pb.ERROR_CODE_INTERNAL)


def error_fields(error: Exception) -> dict[str, Any]:
    """What an Error is built from; a fault that is not ours is not described to clients."""
    code = error_code(error)
    if code == pb.ERROR_CODE_INTERNAL:
        return {"code": code, "message": "the server failed on this request; its log says why"}
    rejected = error.rejected if isinstance(error, NoEligibleOfferError) else {}
    return {
        "code": code,
        "message": _SURROGATE.sub("\ufffd", str(error)),
        "rejected": [
            {"offer": offer, "reason": _REJECTION_NUMBER_OF_VALUE.get(reason, pb.REJECTION_OTHER)}
            for offer, reason in rejected.items()
        ],
    }


def error_from_proto(message: pb.Error) -> RouterMlError:
    """The error of a message, to be raised or returned."""
    if message.code == pb.ERROR_CODE_NO_ELIGIBLE_OFFER:
        return NoEligibleOfferError(
            {item.offer: _REJECTION.get(item.reason, Rejection.OTHER).value for item in message.rejected}
        )
    for kind, code in _ERROR_CODES:
        if code == message.code and issubclass(kind, RouterMlError):
            return kind(message.message)
    return RouterMlError(message.message)


def result_from_proto(item: pb.RouteBatchItem | pb.RouteStreamResponse) -> Decision | RouterMlError:
    """What an item holds."""
    if item.WhichOneof("result") == "decision":
        return decision_from_proto(item.decision)
    return error_from_proto(item.error)


def _request_fields(request: Request) -> dict[str, Any]:
    limits = request.constraints
    fields: dict[str, Any] = {
        "text": request.text,
        "segment": request.segment,
        "session_id": request.session_id,
        "tenant": request.tenant,
        "quality_target": request.quality_target,
        "min_success_probability": request.min_success_probability,
        "input_tokens": request.input_tokens,
        "cached_input_tokens": request.cached_input_tokens,
        "batch": request.batch,
    }
    if request.messages:
        fields["messages"] = {"messages": [{"role": turn.role, "content": turn.content} for turn in request.messages]}
    if request.embedding is not None:
        fields["embedding"] = {"values": request.embedding.tolist()}
    if limits is not NO_CONSTRAINTS:
        fields |= {name: getattr(limits, name) for name in _CONSTRAINTS}
    return fields


def _decision_fields(decision: Decision, prepared: bytes | None) -> dict[str, Any]:
    """What a RouteResponse is built from; of its candidates only if they are not `prepared`."""
    return {
        "decision_id": decision.decision_id,
        "offer": decision.offer,
        "model": decision.model,
        "fallbacks": decision.fallbacks,
        "candidates": [_candidate_fields(candidate) for candidate in decision.candidates] if prepared is None else (),
        "reasons": [_REASON_NUMBER[reason] for reason in decision.reasons],
        "propensity": decision.propensity,
        "quality_target": decision.quality_target,
        "version": decision.version,
        "arm": decision.arm,
        "bundle_sha256": decision.bundle_sha256,
    }


def _result_fields(result: Decision | Exception, prepared: bytes | None) -> dict[str, Any]:
    """The members `decision` or `error` of an item."""
    if isinstance(result, Decision):
        return {"decision": _decision_fields(result, prepared)}
    return {"error": error_fields(result)}


def _prepared(result: Decision | Exception) -> bytes | None:
    """The candidates as bytes of a RouteResponse, where they can be had cheaply."""
    if isinstance(result, Decision) and isinstance(result.candidates, Weighed):
        return result.candidates.message()
    return None


def _constraints(message: pb.RouteRequest) -> Constraints:
    constraints = Constraints(
        allowed_models=tuple(message.allowed_models),
        denied_models=tuple(message.denied_models),
        allowed_regions=tuple(message.allowed_regions),
        required_capabilities=tuple(message.required_capabilities),
        max_cost_usd=_optional(message, "max_cost_usd"),
        max_output_tokens=_optional(message, "max_output_tokens"),
    )
    return NO_CONSTRAINTS if constraints == NO_CONSTRAINTS else constraints


def _candidate_fields(candidate: Candidate) -> dict[str, Any]:
    return {
        "offer": candidate.offer,
        "model": candidate.model,
        "p_success": None if math.isnan(candidate.p_success) else candidate.p_success,
        "output_tokens": candidate.output_tokens,
        "cost_usd": candidate.cost_usd,
        "latency_ms": candidate.latency_ms,
        "rejected": REJECTION_NUMBER[candidate.rejected] if candidate.rejected is not None else None,
    }


def _candidate(message: pb.Candidate) -> Candidate:
    rejected = message.rejected
    return Candidate(
        offer=message.offer,
        model=message.model,
        p_success=message.p_success if message.HasField("p_success") else math.nan,
        output_tokens=message.output_tokens if message.HasField("output_tokens") else None,
        cost_usd=message.cost_usd if message.HasField("cost_usd") else None,
        latency_ms=message.latency_ms if message.HasField("latency_ms") else None,
        rejected=_REJECTION.get(rejected, Rejection.OTHER) if rejected else None,
    )


def _test(message: pb.AbTest) -> AbTest:
    arms = tuple(ArmDescription(arm.name, arm.version, arm.bundle_sha256) for arm in message.arms)
    return AbTest(
        message.name, message.salt, message.unit, tuple(message.segments), message.share, message.start, arms
    )  # fmt: skip


def _shadow(message: pb.ShadowTest) -> ShadowTest:
    return ShadowTest(
        message.name,
        message.salt,
        message.unit,
        tuple(message.segments),
        message.share,
        message.version,
        message.bundle_sha256,
    )


def _plain(value: Any) -> Any:
    """Named tuples as mappings, as messages are built from them."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _optional(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _without_surrogates(value: Any) -> Any:
    """Replaced one for one, so that a text keeps its length and is cut where the router in process cuts it."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value
