"""Figures over gRPC: a server in a process of its own, load from others, the empty handler beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol

import grpc

from router_ml import convert
from router_ml.bench import floors
from router_ml.bench.figures import Figure, Latency, Target
from router_ml.bench.load import Called, Found, one_client, one_stream, open_loop, saturate
from router_ml.bench.processes import Generators
from router_ml.errors import RouterMlError, RouterUnavailable
from router_ml.service import SERVICE_NAME
from router_ml.types import Description
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

BATCH = 64
_IN_FLIGHT = 8
_STREAM_IN_FLIGHT = 32
_BEYOND = 2.0

_GREETING_S = 10.0
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

_FASTER_THAN_US = 1000.0
_SOON_US = 3000.0


class Measured(Protocol):
    """A server under load."""

    @property
    def address(self) -> str:
        """HOST:PORT."""

    def cpu_s(self) -> float | None:
        """Its processor time so far; None: unknown."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that someone else started, here or elsewhere."""

    address: str

    def cpu_s(self) -> None:
        """Not ours to see."""


@dataclass(frozen=True, slots=True)
class Load:
    """How it is asked."""

    generators: Generators
    texts: Sequence[str]
    clients: int
    per_second: float
    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Rounds:
    """What all rounds of one kind of load found."""

    each: tuple[Found, ...]
    cpu_us: float | None
    """Median, a decision."""

    @property
    def latency(self) -> Latency:
        return Latency.median([Latency.of(found.latency_us) for found in self.each])

    @property
    def per_second(self) -> float:
        return median(found.per_second for found in self.each)

    def fate(self) -> dict[str, float]:
        """What became of calls that were not answered well, and how late the generator was."""
        late = [found.late_us for found in self.each if found.late_us is not None]
        return {
            "refused": sum(found.n_refused for found in self.each),
            "unanswered": sum(found.n_sent - found.n_refused - len(found.latency_us) for found in self.each),
        } | ({"generator_late_p99_us": median(late)} if late else {})


def greet(address: str, text: str) -> Description:
    """What a server has in force, once it has decided a prompt.

    RouterUnavailable when nothing answers there, RouterMlError when what answers refuses the prompt.
    """
    with grpc.insecure_channel(address) as channel:
        stub: Any = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            about = stub.Describe(pb.DescribeRequest(), timeout=_GREETING_S)
            stub.Route(pb.RouteRequest(text=text), timeout=_GREETING_S)
        except grpc.RpcError as error:
            status, details = error.code(), error.details()
            kind = RouterUnavailable if status in _AWAY else RouterMlError
            raise kind(f"the router server at {address} cannot be measured ({status.name}: {details})") from None
    return convert.description_from_proto(about)


def one_at_a_time(server: Measured, floor: Measured | None, load: Load) -> Figure:
    """Unary calls of one client that waits for each answer."""
    found = _rounds(server, load, lambda: load.generators.one(one_client, _unary(server, load), load.seconds))
    beside, targets = {}, [Target("p99", _FASTER_THAN_US, found.latency.p99, "µs")]
    if floor is not None:
        empty = _rounds(floor, load, lambda: load.generators.one(one_client, _empty(floor, load), load.seconds))
        beside = {"empty_p50_us": empty.latency.p50, "empty_p99_us": empty.latency.p99} | _cpu("empty", empty)
        targets.insert(0, Target("p50 / the empty handler's", 1.4, found.latency.p50 / empty.latency.p50))
    return _figure("unary_one_client", "unary, 1 client, closed loop (gRPC's client)", found, beside, targets)


def at_a_rate(server: Measured, floor: Measured | None, load: Load) -> Figure:
    """Unary calls of several clients at a given rate, whether or not earlier ones were answered."""
    found = _rounds(server, load, _at_rate(_unary(server, load), load, load.per_second))
    beside = found.fate()
    if floor is not None:
        empty = _rounds(floor, load, _at_rate(_empty(floor, load), load, load.per_second))
        beside |= {"empty_p50_us": empty.latency.p50, "empty_p99_us": empty.latency.p99} | _cpu("empty", empty)
    soon = median(each.share_within(_SOON_US) for each in found.each)
    return _figure(
        "unary_open_loop",
        f"unary, {load.clients} clients, {load.per_second:,.0f}/s open loop",
        found,
        beside | {"share_within_3_ms": soon},
        [
            Target("p99", _FASTER_THAN_US, found.latency.p99, "µs"),
            Target("share within 3 ms", 0.999, soon, at_least=True),
        ],
    )


def saturated(server: Measured, floor: Measured | None, load: Load) -> tuple[Figure, Figure]:
    """The most unary calls that it answers, and what it answers when twice as many are asked."""
    full = _rounds(server, load, _saturating(_unary(server, load), load, load.clients))
    beside, targets = full.fate(), []
    if floor is not None:
        empty = _rounds(floor, load, _saturating(_empty(floor, load), load, load.clients))
        beside |= {"empty_per_s": empty.per_second} | _cpu("empty", empty)
        share = full.per_second / _above_zero(empty, floor, load)
        targets.append(Target("throughput / the empty handler's", 0.5, share, at_least=True))
    offered = _BEYOND * _above_zero(full, server, load)
    beyond = _rounds(server, load, _at_rate(_unary(server, load), load, offered))
    return (
        _figure(
            "unary_saturated",
            f"unary, saturated: {load.clients} clients with {_IN_FLIGHT} calls each under way",
            full,
            beside,
            targets,
        ),
        _figure(
            "unary_beyond",
            f"unary, twice that rate: {offered:,.0f}/s open loop",
            beyond,
            beyond.fate() | {"offered_per_s": offered},
            [Target("throughput / saturated", 0.9, beyond.per_second / full.per_second, at_least=True)],
        ),
    )


