"""The client of a router server: the same calls as the router in process, the same errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from numpy.typing import ArrayLike

from router_ml import convert
from router_ml.convert import ERROR_KEY, MAX_ITEMS, MAX_MESSAGE_BYTES
from router_ml.errors import InputError, RequestError, RouterMlError, RouterUnavailable
from router_ml.records import OutcomeReport
from router_ml.request import make_request
from router_ml.types import Decision, Description, Message, Request
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

_Answer = TypeVar("_Answer")

_ENVELOPE_BYTES = 64
"""More than what frames a request in a batch or a stream."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # the client trusts its server; a batch of answers may be long
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),  # gRPC's two minutes are long for a server that restarts in seconds
)

# What a status means that came without an Error of ours; any other one is a RouterMlError.
_BY_STATUS: dict[grpc.StatusCode, type[RouterMlError]] = {
    grpc.StatusCode.UNAVAILABLE: RouterUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: RouterUnavailable,
    grpc.StatusCode.CANCELLED: RouterUnavailable,
    grpc.StatusCode.INVALID_ARGUMENT: RequestError,
    grpc.StatusCode.OUT_OF_RANGE: RequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RequestError,  # the message is longer than the server takes
}


@dataclass(frozen=True, slots=True)
class RejectedOutcome:
    """An outcome that the server refused."""

    index: int
    """Its place in what was reported, from 0."""
    decision_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a server did with reported outcomes."""

    accepted: int
    """Number of outcomes that are now on the server's disk."""
    rejected: tuple[RejectedOutcome, ...] = ()


