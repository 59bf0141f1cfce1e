"""The RPCs of the contract: each decodes, asks the router, writes the journal, encodes."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, NoReturn, Protocol, TypeVar

import grpc

from router_ml import convert
from router_ml.errors import RequestError, RouterMlError, RouterUnavailable
from router_ml.meter import Meter
from router_ml.read_ahead import ReadAhead
from router_ml.records import OutcomeReport
from router_ml.tracing import Tracer, attributes_of
from router_ml.types import Decision, Description, Request
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["RouterService"].full_name

_STATUS = {
    pb.ERROR_CODE_INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    pb.ERROR_CODE_NO_ELIGIBLE_OFFER: grpc.StatusCode.FAILED_PRECONDITION,
    pb.ERROR_CODE_NOT_SET_UP: grpc.StatusCode.FAILED_PRECONDITION,
    pb.ERROR_CODE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    pb.ERROR_CODE_INTERNAL: grpc.StatusCode.INTERNAL,
}

# Clients take 8 KiB of metadata by default, and the binary part grows by a third on the way.
_STATUS_CHARS = 1000
_ERROR_BYTES = 3072

_AHEAD_MESSAGES = 16
_AHEAD_BYTES = 1 << 18
"""A stream is read on while fewer messages than this wait to be answered, of fewer bytes in all."""

_log = logging.getLogger(__name__)


class Decider(Protocol):
    """What answers requests: the Router."""

    def decide(self, request: Request, /) -> Decision:
        """One decision; RequestError or NoEligibleOfferError when there is none."""

    def decide_batch(self, requests: Sequence[Request], /) -> list[Decision | RouterMlError]:
        """One decision or error per request."""

    def decide_each(self, requests: Sequence[Request], /) -> list[Decision | RouterMlError]:
        """The same, to the last bit as `decide` does."""

    def describe(self) -> Description:
        """The version in force."""


class Record(Protocol):
    """What keeps decisions and outcomes: the Journal."""

    def append_decisions(self, decided: Sequence[tuple[Request, Decision]], /) -> None:
        """Returns at once."""

    def append_outcomes(self, outcomes: Sequence[OutcomeReport], /) -> None:
        """Returns when they are on disk; OSError when they cannot be."""


_Message = TypeVar("_Message")
_Answer = TypeVar("_Answer")


def _unary(
    method: Callable[[RouterServicer, _Message], tuple[_Answer, Sequence[Decision]]],
) -> Callable[[RouterServicer, _Message, grpc.ServicerContext], _Answer]:
    """The RPC of a method that gives the answer and the decisions in it."""
    name = method.__name__

    @wraps(method)
    def call(servicer: RouterServicer, message: _Message, context: grpc.ServicerContext) -> _Answer:
        begun = time.time_ns()
        try:
            answer, decisions = method(servicer, message)
        except Exception as error:
            servicer._ended(name, context, begun, _status(error).name)
            _abort(context, error)
        servicer._ended(name, context, begun, "OK", answer, decisions)
        return answer

    return call


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Serves one router, and writes to a journal if there is one. Called from many threads at once.

    What happens is counted by `meter` and traced by `tracer`, where given.
    """

    def __init__(
        self,
        router: Decider,
        journal: Record | None,
        *,
        max_streams: int,
        meter: Meter | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._router = router
        self._journal = journal
        self._streams = threading.BoundedSemaphore(max_streams)
        self._meter = meter
        self._tracer = tracer

    @_unary
    def Route(self, message: pb.RouteRequest) -> tuple[pb.RouteResponse, Sequence[Decision]]:
        decision = self._decide(message)
        return convert.decision_to_proto(decision), (decision,)

    @_unary
    def RouteBatch(self, message: pb.RouteBatchRequest) -> tuple[pb.RouteBatchResponse, Sequence[Decision]]:
        _check_count("requests", len(message.requests))
        requests = [convert.request_from_proto(item) for item in message.requests]
        results = self._router.decide_batch(requests)
        pairs = zip(requests, results, strict=True)
        decided = [(request, result) for request, result in pairs if isinstance(result, Decision)]
        self._record(decided)
        return convert.batch_to_proto(results), [decision for _, decision in decided]

    def RouteStream(
        self, messages: Iterator[pb.RouteStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.RouteStreamResponse]:
        begun, n_messages, status = time.time_ns(), 0, None
        if not self._streams.acquire(blocking=False):
            self._ended("RouteStream", context, begun, "UNAVAILABLE")
            _abort(context, RouterUnavailable("this server has no stream to spare; use another server or unary calls"))
        try:
            with ReadAhead(messages, _size, most_messages=_AHEAD_MESSAGES, most_bytes=_AHEAD_BYTES) as ahead:
                for some in ahead:
                    for answer in self._answers(some):
                        yield answer
                        n_messages += 1
            status = "OK"
        finally:
            self._streams.release()
            if status is None:  # the client broke it off, or its reader did
                code = context.code()  # type: ignore[attr-defined]
                status = "CANCELLED" if code is None else code.name
            self._ended("RouteStream", context, begun, status, n_messages=n_messages)

    @_unary
    def ReportOutcomes(self, message: pb.ReportOutcomesRequest) -> tuple[pb.ReportOutcomesResponse, Sequence[Decision]]:
        _check_count("outcomes", len(message.outcomes))
        if self._journal is None:
            raise RouterMlError("this server keeps no journal, so outcomes cannot be reported to it")
        outcomes: list[OutcomeReport] = []
        rejected: list[dict[str, Any]] = []
        for i, item in enumerate(message.outcomes):
            try:
                outcomes.append(convert.outcome_from_proto(item))
            except RequestError as error:
                rejected.append({"index": i, "decision_id": item.decision_id, "reason": str(error)})
        if outcomes:
            self._append(self._journal, outcomes)
        if self._meter is not None:
            self._meter.outcomes(accepted=len(outcomes), rejected=len(rejected))
        return pb.ReportOutcomesResponse(accepted=len(outcomes), rejected=rejected), ()

    @_unary
    def Describe(self, message: pb.DescribeRequest) -> tuple[pb.DescribeResponse, Sequence[Decision]]:
        return convert.description_to_proto(self._router.describe()), ()

    def _decide(self, message: pb.RouteRequest) -> Decision:
        request = convert.request_from_proto(message)
        decision = self._router.decide(request)
        self._record(((request, decision),))
        return decision

    def _answers(self, messages: Sequence[pb.RouteStreamRequest]) -> list[pb.RouteStreamResponse]:
        """The answers to messages that wait, decided together; all made before the client takes the first."""
        if len(messages) == 1:
            return [self._answer(messages[0])]
        begun = time.time_ns()
        try:
            requests = [convert.request_from_proto(message.request) for message in messages]
            results = self._router.decide_each(requests)
        except Exception:  # whichever message provokes it, the others are still to be decided
            return list(map(self._answer, messages))
        pairs = zip(requests, results, strict=True)
        decided = [(request, result) for request, result in pairs if isinstance(result, Decision)]
        self._record(decided)
        answers = []
        for message, result in zip(messages, results, strict=True):
            if not isinstance(result, Decision):
                _log_fault(result)
            answer = convert.stream_answer_to_proto(message.id, result)
            if self._meter is not None and isinstance(result, Decision):
                self._meter.count("RouteStream", None, (time.time_ns() - begun) * 1e-9, (result,))
            answers.append(answer)
        return answers

    def _answer(self, message: pb.RouteStreamRequest) -> pb.RouteStreamResponse:
        begun = time.time_ns()
        result: Decision | Exception
        try:
            result = self._decide(message.request)
        except Exception as error:
            _log_fault(error)
            result = error
        answer = convert.stream_answer_to_proto(message.id, result)
        if self._meter is not None and isinstance(result, Decision):
            self._meter.count("RouteStream", None, (time.time_ns() - begun) * 1e-9, (result,))
        return answer

    def _record(self, decided: Sequence[tuple[Request, Decision]]) -> None:
        if self._journal is not None and decided:
            self._journal.append_decisions(decided)

    def _append(self, journal: Record, outcomes: Sequence[OutcomeReport]) -> None:
        try:
            journal.append_outcomes(outcomes)
        except OSError as error:
            if self._meter is not None:
                self._meter.outcomes(unwritten=len(outcomes))
            raise RouterUnavailable(
                f"the outcomes could not be written to the journal ({error}); report them again later"
            ) from error

    def _ended(
        self,
        method: str,
        context: grpc.ServicerContext,
        begun_ns: int,
        status: str,
        answer: Any = None,
        decisions: Sequence[Decision] = (),
        n_messages: int | None = None,
    ) -> None:
        """A call was served: count and trace it."""
        if self._meter is not None:
            seconds = (time.time_ns() - begun_ns) * 1e-9 if decisions else None
            self._meter.count(method, status, seconds, decisions)
        if self._tracer is not None:
            attributes = attributes_of(answer) if n_messages is None else {"router_ml.requests": n_messages}
            self._tracer.record(method, context.invocation_metadata(), begun_ns, time.time_ns(), status, attributes)


def _size(message: pb.RouteStreamRequest) -> int:
    return message.ByteSize()


def _check_count(field: str, count: int) -> None:
    if count > convert.MAX_ITEMS:
        raise RequestError(f"`{field}` must hold at most {convert.MAX_ITEMS} items, found more; send them in parts")


def _status(error: Exception) -> grpc.StatusCode:
    return _STATUS[convert.error_code(error)]


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    _log_fault(error)
    message = pb.Error(**convert.error_fields(error))
    text = message.message[:_STATUS_CHARS]
    message.message = text
    while message.ByteSize() > _ERROR_BYTES and message.rejected:
        del message.rejected[len(message.rejected) // 2 :]
    context.set_trailing_metadata(((convert.ERROR_KEY, message.SerializeToString()),))
    context.abort(_STATUS[message.code], text)


def _log_fault(error: Exception) -> None:
    """What is not the caller's doing must be found in the server's log."""
    if isinstance(error, RouterUnavailable):
        _log.error("a call failed: %s", error)
    elif not isinstance(error, RouterMlError):
        # Where, not what: the message of an error that nobody foresaw may quote the prompt.
        lines = "".join(traceback.format_tb(error.__traceback__))
        _log.error("a call failed, %s at\n%s", type(error).__name__, lines)