def _above_zero(found: _Rounds, server: Measured, load: Load) -> float:
    """Answers a second; RouterMlError when all came too late to tell how many it can give."""
    if not found.per_second:
        raise RouterMlError(
            f"{server.address} answered nothing before a round of {load.seconds:g} s was over; give more --seconds"
        )
    return found.per_second


def streams(server: Measured, floor: Measured | None, unary: Figure, load: Load) -> list[Figure]:
    """One stream, a message at a time and many under way; `unary` is the saturated figure to compare with."""
    messages = [pb.RouteStreamRequest(id="1", request={"text": text}).SerializeToString() for text in load.texts]
    called = Called(server.address, f"/{SERVICE_NAME}/RouteStream", messages)
    figures = []
    for name, in_flight in (("stream_one", 1), ("stream_busy", _STREAM_IN_FLIGHT)):
        found = _rounds(server, load, partial(load.generators.one, one_stream, called, load.seconds, in_flight))
        beside: dict[str, float] = {}
        targets = []
        if floor is not None:
            nothing = Called(floor.address, floors.STREAM, messages)
            empty = _rounds(floor, load, partial(load.generators.one, one_stream, nothing, load.seconds, in_flight))
            beside = {"empty_p50_us": empty.latency.p50} | _cpu("empty", empty)
        if in_flight > 1 and found.cpu_us and unary.cpu_us:
            share = unary.cpu_us / found.cpu_us
            targets.append(Target("decisions a CPU second / unary's, saturated", 2.0, share, at_least=True))
        what = f"RouteStream, {in_flight} message{'s' if in_flight > 1 else ''} under way"
        figures.append(_figure(name, what, found, beside, targets))
    return figures


def batches(server: Measured, load: Load) -> Figure:
    """Calls of RouteBatch, one after the other; latency is that of a batch, the rest counts decisions."""
    texts = [*load.texts, *load.texts[:BATCH]]
    messages = [
        pb.RouteBatchRequest(requests=[{"text": text} for text in texts[at : at + BATCH]]).SerializeToString()
        for at in range(0, len(load.texts), BATCH)
    ]
    called = Called(server.address, f"/{SERVICE_NAME}/RouteBatch", messages)
    found = _rounds(server, load, lambda: load.generators.one(one_client, called, load.seconds))
    each_us = found.latency.p50 / BATCH
    return Figure(
        name="batch_64",
        what=f"RouteBatch of {BATCH}, 1 client (latency of a batch)",
        latency=found.latency,
        per_second=found.per_second * BATCH,
        cpu_us=None if found.cpu_us is None else found.cpu_us / BATCH,
        beside={"p50_us_per_decision": each_us},
        targets=(Target("p50 a decision", 20.0, each_us, "µs"),),
    )


def workers(server: Measured, unary: Figure, load: Load, n: int) -> Figure:
    """Throughput of `n` workers beside that of one; `unary` is one worker's saturated figure."""
    # Many connections, since the system spreads them over the workers by chance.
    found = _rounds(server, load, _saturating(_unary(server, load), load, 16 * n))
    assert unary.per_second is not None
    share = found.per_second / unary.per_second / n
    return _figure(
        "workers",
        f"unary, saturated, {n} workers",
        found,
        found.fate() | {"one_worker_per_s": unary.per_second},
        [Target(f"throughput / ({n} × one worker's)", 0.9, share, at_least=True)],
    )


def _unary(server: Measured, load: Load) -> Called:
    messages = [pb.RouteRequest(text=text).SerializeToString() for text in load.texts]
    return Called(server.address, f"/{SERVICE_NAME}/Route", messages)


def _empty(floor: Measured, load: Load) -> Called:
    return Called(floor.address, floors.UNARY, _unary(floor, load).messages)


def _at_rate(called: Called, load: Load, per_second: float) -> Callable[[], Found]:
    generators = load.generators
    shares = [len(range(k, load.clients, generators.n)) for k in range(generators.n)]

    def run() -> Found:
        return generators.all(
            lambda k, start: partial(
                open_loop, called, shares[k], per_second * shares[k] / load.clients, load.seconds, start, k
            )
        )

    return run


def _saturating(called: Called, load: Load, clients: int) -> Callable[[], Found]:
    generators = load.generators

    def run() -> Found:
        return generators.all(
            lambda k, start: partial(
                saturate, called, len(range(k, clients, generators.n)), _IN_FLIGHT, load.seconds, start
            )
        )

    return run


def _rounds(server: Measured, load: Load, run: Callable[[], Found]) -> _Rounds:
    each, cpu = [], []
    for _ in range(load.rounds):
        before = server.cpu_s()
        found = run()
        after = server.cpu_s()
        if not len(found.latency_us):
            raise RouterMlError(
                f"{server.address} answered none of {found.n_sent} calls well ({found.n_refused} with an error), "
                "so there is nothing to measure"
            )
        each.append(found)
        if before is not None and after is not None:
            cpu.append((after - before) * 1e6 / max(1, len(found.latency_us)))
    return _Rounds(tuple(each), median(cpu) if cpu else None)


def _cpu(name: str, rounds: _Rounds) -> dict[str, float]:
    return {} if rounds.cpu_us is None else {f"{name}_cpu_us": rounds.cpu_us}


def _figure(name: str, what: str, found: _Rounds, beside: dict[str, float], targets: Sequence[Target]) -> Figure:
    return Figure(name, what, found.latency, found.per_second, found.cpu_us, beside, tuple(targets))
