"""What Prometheus is told, read as Prometheus reads it: over HTTP, from a server that was really called."""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from router_ml.bundle import verify
from router_ml.errors import InputError, RouterMlError
from router_ml.journal import Journal
from router_ml.meter import JournalWatch, Meter
from router_ml.metrics import MetricsServer, ServerMetrics, serve_metrics
from router_ml.privacy import RedactedText
from router_ml.request import check_request
from router_ml.server import Server, ServerSettings, serve
from router_ml.traffic import InForce
from router_ml.types import Decision, Reason, Request
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

DECISION_ID = "0193488e-7c00-7abc-8def-0123456789ab"


class SlowRouter:
    """Decides for `small`; a text of `wait` is decided only when it is told to go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        self.decided: list[str | None] = []

    def decide(self, request: Request) -> Decision:
        check_request(request)
        if request.text == "wait":
            self.begun.release()
            assert self.go_on.wait(120)
        self.decided.append(request.text)
        propensity, reason = (0.5, Reason.EXPLORED) if request.text == "explore" else (1.0, Reason.BEST_VALUE)
        return Decision(DECISION_ID, "small@eu", "small", (), (), (reason,), propensity, 0.95, "7", "blue", "ab" * 32)

    def decide_batch(self, requests: list[Request]) -> list[Decision | RouterMlError]:
        return [self.decide(request) for request in requests]

    decide_each = decide_batch


def page(server: MetricsServer, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def samples(text: str) -> dict[str, float]:
    """Sample with its labels, in the order of the labels' names -> value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@dataclass
class Served:
    router: SlowRouter
    stub: router_pb2_grpc.RouterServiceStub
    health: health_pb2_grpc.HealthStub
    http: MetricsServer
    metrics: ServerMetrics
    server: Server
    unknown: Callable[..., object]
    """Calls a method that the server does not have."""
    raw_route: Callable[[bytes], object]
    raw_stream: Callable[[bytes], object]
    stop: Callable[[], None]

    def samples(self) -> dict[str, float]:
        return samples(page(self.http))

    def until_in_flight(self, n: int) -> None:
        limit = time.monotonic() + 60
        while (found := self.samples()["router_ml_in_flight"]) != n:
            assert time.monotonic() < limit, f"{found} calls in flight"
            time.sleep(0.01)


@contextmanager
def served(journal: Journal | None = None, **settings: int | Path) -> Iterator[Served]:
    router, metrics = SlowRouter(), ServerMetrics()
    meter = Meter(metrics.memories[0])
    watch = JournalWatch(meter, journal) if journal else None
    server = serve(router, settings=ServerSettings("127.0.0.1:0", **settings), journal=journal, meter=meter)  # type: ignore[arg-type]
    http = serve_metrics("127.0.0.1:0", metrics, lambda: server.serving)
    server.start()

    def stop() -> None:
        """Returns when all is counted: a stream's thread may outlive the server's stop by a moment."""
        server.stop(0)
        one.until_in_flight(0)
        if journal and watch:
            journal.close()
            watch.close()

    with grpc.insecure_channel(server.address) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
        service = "/router_ml.v1.RouterService"
        stream = channel.stream_stream(f"{service}/RouteStream")
        one = Served(
            router,
            stub,
            health_pb2_grpc.HealthStub(channel),
            http,
            metrics,
            server,
            channel.unary_unary(f"{service}/Unknown"),
            channel.unary_unary(f"{service}/Route"),
            lambda data: list(stream(iter([data]), timeout=60)),
            stop,
        )
        yield one
    router.go_on.set()
    stop()
    http.close()


def ask(text: str) -> pb.RouteRequest:
    return pb.RouteRequest(text=text)


