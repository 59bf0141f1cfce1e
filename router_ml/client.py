"""The client of a router server: the same calls as the router in process, the same errors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike

from router_ml import convert
from router_ml.calls import DECISION_TIMEOUT_S, Batch, Calls, Outcomes, Receipt, RejectedOutcome
from router_ml.connection import CHANNEL_OPTIONS
from router_ml.convert import MAX_MESSAGE_BYTES
from router_ml.errors import RequestError, RouterMlError
from router_ml.records import OutcomeReport
from router_ml.reporting import ReportCounts, Reporter
from router_ml.request import make_request
from router_ml.types import Decision, Description, Message, Request
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

__all__ = ["Receipt", "RejectedOutcome", "ReportCounts", "RouterClient"]


class RouterClient:
    """Calls a router server behind one or several addresses.

    Safe to share between threads: make one and keep it, since a new one costs a
    connection. Not safe to carry over a fork: make it in the child. In asyncio,
    use AsyncRouterClient. Use it in a `with` block, or `close` it.

    Give it `default_model` and no request fails because of the router: where the
    router is down, late or wrong, `route`, `decide` and `decide_batch` return
    that default at once. Its `reasons` hold Reason.ROUTER_UNAVAILABLE, its
    `decision_id` and `version` are empty. The client holds the default against
    `allowed_models` and `denied_models` of the request, and raises if they
    exclude it; it cannot know whether the default keeps the other constraints
    (regions, capabilities, cost, limits), so name one that all requests may use.

    Calls raise RequestError when the request is wrong and NoEligibleOfferError
    when its constraints leave no offer, with or without a default; without one,
    RouterUnavailable when the server cannot be reached, has too much to do or
    does not answer in time, and RouterMlError for anything else.

    It connects on the first call to an address, which may therefore take up to
    a second, and again by itself when a server comes back. Calls go to the
    addresses in turn. What one does not take (UNAVAILABLE) goes to the next, or
    to the only one once more, within the same deadline. One that failed is
    shunned for 0.1 to 2 s while others answer.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        timeout_s: float = DECISION_TIMEOUT_S,
        bulk_timeout_s: float = 5.0,
        default_model: str | None = None,
        default_offer: str | None = None,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        token: str | None = None,
        token_file: str | Path | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """No connection yet. InputError, which names the argument, where one is wrong.

        `addresses` is one HOST:PORT or several; one given twice gets two
        connections. `timeout_s` is the deadline of `route` and `decide`, 10 ms
        unless told otherwise; `bulk_timeout_s` that of the other calls, for each
        part of a batch or a report. A stream has none.

        `default_offer` is the offer of `default_model` to call; left out, an
        offer of the model's own name.

        `tls_ca` is a PEM file of the authorities that servers' certificates are
        checked by: given, the connection is encrypted. `tls_cert` and `tls_key`
        are PEM files too, for servers that ask who calls. `token` is sent with
        each call as a bearer token; `token_file` holds it, and is read again
        when it changes. A token goes to other machines only over TLS.

        `max_message_bytes` is what the server takes, so that a longer request is
        refused before it is sent.
        """
        self._calls = Calls(
            addresses,
            timeout_s=timeout_s,
            bulk_timeout_s=bulk_timeout_s,
            default_model=default_model,
            default_offer=default_offer,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            token=token,
            token_file=token_file,
            max_message_bytes=max_message_bytes,
        )
        self._channels = [self._channel(address) for address in self._calls.addresses]
        self._stubs: list[Any] = [
            router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
            for channel in self._channels
        ]
        self._reporter = Reporter(self.report)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self, timeout_s: float = 2.0) -> None:
        """Wait up to `timeout_s` seconds for outcomes to be reported, cancel what is in flight, and disconnect.

        Calls after it raise RouterUnavailable.
        """
        self._reporter.flush(timeout_s)
        self._reporter.stop()
        for channel in self._channels:
            channel.close()
        self._reporter.join()

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
        message = self._calls.encode(request)
        try:
            return self._calls.decision(self._call("Route", message, self._calls.timeout_s))
        except RouterMlError as error:
            return self._calls.default(request, error)

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        """One decision, or the error that stands in its way, per request; sent in as many parts as needed."""
        batch = Batch(self._calls, requests)
        for places, message in batch.parts():
            try:
                batch.answered(places, self._call("RouteBatch", message, self._calls.bulk_timeout_s))
            except RouterMlError as error:
                batch.failed(places, error)
        return batch.results()

    def decide_stream(self, requests: Iterable[Request]) -> Iterator[Decision | RouterMlError]:
        """One decision or error per request, in order, each as soon as it is made.

        `requests` is read from another thread, a few ahead of the answers. What
        it raises is raised here, after the answers to what came before. A stream
        stays with one address, and has no default: it raises RouterUnavailable
        where that one fails.
        """
        refused: dict[str, RequestError] = {}
        failures: list[Exception] = []

        def messages() -> Iterator[pb.RouteStreamRequest]:
            try:
                for i, request in enumerate(requests):
                    yield self._stream_message(str(i), request, refused)
            except Exception as error:
                failures.append(error)

        place = self._calls.begin(self._calls.bulk_timeout_s).place
        call = self._begin(place, messages())
        try:
            for answer in call:
                here = refused.pop(answer.id, None)
                yield convert.result_from_proto(answer) if here is None else here
        except grpc.RpcError as error:
            raise self._calls.failed(place, error) from error
        finally:
            call.cancel()
        if failures:
            raise failures[0]

    def report(self, outcomes: Sequence[OutcomeReport]) -> Receipt:
        """Say what came of decisions; returns when the server has it on disk.

        After RouterUnavailable report all of them again: it does no harm.
        Outcomes of default decisions are skipped.
        """
        report = Outcomes(self._calls, outcomes)
        for places, message in report.parts():
            report.answered(places, self._call("ReportOutcomes", message, self._calls.bulk_timeout_s))
        return report.receipt()

    def report_later(self, outcome: OutcomeReport) -> None:
        """The same in the background; returns at once and never raises for the router's sake.

        A thread sends what has gathered five times a second, and again until it
        is acknowledged. Up to 10,000 outcomes wait; beyond that the oldest are
        dropped, counted (`report_counts`) and logged. What waits is sent when
        the client is closed, and when the program ends, within 2 s.
        """
        self._reporter.add(outcome)

    def report_counts(self) -> ReportCounts:
        """What became of the outcomes given to `report_later`."""
        return self._reporter.counts()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait, at most `timeout_s` seconds, until no outcome given to `report_later` waits; whether none does."""
        return self._reporter.flush(timeout_s)

    def describe(self) -> Description:
        """The version in force, and what it can do."""
        answer: pb.DescribeResponse = self._call("Describe", pb.DescribeRequest(), self._calls.bulk_timeout_s)
        return convert.description_from_proto(answer)

    def _channel(self, address: str) -> grpc.Channel:
        if self._calls.credentials is None:
            return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.secure_channel(address, self._calls.credentials, options=CHANNEL_OPTIONS)

    def _call(self, rpc: str, message: Any, timeout_s: float) -> Any:
        """Every unary call goes through here."""
        call = self._calls.begin(timeout_s)
        while True:
            method = getattr(self._stubs[call.place], rpc)
            try:
                answer = method(message, timeout=call.timeout_s, metadata=self._calls.metadata())
            except grpc.RpcError as error:
                call.failed(error)
                time.sleep(call.pause_s)
            except ValueError as error:  # how gRPC says that the channel is closed
                raise self._calls.closed() from error
            else:
                call.answered()
                return answer

    def _begin(self, place: int, messages: Iterator[pb.RouteStreamRequest]) -> Any:
        try:
            return self._stubs[place].RouteStream(messages, metadata=self._calls.metadata())
        except ValueError as error:
            raise self._calls.closed() from error

    def _stream_message(self, mark: str, request: Request, refused: dict[str, RequestError]) -> pb.RouteStreamRequest:
        try:
            return pb.RouteStreamRequest(id=mark, request=self._calls.encode(request))
        except RequestError as error:
            # Sent without its request, so that its answer takes its place in the order.
            refused[mark] = error
            return pb.RouteStreamRequest(id=mark)
