"""Metrics for Prometheus, over HTTP: `/metrics`, and `/healthz` and `/readyz` for whoever starts and stops servers.

The names, labels and units below are what dashboards and alerts hold on to; ops/README.md lists them.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate, chain

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from router_ml.address import split_address
from router_ml.errors import InputError
from router_ml.meter import BUCKETS, REFUSED_GONE, REFUSED_OVERLOAD, Memory, Reading, forget_worker, new_memory, read
from router_ml.shadow import RESULTS
from router_ml.traffic import InForce

_BREATH_SECONDS = 5e-5
"""Pause after each metric, so that decisions of this process never wait for a whole page to be written."""
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_CLIENT_SECONDS = 5.0
"""A client that says nothing for so long is hung up on."""


class ServerMetrics(Collector):
    """What a server is and does, over all of its workers. All methods may be called from any thread."""

    def __init__(self, n_workers: int = 1) -> None:
        self.memories: tuple[Memory, ...] = tuple(new_memory() for _ in range(n_workers))
        """What the meter of each worker counts into; to be handed to the worker, and to the one that replaces it."""
        self._lock = threading.Lock()
        self._in_force: InForce | None = None
        self._restarts = 0
        self._reloads = {"taken": 0, "refused": 0}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def in_force(self, now: InForce) -> None:
        """That version decides now, and that is tested beside it."""
        with self._lock:
            self._in_force = now

    def switched(self, now: InForce | None) -> None:
        """That came into force; None: something that came was refused."""
        with self._lock:
            self._reloads["refused" if now is None else "taken"] += 1
        if now is not None:
            self.in_force(now)

    def worker_died(self, number: int) -> None:
        """Worker `number`, from 0, ended unasked and will be started again."""
        forget_worker(self.memories[number])
        with self._lock:
            self._restarts += 1

    def page(self) -> bytes:
        """All of it in the text format of Prometheus."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        reading = read(self.memories)
        parts = (_decisions(reading), _shadows(reading), _calls(reading), _journal(reading), self._server(reading))
        for family in chain.from_iterable(parts):
            yield family
            time.sleep(_BREATH_SECONDS)

    def _server(self, reading: Reading) -> Iterator[Metric]:
        with self._lock:
            now, restarts, reloads = self._in_force, self._restarts, dict(self._reloads)
        info = GaugeMetricFamily(
            "router_ml_version_info", "The version in force; always 1", labels=["version", "bundle_sha256"]
        )
        arms = GaugeMetricFamily(
            "router_ml_test_share",
            "Share of the units that an arm of a test in force gets, or a shadow",
            labels=["arm", "version", "bundle_sha256"],
        )
        if now is not None:
            info.add_metric((now.version, now.bundle_sha256), 1)
            for test in now.tests:
                for arm in test.arms:
                    arms.add_metric((f"{test.name}/{arm.name}", arm.version, arm.bundle_sha256), test.share)
            for shadow in now.shadows:
                arms.add_metric((shadow.name, shadow.version, shadow.bundle_sha256), shadow.share)
        yield info
        yield arms
        yield _counter("router_ml_reloads", "Versions that came later, by what became of them", "result", reloads)
        yield GaugeMetricFamily("router_ml_workers", "Processes that serve", reading.counts["alive"])
        yield CounterMetricFamily(
            "router_ml_worker_restarts", "Workers that ended unasked and were started again", restarts
        )


def _decisions(reading: Reading) -> Iterator[Metric]:
    seconds = HistogramMetricFamily(
        "router_ml_decision_seconds",
        "Time from a message received to its answer made, of answers with decisions; of a batch, the whole of it",
        labels=["method"],
    )
    for method, buckets in reading.buckets.items():
        bounds = [*map(str, BUCKETS), "+Inf"]
        seconds.add_metric([method], list(zip(bounds, accumulate(buckets), strict=True)), reading.seconds[method])
    yield seconds
    made = CounterMetricFamily("router_ml_decisions", "Decisions made", labels=["version", "arm", "model", "reason"])
    for labels, count in reading.decisions.items():
        made.add_metric(labels, count)
    yield made
    yield CounterMetricFamily(
        "router_ml_decisions_explored",
        "Decisions that chance took from the policy",
        reading.counts["explored"],
    )


