"""What the two clients of a server have in common, without the sending: messages, addresses, what answers mean."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from router_ml import convert
from router_ml.connection import Token, channel_credentials, check_addresses, is_loopback
from router_ml.convert import ERROR_KEY, MAX_ITEMS
from router_ml.errors import InputError, NoEligibleOfferError, RequestError, RouterMlError, RouterUnavailable
from router_ml.fallback import Fallback
from router_ml.records import OutcomeReport
from router_ml.rotation import Rotation
from router_ml.types import Decision, Request
from router_ml.v1 import router_pb2 as pb

DECISION_TIMEOUT_S = 0.01
"""Ten times what the server takes for 99 of 100 calls: a late answer is one that something holds up, and a model call,
which takes a second, does not feel the wait."""

_CONNECT_S = 1.0
"""The first call to an address may take so long, since it has to connect."""

_AGAIN_S = 0.001
"""The pause before the same address is tried again: until gRPC has noticed that the connection is lost."""

_ENVELOPE_BYTES = 64
"""More than what frames a request or an outcome in a message of several."""

# What a status means that came without an Error of ours; any other one is a RouterMlError.
_BY_STATUS: dict[grpc.StatusCode, type[RouterMlError]] = {
    grpc.StatusCode.UNAVAILABLE: RouterUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: RouterUnavailable,
    grpc.StatusCode.CANCELLED: RouterUnavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RouterUnavailable,  # overload, unless the message is too long
    grpc.StatusCode.INVALID_ARGUMENT: RequestError,
    grpc.StatusCode.OUT_OF_RANGE: RequestError,
}
_TOO_LONG = "larger than max"
"""How gRPC itself words that a message is longer than the server takes."""


class ClosedError(RouterUnavailable):
    """A call through a closed client: the caller's own mistake, so no default stands in for it."""


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
    skipped: int = 0
    """Number of outcomes of default decisions, which have no id: they were not sent."""


