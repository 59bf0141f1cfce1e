"""Traces as a collector gets them: over HTTP, in OTLP."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from router_ml.errors import InputError
from router_ml.router import Router
from router_ml.server import ServerSettings, serve
from router_ml.tracing import Tracer, TraceSettings
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "bab deb figlu"


class Collector:
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.bodies.append(body)
                collector.paths.append(self.path)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            s for r in requests for resource in r.resource_spans for scope in resource.scope_spans for s in scope.spans
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes(span: Span) -> dict[str, Any]:
    found = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        found[item.key] = [each.string_value for each in value.values] if kind == "array_value" else value
    return found


def call_once(settings: TraceSettings, bundle: Path) -> pb.RouteResponse:
    """One good call with a traced parent, one bad one, a batch, a stream; returns when the traces are sent."""
    tracer = Tracer(settings)
    server = serve(Router.load(bundle), settings=ServerSettings("127.0.0.1:0"), tracer=tracer)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("authorization", "Bearer a-token"))
        answer: pb.RouteResponse = stub.Route(pb.RouteRequest(text=PROMPT, segment="chat"), metadata=metadata)
        with pytest.raises(grpc.RpcError):
            stub.Route(pb.RouteRequest(text=" "))
        stub.RouteBatch(pb.RouteBatchRequest(requests=[pb.RouteRequest(text=PROMPT)] * 3))
        messages = [pb.RouteStreamRequest(request=pb.RouteRequest(text=PROMPT))] * 2
        assert len(list(stub.RouteStream(iter(messages)))) == 2
    server.stop()
    tracer.close()
    return answer


def test_each_call_is_one_span_with_what_was_decided(collector: Collector, tiny_bundle: Path) -> None:
    answer = call_once(TraceSettings(collector.url), tiny_bundle)
    assert set(collector.paths) == {"/v1/traces"}
    good, bad, batch, stream = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    service = "router_ml.v1.RouterService"
    assert [span.name for span in (good, bad, batch, stream)] == [
        f"{service}/{method}" for method in ("Route", "Route", "RouteBatch", "RouteStream")
    ]
    assert attributes(good) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{service}/Route",
        "rpc.response.status_code": "OK",
        "gen_ai.request.model": answer.model,
        "router_ml.decision_id": answer.decision_id,
        "router_ml.offer": answer.offer,
        "router_ml.version": answer.version,
        "router_ml.arm": "",
        "router_ml.reasons": ["best_value"],
        "router_ml.requests": 1,
    }
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE, PARENT)
    assert good.kind == Span.SPAN_KIND_SERVER
    assert 0 < good.end_time_unix_nano - good.start_time_unix_nano < 10**10
    assert attributes(bad)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert bad.status.code == Status.STATUS_CODE_UNSET  # the caller's fault, not the server's
    assert bad.parent_span_id == b"" and bad.trace_id != good.trace_id
    assert attributes(batch)["router_ml.requests"] == 3
    assert attributes(stream)["router_ml.requests"] == 2


def test_no_text_of_a_prompt_and_no_token_is_sent(collector: Collector, tiny_bundle: Path) -> None:
    call_once(TraceSettings(collector.url), tiny_bundle)
    sent = b"".join(collector.bodies)
    assert b"gen_ai.request.model" in sent
    assert not [word for word in (*PROMPT.encode().split(), b"a-token") if word in sent]


def test_of_calls_without_a_parent_only_the_given_share_is_traced(collector: Collector, tiny_bundle: Path) -> None:
    call_once(TraceSettings(collector.url, ratio=0.0), tiny_bundle)
    (span,) = collector.spans
    assert span.trace_id.hex() == TRACE


def test_a_path_in_the_url_is_kept(collector: Collector, tiny_bundle: Path) -> None:
    call_once(TraceSettings(collector.url + "/otlp/v1/traces"), tiny_bundle)
    assert set(collector.paths) == {"/otlp/v1/traces"}


def test_a_collector_that_is_down_changes_nothing_for_callers(tiny_bundle: Path) -> None:
    assert call_once(TraceSettings("http://127.0.0.1:9"), tiny_bundle).offer


@pytest.mark.parametrize("url", ["", "collector:4318", "ftp://collector", "http://", "http://a:b"])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="`traces` must be a URL such as http://collector:4318"):
        TraceSettings(url)


def test_a_wrong_share_is_refused() -> None:
    with pytest.raises(InputError, match="must lie in"):
        TraceSettings("http://a", ratio=1.5)


def test_without_the_extra_the_error_says_what_to_install(tiny_bundle: Path) -> None:
    program = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None; from router_ml.cli import main; "
        f"sys.exit(main(['serve', '--model', {str(tiny_bundle)!r}, '--listen', '127.0.0.1:0', '--traces', 'http://a']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "router-ml: traces need OpenTelemetry, and `opentelemetry.sdk.trace` is not installed"
    )
    assert "pip install 'router-ml[tracing]'" in done.stderr
