"""The load generator: open loop, honest about what was late, refused or never answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from router_ml.bench.figures import Latency, Target
from router_ml.bench.load import Called, arrivals, one_client, one_stream, open_loop, saturate
from router_ml.errors import RouterUnavailable

METHOD, STREAM = "/test.Service/Call", "/test.Service/Stream"
Handler = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def serving(handler: Handler) -> Iterator[str]:
    """The address of a real gRPC server with one unary method, and one stream that echoes."""
    server = grpc.server(ThreadPoolExecutor(8))
    handlers = {
        "Call": grpc.unary_unary_rpc_method_handler(handler),
        "Stream": grpc.stream_stream_rpc_method_handler(lambda messages, context: messages),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def soon() -> float:
    return time.monotonic() + 0.1


def test_a_stall_shows_in_every_call_that_was_due_meanwhile() -> None:
    lock, stalls = threading.Lock(), []

    def stall_once(message: bytes, context: grpc.ServicerContext) -> bytes:
        with lock:
            if not stalls and time.monotonic() > start + 0.3:
                stalls.append(time.monotonic())
                time.sleep(0.2)
        return message

    with serving(stall_once) as address:
        start = soon()
        found = open_loop(Called(address, METHOD, [b"x"]), 2, 500, 1.0, start, 7)
    due = np.array(arrivals(500, 1.0, 7)) + start
    (stall,) = stalls
    for waited in (0.05, 0.1, 0.15):  # whoever was due so long before the end of the stall
        meanwhile = np.count_nonzero((due > stall) & (due < stall + 0.2 - waited))
        assert meanwhile > 10
        assert np.count_nonzero(found.latency_us >= waited * 1e6) >= meanwhile
    assert Latency.of(found.latency_us).p99 >= 0.15e6


def test_arrivals_do_not_wait_for_answers() -> None:
    asked, gate = threading.Semaphore(0), threading.Event()

    def wait(message: bytes, context: grpc.ServicerContext) -> bytes:
        asked.release()
        gate.wait()
        return message

    with serving(wait) as address, ThreadPoolExecutor() as pool:
        running = pool.submit(open_loop, Called(address, METHOD, [b"x"]), 1, 100, 0.2, soon(), 7)
        try:
            for _ in range(8):  # as many as the server has threads, though it has answered none
                assert asked.acquire(timeout=60)
        finally:
            gate.set()
        found = running.result()
    assert found.n_sent == len(arrivals(100, 0.2, 7)) > 8
    assert len(found.latency_us) == found.n_sent


def test_a_latency_counts_from_the_time_the_call_was_due() -> None:
    with serving(lambda message, context: message) as address:
        found = open_loop(Called(address, METHOD, [b"x"]), 2, 200, 0.3, time.monotonic() - 0.5, 7)
    assert len(found.latency_us) == found.n_sent == len(arrivals(200, 0.3, 7))
    assert found.latency_us.min() >= 0.2e6  # the last was due 0.2 s before the generator began
    assert found.late_us is not None and found.late_us >= 0.2e6  # which it owns up to


def test_arrivals_come_at_random_and_at_the_rate() -> None:
    due = np.array(arrivals(1000, 20.0, 1))
    gaps = np.diff(due)
    assert abs(len(due) / 20_000 - 1) < 0.05
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05  # as exponential gaps have it
    assert list(due) == arrivals(1000, 20.0, 1) != arrivals(1000, 20.0, 2)


def test_a_refusal_is_not_an_answer() -> None:
    def refuse_b(message: bytes, context: grpc.ServicerContext) -> bytes:
        if message == b"b":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return message

    with serving(refuse_b) as address:
        found = open_loop(Called(address, METHOD, [b"a", b"b"]), 1, 200, 0.2, soon(), 3)
    assert found.n_refused == found.n_sent // 2 > 0
    assert len(found.latency_us) + found.n_refused == found.n_sent
    assert found.share_within(1e9) == len(found.latency_us) / found.n_sent


def test_messages_longer_than_a_window_of_http2_all_arrive() -> None:
    sizes: list[int] = []

    def measure(message: bytes, context: grpc.ServicerContext) -> bytes:
        sizes.append(len(message))
        return message

    with serving(measure) as address:
        found = saturate(Called(address, METHOD, [bytes(n) for n in (0, 20_000, 60_000)]), 2, 8, 0.3, soon())
    assert len(found.latency_us) == found.n_sent == len(sizes) >= 16
    assert set(sizes) == {0, 20_000, 60_000}


def test_the_clients_of_grpc_count_what_was_answered() -> None:
    with serving(lambda message, context: message) as address:
        for found in (
            one_client(Called(address, METHOD, [b"x"]), 0.3),
            one_stream(Called(address, STREAM, [b"x"]), 0.3, 1),
            one_stream(Called(address, STREAM, [b"x"]), 0.3, 8),
        ):
            assert len(found.latency_us) == found.n_sent == found.n_in_window > 0
            assert found.per_second == found.n_sent / found.seconds


def test_nobody_there_is_told_with_the_address() -> None:
    for load in (lambda called: saturate(called, 1, 1, 0.1, soon()), lambda called: one_client(called, 0.1)):
        with pytest.raises(RouterUnavailable, match=r"127\.0\.0\.1:1\b"):
            load(Called("127.0.0.1:1", METHOD, [b"x"]))


def test_a_server_that_ends_under_load_is_told() -> None:
    asked = threading.Event()

    def answer(message: bytes, context: grpc.ServicerContext) -> bytes:
        asked.set()
        return message

    def stop_under_load() -> None:
        asked.wait(60)
        server.stop(0)

    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stopping = threading.Thread(target=stop_under_load)
    stopping.start()
    with pytest.raises(RouterUnavailable, match=r"ended|closed"):
        saturate(Called(f"127.0.0.1:{port}", METHOD, [b"x"]), 1, 1, 60.0, soon())
    stopping.join()


def test_percentiles_are_latencies_that_calls_had() -> None:
    assert Latency.of(np.arange(1000, 0, -1)) == Latency(500, 900, 990, 999)
    assert Latency.of([3.0]) == Latency(3, 3, 3, 3)
    assert Latency.of([1.0, 2.0, 3.0]) == Latency(2, 3, 3, 3)


def test_rounds_are_summed_up_by_their_medians() -> None:
    rounds = [Latency(1, 20, 300, 1), Latency(2, 10, 200, 1), Latency(9, 30, 100, 7)]
    assert Latency.median(rounds) == Latency(2, 20, 200, 1)


def test_a_target_is_met_at_its_limit() -> None:
    assert Target("p99", 1000, 1000.0).met
    assert not Target("p99", 1000, 1000.1).met
    assert Target("share", 0.5, 0.5, at_least=True).met
    assert not Target("share", 0.5, 0.49, at_least=True).met