class Calls:
    """One server behind one or several addresses, as a client is told of it. Safe to share between threads."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        timeout_s: float,
        bulk_timeout_s: float,
        default_offer: str | None,
        default_model: str | None,
        tls_ca: str | Path | None,
        tls_cert: str | Path | None,
        tls_key: str | Path | None,
        token: str | None,
        token_file: str | Path | None,
        max_message_bytes: int,
    ) -> None:
        """The arguments are those of RouterClient; InputError, which names it, where one is wrong."""
        self.addresses = check_addresses(addresses)
        for name, value in (("timeout_s", timeout_s), ("bulk_timeout_s", bulk_timeout_s)):
            if not value > 0:
                raise InputError(f"`{name}` must be above 0 seconds; found {value!r}")
        self.timeout_s = timeout_s
        self.bulk_timeout_s = bulk_timeout_s
        self.credentials = channel_credentials(tls_ca, tls_cert, tls_key)
        self._token = Token(token, token_file)
        far = [address for address in self.addresses if not is_loopback(address)]
        if self._token and self.credentials is None and far:
            raise InputError(f"a token is sent to other machines only over TLS: give `tls_ca` for {', '.join(far)}")
        self._fallback = Fallback(default_offer, default_model)
        self._max_message_bytes = max_message_bytes
        self._rotation = Rotation(len(self.addresses))
        self._unproven = set(range(len(self.addresses)))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return self._token.metadata()

    def begin(self, timeout_s: float) -> Call:
        """A call that is about to be made."""
        return Call(self, self._rotation.order(), timeout_s)

    def proven(self, place: int) -> bool:
        """Whether that address has been called before."""
        return place not in self._unproven

    def answered(self, place: int) -> None:
        """That address is well."""
        self._unproven.discard(place)
        self._rotation.answered(place)

    def failed(self, place: int, error: Any) -> RouterMlError:
        """What a failed call to that address is to be raised as."""
        self._unproven.discard(place)
        translated = translated_error(error, self.addresses[place])
        if isinstance(translated, RequestError | NoEligibleOfferError):
            self._rotation.answered(place)
        else:
            self._rotation.failed(place)
        return translated

    def closed(self) -> ClosedError:
        """What a call through a closed client is to be raised as."""
        return ClosedError(f"this client of {', '.join(self.addresses)} is closed")

    def encode(self, request: Request) -> pb.RouteRequest:
        """The message of a request; RequestError when it is wrong or longer than the server takes."""
        message = convert.request_to_proto(request)
        size = message.ByteSize()
        limit = self._max_message_bytes - _ENVELOPE_BYTES
        if size > limit:
            raise RequestError(
                f"the request takes {size} bytes, more than the {limit} that the server takes; shorten the prompt"
            )
        return message

    def decision(self, answer: pb.RouteResponse | None) -> Decision:
        """The decision of an answer; RouterMlError when it lacks what every decision has."""
        # None is how gRPC for asyncio gives an answer that cannot be parsed.
        decision = None if answer is None else convert.decision_from_proto(answer)
        if decision is None or not (decision.decision_id and decision.offer and decision.model):
            raise RouterMlError("the router server gave an answer that is no decision")
        return decision

    def default(self, request: Request, error: RouterMlError) -> Decision:
        """The default decision in place of `error`, or `error` raised; see Fallback."""
        if isinstance(error, ClosedError):
            raise error
        return self._fallback.decision(request, error)

    def parts(self, messages: Sequence[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
        """Numbered messages in parts that fit into one message to the server."""
        part: list[tuple[int, Any]] = []
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


class Call:
    """One call, on one address after the other until one answers or the time is up."""

    __slots__ = ("_calls", "_deadline", "_next", "_order", "pause_s", "place")

    def __init__(self, calls: Calls, order: Sequence[int], timeout_s: float) -> None:
        self._calls = calls
        self._order = order if len(order) > 1 else [*order, *order]  # a port may have several servers behind it
        self._deadline = time.monotonic() + timeout_s
        self._next = 1
        self.place = order[0]
        """Number of the address to call now."""
        self.pause_s = 0.0
        """Seconds to wait before it."""

    @property
    def timeout_s(self) -> float:
        """Seconds that the call may take now."""
        left = self._deadline - time.monotonic()
        return left if self._calls.proven(self.place) else max(left, _CONNECT_S)

    def answered(self) -> None:
        """The call is done."""
        self._calls.answered(self.place)

    def failed(self, error: Any) -> None:
        """Go on to the next address after an RpcError; raises what it stands for when there is nothing left to try.

        Only what an unavailable server did not answer is tried again: it does
        no harm there, and a late one leaves no time.
        """
        translated = self._calls.failed(self.place, error)
        if (
            error.code() is not grpc.StatusCode.UNAVAILABLE
            or self._next == len(self._order)
            or time.monotonic() >= self._deadline
        ):
            raise translated from error
        before, self.place = self.place, self._order[self._next]
        self.pause_s = _AGAIN_S if self.place == before else 0.0
        self._next += 1


class Batch:
    """Requests on their way in parts, and what came back for each."""

    def __init__(self, calls: Calls, requests: Sequence[Request]) -> None:
        self._calls = calls
        self._requests = requests
        self._results: list[Decision | RouterMlError | None] = [None] * len(requests)

    def parts(self) -> Iterator[tuple[list[int], pb.RouteBatchRequest]]:
        """Numbers of the requests, and the message that holds them."""
        messages = []
        for i, request in enumerate(self._requests):
            try:
                messages.append((i, self._calls.encode(request)))
            except RequestError as error:
                self._results[i] = error
        for part in self._calls.parts(messages):
            yield [i for i, _ in part], pb.RouteBatchRequest(requests=[message for _, message in part])

    def answered(self, places: Sequence[int], answer: pb.RouteBatchResponse | None) -> None:
        """Take the answer to a part; RouterMlError when it does not answer each request."""
        if answer is None or len(answer.items) != len(places):
            raise RouterMlError("the router server did not answer each request of a batch")
        for i, item in zip(places, answer.items, strict=True):
            try:
                if item.WhichOneof("result") == "decision":
                    self._results[i] = self._calls.decision(item.decision)
                else:
                    raise convert.error_from_proto(item.error)
            except RouterMlError as error:
                self._results[i] = self._default(i, error)

    def failed(self, places: Sequence[int], error: RouterMlError) -> None:
        """Take what a part failed with; raised when there is no default for it."""
        results = [self._default(i, error) for i in places]
        if all(result is error for result in results):
            raise error
        for i, result in zip(places, results, strict=True):
            self._results[i] = result

    def results(self) -> list[Decision | RouterMlError]:
        """One per request, once all parts are answered or failed."""
        return [result for result in self._results if result is not None]

    def _default(self, i: int, error: RouterMlError) -> Decision | RouterMlError:
        try:
            return self._calls.default(self._requests[i], error)
        except RouterMlError as raised:
            return raised


class Outcomes:
    """Outcomes on their way in parts, and the receipt for them."""

    def __init__(self, calls: Calls, outcomes: Sequence[OutcomeReport]) -> None:
        self._calls = calls
        self._outcomes = outcomes
        self._receipt = Receipt(0)

    def parts(self) -> Iterator[tuple[list[int], pb.ReportOutcomesRequest]]:
        """Numbers of the outcomes, and the message that holds them."""
        messages = [(i, convert.outcome_to_proto(each)) for i, each in enumerate(self._outcomes) if each.decision_id]
        self._receipt = Receipt(0, skipped=len(self._outcomes) - len(messages))
        for part in self._calls.parts(messages):
            yield [i for i, _ in part], pb.ReportOutcomesRequest(outcomes=[message for _, message in part])

    def answered(self, places: Sequence[int], answer: pb.ReportOutcomesResponse | None) -> None:
        """Take the answer to a part."""
        if answer is None or any(not 0 <= item.index < len(places) for item in answer.rejected):
            raise RouterMlError("the router server gave no receipt for what was reported")
        rejected = [RejectedOutcome(places[item.index], item.decision_id, item.reason) for item in answer.rejected]
        before = self._receipt
        self._receipt = Receipt(before.accepted + answer.accepted, (*before.rejected, *rejected), before.skipped)

    def receipt(self) -> Receipt:
        """What became of all of them, once all parts are answered."""
        return self._receipt


def translated_error(error: Any, address: str) -> RouterMlError:
    """The error of router-ml that a failed call, an RpcError, stands for."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY:
            return _carried(value)
    status, details = error.code(), error.details()
    kind = _BY_STATUS.get(status, RouterMlError)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LONG in (details or ""):
        kind = RequestError
    if kind is RequestError:
        return RequestError(f"the router server at {address} refused the request: {details}")
    if kind is RouterUnavailable:
        return RouterUnavailable(f"the router server at {address} did not answer ({status.name}: {details})")
    return RouterMlError(f"the call to the router server at {address} failed ({status.name}: {details})")


def _carried(value: bytes) -> RouterMlError:
    try:
        return convert.error_from_proto(pb.Error.FromString(value))
    except DecodeError:
        return RouterMlError("the router server failed, and did not say in words of this contract why")