def _shadows(reading: Reading) -> Iterator[Metric]:
    yield _counter(
        "router_ml_shadow_decisions",
        "Decisions of versions that only look on, by whether they chose the same model, and those that were lost",
        "result",
        {result: reading.counts[f"shadow_{result}"] for result in (*RESULTS, "unwritten")},
    )


def _calls(reading: Reading) -> Iterator[Metric]:
    rpcs = CounterMetricFamily("router_ml_rpcs", "Calls ended, by gRPC status", labels=["method", "status"])
    for labels, count in reading.rpcs.items():
        rpcs.add_metric(labels, count)
    yield rpcs
    counts = reading.counts
    yield _counter(
        "router_ml_refused",
        "Calls not served: refused for overload, or their callers gone (cancelled, deadline passed) as they waited",
        "reason",
        {"overload": counts[REFUSED_OVERLOAD], "gone": counts[REFUSED_GONE]},
    )
    yield GaugeMetricFamily(
        "router_ml_in_flight", "Calls that wait or are served", max(0.0, counts["taken"] - counts["ended"])
    )
    yield _counter(
        "router_ml_outcomes",
        "Outcomes reported: accepted (on disk), rejected (wrong in themselves), unwritten (disk in trouble)",
        "result",
        {result: counts[f"outcomes_{result}"] for result in ("accepted", "rejected", "unwritten")},
    )


def _journal(reading: Reading) -> Iterator[Metric]:
    counts, oldest = reading.counts, reading.oldest_unix
    if not counts["journal"]:
        return
    yield CounterMetricFamily(
        "router_ml_journal_decisions_written", "Decisions written to the journal", counts["journal_written"]
    )
    yield CounterMetricFamily(
        "router_ml_journal_decisions_lost", "Decisions that never reached the journal", counts["journal_lost"]
    )
    yield CounterMetricFamily(
        "router_ml_journal_redactions_failed",
        "Prompts and error messages left out of the journal, since they could not be redacted",
        counts["journal_unredacted"],
    )
    yield GaugeMetricFamily(
        "router_ml_journal_lag_seconds",
        "Age of the oldest decision that waits for the disk; 0 when none does",
        max(0.0, time.time() - oldest) if oldest else 0.0,
    )
    yield GaugeMetricFamily(
        "router_ml_journal_queued_bytes", "Memory of decisions that wait for the disk", counts["journal_queued_bytes"]
    )
    yield GaugeMetricFamily(
        "router_ml_journal_trouble", "Workers whose last write to the journal failed", counts["journal_trouble"]
    )


def _counter(name: str, help_text: str, label: str, values: dict[str, float] | dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


class MetricsServer:
    """Answers over HTTP from threads of its own, until `close`."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="router-ml-metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on, the real one where any free one was asked for."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(address: str, metrics: ServerMetrics, ready: Callable[[], bool]) -> MetricsServer:
    """Serve `/metrics`; `/healthz`, 200 as long as this process lives; `/readyz`, 200 while `ready()`, otherwise 503.

    `address` is HOST:PORT; port 0 takes any free one. InputError when it is wrong or cannot be bound.
    """
    parts = split_address(address)
    if parts is None:
        raise InputError(
            f"`metrics` must be HOST:PORT with a port from 0 to 65535, e.g. 127.0.0.1:9464; found {address!r}"
        )
    try:
        family, _, _, _, bound = socket.getaddrinfo(parts[0].strip("[]"), parts[1], type=socket.SOCK_STREAM)[0]

        class Http(ThreadingHTTPServer):
            address_family = family
            daemon_threads = True

        return MetricsServer(Http((str(bound[0]), int(bound[1])), _handler(metrics, ready)))
    except OSError as error:
        raise InputError(
            f"cannot serve metrics on {address}: {error.strerror}; choose a name or address of this machine "
            "and a port that is free (port 0 takes any)"
        ) from None


def _handler(metrics: ServerMetrics, ready: Callable[[], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_SECONDS

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(HTTPStatus.OK, metrics.page(), _PROMETHEUS)
            elif path == "/healthz":
                self._answer(HTTPStatus.OK, b"alive\n")
            elif path == "/readyz" and ready():
                self._answer(HTTPStatus.OK, b"ready\n")
            elif path == "/readyz":
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n")
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"there are /metrics, /healthz and /readyz\n")

        def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing: a line at each look would bury all else."""

    return Handler