def fails(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code: grpc.StatusCode = caught.value.code()
    return code


def test_every_call_decision_and_time_is_counted() -> None:
    with served() as one:
        for text in ("a", "b", "explore"):
            one.stub.Route(ask(text))
        assert fails(lambda: one.stub.Route(ask(" "))) is grpc.StatusCode.INVALID_ARGUMENT
        one.stub.RouteBatch(pb.RouteBatchRequest(requests=[ask("c"), ask("d")]))
        assert len(list(one.stub.RouteStream(iter([pb.RouteStreamRequest(request=ask("e"))])))) == 1
        report = pb.ReportOutcomesRequest(outcomes=[pb.Outcome(decision_id=DECISION_ID)])
        assert fails(lambda: one.stub.ReportOutcomes(report)) is grpc.StatusCode.FAILED_PRECONDITION
        one.stop()
        found = one.samples()
    assert found["router_ml_decisions_total{arm=blue,model=small,reason=best_value,version=7}"] == 5
    assert found["router_ml_decisions_total{arm=blue,model=small,reason=explored,version=7}"] == 1
    assert found["router_ml_decisions_explored_total"] == 1
    calls = {name: value for name, value in found.items() if name.startswith("router_ml_rpcs_total") and value}
    assert calls == {
        "router_ml_rpcs_total{method=Route,status=OK}": 3,
        "router_ml_rpcs_total{method=Route,status=INVALID_ARGUMENT}": 1,
        "router_ml_rpcs_total{method=RouteBatch,status=OK}": 1,
        "router_ml_rpcs_total{method=RouteStream,status=OK}": 1,
        "router_ml_rpcs_total{method=ReportOutcomes,status=FAILED_PRECONDITION}": 1,
    }
    for method, answers in (("Route", 3), ("RouteBatch", 1), ("RouteStream", 1)):
        assert found[f"router_ml_decision_seconds_count{{method={method}}}"] == answers
        assert found[f"router_ml_decision_seconds_bucket{{le=+Inf,method={method}}}"] == answers
        assert 0 < found[f"router_ml_decision_seconds_sum{{method={method}}}"] < 10
    assert found["router_ml_in_flight"] == 0


def test_a_call_beyond_the_limit_is_counted_as_refused() -> None:
    with served(threads=1, max_streams=1, max_waiting=1) as one:
        calls = [one.stub.Route.future(ask("wait"), timeout=60) for _ in range(3)]  # two threads, and one that waits
        one.until_in_flight(3)
        codes = [fails(lambda: one.stub.Route(ask("a"), timeout=60)) for _ in range(3)]
        assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        one.router.go_on.set()
        for call in calls:
            call.result()
        one.health.Check(health_pb2.HealthCheckRequest(), timeout=60)  # is not taken for the call that was refused
        one.stub.Route(ask("a"), timeout=60)
        one.stop()
        found = one.samples()
    assert found["router_ml_refused_total{reason=overload}"] == 3
    assert found["router_ml_rpcs_total{method=Route,status=RESOURCE_EXHAUSTED}"] == 3
    assert found["router_ml_rpcs_total{method=Route,status=OK}"] == 4
    assert found["router_ml_refused_total{reason=gone}"] == 0
    assert one.router.decided == ["wait", "wait", "wait", "a"]


def test_no_work_is_done_for_a_caller_that_has_gone_while_it_waited() -> None:
    with served(threads=1, max_streams=1) as one:
        calls = [one.stub.Route.future(ask("wait"), timeout=60) for _ in range(2)]  # both threads
        for _ in calls:
            assert one.router.begun.acquire(timeout=60)
        late = one.stub.Route.future(ask("late"), timeout=3.0)
        cancelled = one.stub.Route.future(ask("cancelled"), timeout=60)
        one.until_in_flight(4)
        cancelled.cancel()
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # Behind their ends on the same connection, and answered without a thread: by now the server knows of both.
        assert fails(lambda: one.unknown(b"", timeout=60)) is grpc.StatusCode.UNIMPLEMENTED
        one.router.go_on.set()
        for call in calls:
            call.result()
        one.stub.Route(ask("patient"), timeout=60)
        one.stop()
        found = one.samples()
    assert one.router.decided == ["wait", "wait", "patient"]
    assert found["router_ml_refused_total{reason=gone}"] == 2
    assert found["router_ml_rpcs_total{method=Route,status=CANCELLED}"] == 2
    assert found["router_ml_in_flight"] == 0


def test_a_stream_that_its_client_breaks_off_ends_once() -> None:
    with served() as one:
        more = threading.Event()

        def messages() -> Iterator[pb.RouteStreamRequest]:
            yield pb.RouteStreamRequest(request=ask("a"))
            more.wait(60)

        stream = one.stub.RouteStream(messages(), timeout=60)
        next(stream)
        one.until_in_flight(1)
        stream.cancel()
        more.set()
        one.until_in_flight(0)  # else the server's stop might end it first
        one.stop()
        found = one.samples()
    # Now and then gRPC ends the messages before it tells of the cancellation; to the server the stream was closed then.
    ended = [found[f"router_ml_rpcs_total{{method=RouteStream,status={status}}}"] for status in ("CANCELLED", "OK")]
    assert sum(ended) == 1
    assert found["router_ml_in_flight"] == 0


def test_what_an_interceptor_refuses_is_told_by_its_status(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"reporter report {hashlib.sha256(b'a-token').hexdigest()}\n")
    with served(tokens=tokens) as one:
        assert fails(lambda: one.stub.Route(ask("a"), timeout=60)) is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", "Bearer a-token"),)
        denied = fails(lambda: list(one.stub.RouteStream(iter(()), timeout=10, metadata=metadata)))
        assert denied is grpc.StatusCode.PERMISSION_DENIED
        one.stop()
        found = one.samples()
    assert found["router_ml_rpcs_total{method=Route,status=UNAUTHENTICATED}"] == 1
    assert found["router_ml_rpcs_total{method=RouteStream,status=PERMISSION_DENIED}"] == 1
    assert found["router_ml_refused_total{reason=gone}"] == 0


def test_bytes_that_are_no_message_are_told_as_invalid() -> None:
    with served() as one:
        for raw in (one.raw_route, one.raw_stream):
            assert fails(lambda raw=raw: raw(b"\xff")) is grpc.StatusCode.INVALID_ARGUMENT
        one.stop()
        found = one.samples()
    assert found["router_ml_rpcs_total{method=Route,status=INVALID_ARGUMENT}"] == 1
    assert found["router_ml_rpcs_total{method=RouteStream,status=INVALID_ARGUMENT}"] == 1
    assert found["router_ml_refused_total{reason=gone}"] == 0


def test_the_journal_and_its_losses_are_told(tmp_path: Path) -> None:
    with served(Journal(tmp_path / "journal")) as one:
        one.stub.Route(ask("a"))
        outcomes = [pb.Outcome(decision_id=DECISION_ID, success=1.0), pb.Outcome(decision_id="wrong")]
        one.stub.ReportOutcomes(pb.ReportOutcomesRequest(outcomes=outcomes))
        one.stop()
        found = one.samples()
    assert found["router_ml_journal_decisions_written_total"] == 1
    assert found["router_ml_journal_decisions_lost_total"] == 0
    assert found["router_ml_outcomes_total{result=accepted}"] == 1
    assert found["router_ml_outcomes_total{result=rejected}"] == 1
    assert found["router_ml_journal_trouble"] == 0
    assert found["router_ml_journal_lag_seconds"] == 0
    assert found["router_ml_journal_queued_bytes"] == 0


def test_prompts_that_could_not_be_redacted_are_told(tmp_path: Path) -> None:
    def fails_on_a(text: str) -> str:
        if text == "a":
            raise RuntimeError
        return text

    with served(Journal(tmp_path / "journal", rule=RedactedText(fails_on_a))) as one:
        for prompt in ("a", "b", "a"):
            one.stub.Route(ask(prompt))
        one.stop()
        found = one.samples()
    assert found["router_ml_journal_redactions_failed_total"] == 2
    assert found["router_ml_journal_decisions_written_total"] == 3


def test_a_journal_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with served(Journal(folder)) as one:
        shutil.rmtree(folder)  # as a disk that went away
        folder.write_text("")
        one.stub.Route(ask("a"))
        report = pb.ReportOutcomesRequest(outcomes=[pb.Outcome(decision_id=DECISION_ID, success=1.0)])
        assert fails(lambda: one.stub.ReportOutcomes(report)) is grpc.StatusCode.UNAVAILABLE
        one.stop()
        found = one.samples()
    assert found["router_ml_journal_trouble"] == 1
    assert found["router_ml_journal_decisions_lost_total"] == 1
    assert found["router_ml_outcomes_total{result=unwritten}"] == 1
    assert found["router_ml_outcomes_total{result=accepted}"] == 0


def test_a_server_without_a_journal_tells_nothing_of_one() -> None:
    assert b"journal_" not in ServerMetrics().page()


def test_a_supervisor_tells_of_versions_and_workers(tiny_bundle: Path) -> None:
    metrics = ServerMetrics(n_workers=2)
    assert "router_ml_version_info{" not in metrics.page().decode()
    for memory in metrics.memories:
        Meter(memory)
    metrics.in_force(InForce("7", "ab" * 32, (), ()))
    manifest, digest, _ = verify(tiny_bundle)
    metrics.switched(InForce(manifest.version, digest, (), ()))
    metrics.switched(None)
    metrics.worker_died(1)
    found = samples(metrics.page().decode())
    assert {name: value for name, value in found.items() if "version_info" in name} == {
        f"router_ml_version_info{{bundle_sha256={digest},version={manifest.version}}}": 1
    }
    assert found["router_ml_reloads_total{result=taken}"] == found["router_ml_reloads_total{result=refused}"] == 1
    assert (found["router_ml_workers"], found["router_ml_worker_restarts_total"]) == (1, 1)


def test_health_and_readiness_are_told_over_http() -> None:
    with served() as one:
        assert (page(one.http, "/healthz"), page(one.http, "/readyz")) == ("alive\n", "ready\n")
        one.server.stop(0)
        assert page(one.http, "/healthz") == "alive\n"
        for path, status in (("/readyz", 503), ("/", 404)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                page(one.http, path)
            assert caught.value.code == status
            caught.value.close()


def test_a_silent_client_holds_nobody_up() -> None:
    http = serve_metrics("127.0.0.1:0", ServerMetrics(), lambda: True)
    with socket.create_connection(("127.0.0.1", http.port)):
        assert page(http, "/readyz") == "ready\n"
    http.close()


@pytest.mark.parametrize("address", ["", "9464", "127.0.0.1", "127.0.0.1:65536", "http://a:1"])
def test_a_wrong_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="`metrics` must be HOST:PORT"):
        serve_metrics(address, ServerMetrics(), lambda: True)


def test_a_port_in_use_is_an_input_error_that_says_what_to_do() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InputError, match="in use; choose"):
            serve_metrics(f"127.0.0.1:{other.getsockname()[1]}", ServerMetrics(), lambda: True)