class RouterClient:
    """Calls a router server.

    Safe to share between threads: make one and keep it, since a new one costs a
    connection. Not safe to carry over a fork: make it in the child. In asyncio,
    call it from a thread. Use it in a `with` block, or `close` it.

    It connects on the first call, and again by itself when the server restarts.
    Calls raise RequestError when the request is wrong, NoEligibleOfferError when
    its constraints leave no offer, RouterUnavailable when the server cannot be
    reached or does not answer in time, RouterMlError for anything else.
    """

    def __init__(self, address: str, *, timeout_s: float = 5.0, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """No connection yet.

        `address` is HOST:PORT. `timeout_s` is the deadline of each call, and of
        each part of a batch; a stream has none. `max_message_bytes` is what the
        server takes, so that a longer request is refused before it is sent.
        """
        if ":" not in address:
            raise InputError(f"`address` must be HOST:PORT, e.g. 127.0.0.1:50051; found {address!r}")
        if not timeout_s > 0:
            raise InputError(f"`timeout_s` must be above 0 seconds; found {timeout_s!r}")
        self._address = address
        self._timeout_s = timeout_s
        self._max_message_bytes = max_message_bytes
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub: Any = router_pb2_grpc.RouterServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and disconnect; calls after it raise RouterUnavailable."""
        self._channel.close()

    def route(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message | Mapping[str, str]] = (),
        embedding: ArrayLike | None = None,
        segment: str | None = None,
        session_id: str | None = None,
        tenant: str | None = None,
        allowed_models: Iterable[str] = (),
        denied_models: Iterable[str] = (),
        allowed_regions: Iterable[str] = (),
        required_capabilities: Iterable[str] = (),
        max_cost_usd: float | None = None,
        max_output_tokens: int | None = None,
        quality_target: float | None = None,
        min_success_probability: float | None = None,
        input_tokens: int | None = None,
        cached_input_tokens: Mapping[str, int] | None = None,
        batch: bool = False,
    ) -> Decision:
        """The decision for one prompt; the arguments are those of `make_request`."""
        return self.decide(
            make_request(
                text,
                messages=messages,
                embedding=embedding,
                segment=segment,
                session_id=session_id,
                tenant=tenant,
                allowed_models=allowed_models,
                denied_models=denied_models,
                allowed_regions=allowed_regions,
                required_capabilities=required_capabilities,
                max_cost_usd=max_cost_usd,
                max_output_tokens=max_output_tokens,
                quality_target=quality_target,
                min_success_probability=min_success_probability,
                input_tokens=input_tokens,
                cached_input_tokens=cached_input_tokens,
                batch=batch,
            )
        )

    def decide(self, request: Request) -> Decision:
        """The decision for one request."""
        answer: pb.RouteResponse = self._call(self._stub.Route, self._encode(request))
        return convert.decision_from_proto(answer)

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        """One decision, or the error that stands in its way, per request; sent in as many parts as needed."""
        results: list[Decision | RouterMlError | None] = [None] * len(requests)
        messages: list[tuple[int, pb.RouteRequest]] = []
        for i, request in enumerate(requests):
            try:
                messages.append((i, self._encode(request)))
            except RequestError as error:
                results[i] = error
        for part in self._parts(messages):
            batch = pb.RouteBatchRequest(requests=[message for _, message in part])
            answer: pb.RouteBatchResponse = self._call(self._stub.RouteBatch, batch)
            for (i, _), item in zip(part, answer.items, strict=True):
                results[i] = convert.result_from_proto(item)
        return [result for result in results if result is not None]

    def decide_stream(self, requests: Iterable[Request]) -> Iterator[Decision | RouterMlError]:
        """One decision or error per request, in order, each as soon as it is made.

        `requests` is read from another thread, a few ahead of the answers. What
        it raises is raised here, after the answers to what came before.
        """
        refused: dict[str, RequestError] = {}
        failures: list[Exception] = []

        def messages() -> Iterator[pb.RouteStreamRequest]:
            try:
                for i, request in enumerate(requests):
                    yield self._stream_message(str(i), request, refused)
            except Exception as error:
                failures.append(error)

        call = self._begin(messages())
        try:
            for answer in call:
                here = refused.pop(answer.id, None)
                yield convert.result_from_proto(answer) if here is None else here
        except grpc.RpcError as error:
            raise self._translated(error) from error
        finally:
            call.cancel()
        if failures:
            raise failures[0]

    def report(self, outcomes: Sequence[OutcomeReport]) -> Receipt:
        """Say what came of decisions; returns when the server has it on disk.

        After RouterUnavailable report all of them again: it does no harm.
        """
        accepted = 0
        rejected: list[RejectedOutcome] = []
        for start in range(0, len(outcomes), MAX_ITEMS):
            messages = [convert.outcome_to_proto(outcome) for outcome in outcomes[start : start + MAX_ITEMS]]
            answer: pb.ReportOutcomesResponse = self._call(
                self._stub.ReportOutcomes, pb.ReportOutcomesRequest(outcomes=messages)
            )
            accepted += answer.accepted
            rejected += [RejectedOutcome(start + item.index, item.decision_id, item.reason) for item in answer.rejected]
        return Receipt(accepted, tuple(rejected))

    def describe(self) -> Description:
        """The version in force, and what it can do."""
        answer: pb.DescribeResponse = self._call(self._stub.Describe, pb.DescribeRequest())
        return convert.description_from_proto(answer)

    def _call(self, method: Any, message: Any) -> Any:
        """Every unary call goes through here."""
        try:
            return method(message, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._translated(error) from error
        except ValueError as error:  # how gRPC says that the channel is closed
            raise RouterUnavailable(f"this client of {self._address} is closed") from error

    def _begin(self, messages: Iterator[pb.RouteStreamRequest]) -> Any:
        try:
            return self._stub.RouteStream(messages)
        except ValueError as error:
            raise RouterUnavailable(f"this client of {self._address} is closed") from error

    def _encode(self, request: Request) -> pb.RouteRequest:
        message = convert.request_to_proto(request)
        size = message.ByteSize()
        limit = self._max_message_bytes - _ENVELOPE_BYTES
        if size > limit:
            raise RequestError(
                f"the request takes {size} bytes, more than the {limit} that the server takes; shorten the prompt"
            )
        return message

    def _stream_message(self, mark: str, request: Request, refused: dict[str, RequestError]) -> pb.RouteStreamRequest:
        try:
            return pb.RouteStreamRequest(id=mark, request=self._encode(request))
        except RequestError as error:
            # Sent without its request, so that its answer takes its place in the order.
            refused[mark] = error
            return pb.RouteStreamRequest(id=mark)

    def _parts(self, messages: Sequence[tuple[int, pb.RouteRequest]]) -> Iterator[list[tuple[int, pb.RouteRequest]]]:
        part: list[tuple[int, pb.RouteRequest]] = []
        size = 0
        for i, message in messages:
            item = message.ByteSize() + _ENVELOPE_BYTES
            if part and (len(part) == MAX_ITEMS or size + item > self._max_message_bytes):
                yield part
                part, size = [], 0
            part.append((i, message))
            size += item
        if part:
            yield part

    def _translated(self, error: Any) -> RouterMlError:
        """The error of router-ml that a failed call stands for."""
        for key, value in error.trailing_metadata() or ():
            if key == ERROR_KEY:
                return convert.error_from_proto(pb.Error.FromString(value))
        status, details = error.code(), error.details()
        kind = _BY_STATUS.get(status, RouterMlError)
        if kind is RequestError:
            return RequestError(f"the router server at {self._address} refused the request: {details}")
        if kind is RouterUnavailable:
            return RouterUnavailable(f"the router server at {self._address} did not answer ({status.name}: {details})")
        return RouterMlError(f"the call to the router server at {self._address} failed ({status.name}: {details})")
