"""OpenTelemetry traces of the calls, sent to a collector by OTLP over HTTP; needs the extra `tracing`.

A call is told of once it has ended, as one span, so that what is not traced costs nothing and what is
traced needs no span to be kept at hand. A span never holds text of a prompt.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

from router_ml.errors import InputError
from router_ml.v1 import router_pb2 as pb

_SERVICE: str = pb.DESCRIPTOR.services_by_name["RouterService"].full_name
_REASONS = {number: name.removeprefix("REASON_").lower() for name, number in pb.Reason.items()}
_PATH = "/v1/traces"
_EXPORT_SECONDS = 3.0
"""Longest wait for the collector at each export, and so at the end."""
_BATCH = 64
"""Spans encoded at a time, few, since decisions wait for the interpreter lock meanwhile."""
_FAULTS = ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
"""Statuses that are the server's fault, by OpenTelemetry's conventions for gRPC."""


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Where traces go. InputError when the address is not one of HTTP or the share not one."""

    collector: str
    """URL of an OTLP/HTTP collector, e.g. http://collector:4318; without a path, /v1/traces is taken."""
    ratio: float = 1.0
    """Share in [0, 1] of calls to trace; a caller that sends a `traceparent` decides for its own call."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.collector)
            _ = parts.port
            good = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            good = False
        if not good:
            raise InputError(f"`traces` must be a URL such as http://collector:4318; found {self.collector!r}")
        if not 0 <= self.ratio <= 1:
            raise InputError(f"the share of calls to trace must lie in [0, 1]; found {self.ratio!r}")


class Tracer:
    """Makes spans of calls and sends them in batches from a thread of its own. One per process, after any fork."""

    def __init__(self, settings: TraceSettings) -> None:
        """InputError when the libraries are not installed."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise InputError(
                f"traces need OpenTelemetry, and `{error.name}` is not installed: pip install 'router-ml[tracing]'"
            ) from None
        bare = urlsplit(settings.collector).path in ("", "/")
        url = settings.collector.rstrip("/") + _PATH if bare else settings.collector
        version = metadata.version("router-ml")
        resource = Resource.create(
            {"service.name": "router-ml", "service.version": version, "service.instance.id": str(os.getpid())}
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.ratio)), resource=resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(url, timeout=_EXPORT_SECONDS), max_export_batch_size=_BATCH)
        )
        self._tracer = self._provider.get_tracer("router_ml", version)
        self._context_of = TraceContextTextMapPropagator().extract
        self._kind = trace.SpanKind.SERVER
        self._fault = trace.Status(trace.StatusCode.ERROR)

    def record(
        self,
        method: str,
        metadata: Iterable[tuple[str, str | bytes]],
        begin_ns: int,
        end_ns: int,
        status: str,
        attributes: dict[str, Any],
    ) -> None:
        """A call ended: its method, metadata, times since 1970 and gRPC status, and what `attributes_of` found."""
        headers = {key: value for key, value in metadata if key in ("traceparent", "tracestate")}
        span = self._tracer.start_span(
            f"{_SERVICE}/{method}",
            self._context_of(headers) if headers else None,
            self._kind,
            {"rpc.system.name": "grpc", "rpc.method": f"{_SERVICE}/{method}", "rpc.response.status_code": status},
            start_time=begin_ns,
        )
        if span.is_recording():
            span.set_attributes(attributes)
            if status in _FAULTS:
                span.set_status(self._fault)
                span.set_attribute("error.type", status)
        span.end(end_ns)

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        self._provider.shutdown()


def attributes_of(answer: Any) -> dict[str, Any]:
    """What an answer tells of its call: the decision, or how many there are."""
    if isinstance(answer, pb.RouteResponse):
        return {
            "gen_ai.request.model": answer.model,
            "router_ml.decision_id": answer.decision_id,
            "router_ml.offer": answer.offer,
            "router_ml.version": answer.version,
            "router_ml.arm": answer.arm,
            "router_ml.reasons": [_REASONS.get(number, "other") for number in answer.reasons],
            "router_ml.requests": 1,
        }
    if isinstance(answer, pb.RouteBatchResponse):
        return {"router_ml.requests": len(answer.items)}
    if isinstance(answer, pb.ReportOutcomesResponse):
        return {"router_ml.outcomes": answer.accepted + len(answer.rejected)}
    return {}
