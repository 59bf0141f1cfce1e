"""Load on a server: what runs in the generators' processes, and what it found.

Open loop: calls begin at times drawn beforehand (a Poisson process), whether or not earlier ones were
answered, and a latency counts from the time a call was due. So a server that stalls is seen in every call
that was due meanwhile, not in the one call per client that a closed loop would have had under way.
"""

from __future__ import annotations

import random
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from router_ml.bench.figures import Latency
from router_ml.bench.http2 import Connection
from router_ml.errors import RouterUnavailable

_SPIN_S = 8e-5
"""Linux ends a sleep up to so late, so for the last of it the generator rather asks again and again."""
_DRAIN_S = 15.0
"""Longest wait for the answers to what was sent."""
_OPTIONS = (("grpc.max_receive_message_length", -1),)


@dataclass(frozen=True, slots=True)
class Called:
    """What is called."""

    address: str
    method: str
    """/package.Service/Method."""
    messages: Sequence[bytes]
    """Serialized requests, sent in turn."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one generator, or several together, saw in one round."""

    latency_us: NDArray[np.float64]
    """Of the calls answered well."""
    n_sent: int
    n_refused: int
    """Answered, but with an error. What is neither in `latency_us` nor here was not answered in time."""
    n_in_window: int
    """Answered well before the load ended, while it was at its height."""
    seconds: float
    """Length of that window."""
    late_us: float | None = None
    """99th percentile of how late the generator itself was, part of each latency; None: it did not keep to times."""

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.n_in_window / self.seconds

    def share_within(self, microseconds: float) -> float:
        """Share of all calls sent that were answered well within the time."""
        return float(np.count_nonzero(self.latency_us <= microseconds)) / max(1, self.n_sent)

    @classmethod
    def together(cls, parts: Sequence[Found]) -> Found:
        """Of generators that ran at the same time."""
        return cls(
            np.concatenate([part.latency_us for part in parts]),
            sum(part.n_sent for part in parts),
            sum(part.n_refused for part in parts),
            sum(part.n_in_window for part in parts),
            max(part.seconds for part in parts),
            max((part.late_us for part in parts if part.late_us is not None), default=None),
        )


def arrivals(per_second: float, seconds: float, seed: int) -> list[float]:
    """When calls are due, seconds from the start: a Poisson process."""
    draw, due, at = random.Random(seed), list[float](), 0.0
    while (at := at + draw.expovariate(per_second)) < seconds:
        due.append(at)
    return due


def open_loop(called: Called, clients: int, per_second: float, seconds: float, start: float, seed: int) -> Found:
    """Calls at random times, `per_second` on average, spread in turn over `clients` connections.

    `start` is a time of `time.monotonic`, so that several generators begin together.
    """
    load = _Load(called, clients)
    late: list[float] = []
    try:
        load.wait_until(start)
        for n, after in enumerate(arrivals(per_second, seconds, seed)):
            when = start + after
            # Answers are taken even when late, or the generator would itself become the queue that it measures.
            load.receive(when - time.monotonic() - _SPIN_S)
            while (left := when - time.monotonic()) > 0:
                load.receive(left - _SPIN_S)
            load.send(n % clients, when)
            late.append(time.monotonic() - when)
        load.drain()
        return replace(load.found(start, seconds), late_us=Latency.of(late).p99 * 1e6 if late else None)
    finally:
        load.close()


def saturate(called: Called, clients: int, in_flight: int, seconds: float, start: float) -> Found:
    """Closed loop: each of `clients` connections keeps `in_flight` calls under way."""
    load = _Load(called, clients)
    try:
        load.wait_until(start)
        for _ in range(in_flight):
            for client in range(clients):
                load.send(client, time.monotonic())
        while time.monotonic() < start + seconds:
            for client in load.receive(0.05):
                load.send(client, time.monotonic())
        load.drain()
        return load.found(start, seconds)
    finally:
        load.close()


