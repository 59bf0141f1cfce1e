"""The client of a router server for asyncio: the calls of RouterClient, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike

from router_ml import convert
from router_ml.calls import DECISION_TIMEOUT_S, Batch, Calls, Outcomes, Receipt
from router_ml.client import RouterClient
from router_ml.connection import CHANNEL_OPTIONS
from router_ml.convert import MAX_MESSAGE_BYTES
from router_ml.errors import InputError, RouterMlError, RouterUnavailable
from router_ml.records import OutcomeReport
from router_ml.reporting import ReportCounts
from router_ml.request import make_request
from router_ml.types import Decision, Description, Message, Request
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc


class AsyncRouterClient:
    """Calls a router server from one event loop; addresses, deadlines, default and errors are those of RouterClient.

    Make it in a coroutine and keep it; use it in an `async with` block, or
    `close` it. A loop that is blocked for longer than the deadline makes answers
    late.

    Outcomes given to `report_later` are sent by a thread with connections of its
    own, since there is no loop any more when the program ends.
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
        """The arguments are those of RouterClient; InputError also where no event loop runs."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise InputError(
                "an AsyncRouterClient must be made in a coroutine; without asyncio use RouterClient"
            ) from None
        self._background = RouterClient(
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
        self._calls: Calls = self._background._calls
        self._channels = [self._channel(address) for address in self._calls.addresses]
        self._stubs: list[Any] = [
            router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
            for channel in self._channels
        ]
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, timeout_s: float = 2.0) -> None:
        """Wait up to `timeout_s` seconds for outcomes to be reported, cancel what is in flight, and disconnect.

        Calls after it raise RouterUnavailable.
        """
        self._closed = True
        await asyncio.to_thread(self._background.close, timeout_s)
        for channel in self._channels:
            await channel.close()

    async def route(
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
        return await self.decide(
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

    async def decide(self, request: Request) -> Decision:
        """The decision for one request."""
        message = self._calls.encode(request)
        try:
            return self._calls.decision(await self._call("Route", message, self._calls.timeout_s))
        except RouterMlError as error:
            return self._calls.default(request, error)

    async def decide_batch(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        """One decision, or the error that stands in its way, per request; sent in as many parts as needed."""
        batch = Batch(self._calls, requests)
        for places, message in batch.parts():
            try:
                batch.answered(places, await self._call("RouteBatch", message, self._calls.bulk_timeout_s))
            except RouterMlError as error:
                batch.failed(places, error)
        return batch.results()

    async def report(self, outcomes: Sequence[OutcomeReport]) -> Receipt:
        """Say what came of decisions; returns when the server has it on disk. See RouterClient.report."""
        report = Outcomes(self._calls, outcomes)
        for places, message in report.parts():
            report.answered(places, await self._call("ReportOutcomes", message, self._calls.bulk_timeout_s))
        return report.receipt()

    def report_later(self, outcome: OutcomeReport) -> None:
        """The same in the background; not awaited, returns at once. See RouterClient.report_later."""
        self._background.report_later(outcome)

    def report_counts(self) -> ReportCounts:
        """What became of the outcomes given to `report_later`."""
        return self._background.report_counts()

    async def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait, at most `timeout_s` seconds, until no outcome given to `report_later` waits; whether none does."""
        return await asyncio.to_thread(self._background.flush, timeout_s)

    async def describe(self) -> Description:
        """The version in force, and what it can do."""
        answer = await self._call("Describe", pb.DescribeRequest(), self._calls.bulk_timeout_s)
        return convert.description_from_proto(answer)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._calls.credentials is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, self._calls.credentials, options=CHANNEL_OPTIONS)

    async def _call(self, rpc: str, message: Any, timeout_s: float) -> Any:
        """Every call goes through here."""
        call = self._calls.begin(timeout_s)
        while not self._closed:
            method = getattr(self._stubs[call.place], rpc)
            try:
                answer = await method(message, timeout=call.timeout_s, metadata=self._calls.metadata())
            except grpc.RpcError as error:
                call.failed(error)
                await asyncio.sleep(call.pause_s)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._closed or (task is not None and task.cancelling()):
                    raise
                # gRPC says so of calls in flight on a channel that is closed, though nobody gave up the task.
                raise RouterUnavailable("this client was closed before the router server answered") from None
            else:
                call.answered()
                return answer
        raise self._calls.closed()