class _Load:
    """Calls under way on several connections."""

    def __init__(self, called: Called, clients: int) -> None:
        self._messages = called.messages
        self._connections = [Connection(called.address, called.method) for _ in range(clients)]
        self._due: list[dict[int, float]] = [{} for _ in range(clients)]
        self._n_sent = self._n_refused = 0
        self._answered: list[tuple[float, float]] = []
        """When a call was due, when it was answered."""

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def wait_until(self, start: float) -> None:
        """Meanwhile the connections say hello."""
        while (left := start - time.monotonic()) > 0:
            self.receive(left)

    def send(self, client: int, due: float) -> None:
        message = self._messages[self._n_sent % len(self._messages)]
        self._due[client][self._connections[client].call(message)] = due
        self._n_sent += 1

    def receive(self, timeout_s: float) -> list[int]:
        """The client of each call that ended; waits so long for the first, not at all at 0 or less."""
        stuck = [connection for connection in self._connections if connection.blocked]
        readable, writable, _ = select.select(self._connections, stuck, (), max(0.0, timeout_s))
        for connection in writable:
            connection.flush()
        clients = []
        for connection in readable:
            client = self._connections.index(connection)
            finished = connection.receive()
            now = time.monotonic()
            for stream, good in finished:
                due = self._due[client].pop(stream)
                if good:
                    self._answered.append((due, now))
                else:
                    self._n_refused += 1
                clients.append(client)
        return clients

    def drain(self) -> None:
        end = time.monotonic() + _DRAIN_S
        while any(self._due) and (left := end - time.monotonic()) > 0:
            self.receive(left)

    def found(self, start: float, seconds: float) -> Found:
        due, answered = np.array(self._answered, dtype=np.float64).reshape(-1, 2).T
        return Found(
            latency_us=(answered - due) * 1e6,
            n_sent=self._n_sent,
            n_refused=self._n_refused,
            n_in_window=int(np.count_nonzero(answered <= start + seconds)),
            seconds=seconds,
        )


# -- gRPC's own client, in a closed loop: what a caller in Python sees -------------------------------


def one_client(called: Called, seconds: float) -> Found:
    """One call after the other."""
    with grpc.insecure_channel(called.address, options=_OPTIONS) as channel:
        call: Any = channel.unary_unary(called.method)

        def ask(message: bytes) -> None:
            call(message, timeout=_DRAIN_S)

        return _one_after_the_other(called, seconds, ask)


def one_stream(called: Called, seconds: float, in_flight: int) -> Found:
    """One stream with `in_flight` messages under way; answers come in the order of the messages."""
    room, sent = threading.Semaphore(in_flight), []
    begin = time.perf_counter()

    def messages() -> Iterator[bytes]:
        while True:
            room.acquire()
            if time.perf_counter() - begin >= seconds:
                return
            sent.append(time.perf_counter())
            yield called.messages[len(sent) % len(called.messages)]

    latency: list[float] = []
    with grpc.insecure_channel(called.address, options=_OPTIONS) as channel:
        try:
            stream: Any = channel.stream_stream(called.method)
            for _ in stream(messages(), timeout=seconds + _DRAIN_S):
                latency.append((time.perf_counter() - sent[len(latency)]) * 1e6)
                room.release()
        except grpc.RpcError as error:
            raise _translated(called, error) from None
        finally:
            room.release()
    spent = time.perf_counter() - begin
    return Found(np.array(latency), len(sent), 0, len(latency), spent)


def _one_after_the_other(called: Called, seconds: float, ask: Callable[[bytes], None]) -> Found:
    latency: list[float] = []
    try:
        ask(called.messages[0])  # connects
        begin = now = time.perf_counter()
        while now - begin < seconds:
            before = now
            ask(called.messages[len(latency) % len(called.messages)])
            now = time.perf_counter()
            latency.append((now - before) * 1e6)
    except grpc.RpcError as error:
        raise _translated(called, error) from None
    return Found(np.array(latency), len(latency), 0, len(latency), now - begin)


def _translated(called: Called, error: grpc.RpcError) -> RouterUnavailable:
    status, details = error.code(), error.details()
    return RouterUnavailable(f"{called.method} on {called.address} failed under load ({status.name}: {details})")
