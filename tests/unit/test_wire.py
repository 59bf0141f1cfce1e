"""Serialized messages of many parts are read to the end only where they are what they should be."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml import wire
from router_ml.server import Server, ServerSettings, serve
from router_ml.types import Description
from router_ml.v1 import router_pb2 as pb
from router_ml.wire import bounded_reader

read = bounded_reader(pb.RouteBatchRequest, 3)


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short messages are looked into like long ones."""
    monkeypatch.setattr(wire, "_SMALL_BYTES", 0)


def batch(n: int) -> bytes:
    return pb.RouteBatchRequest(requests=[pb.RouteRequest(text=f"{i}" * i) for i in range(n)]).SerializeToString()


@pytest.mark.parametrize(("sent", "found"), [(0, 0), (1, 1), (3, 3), (4, 4), (5, 4), (1000, 4)])
def test_of_too_many_parts_one_more_than_may_be_is_read(sent: int, found: int) -> None:
    requests = read(batch(sent)).requests
    assert [request.text for request in requests] == [f"{i}" * i for i in range(found)]


UNKNOWN = {
    "varint": b"\x10\x96\x01",
    "eight bytes": b"\x19" + b"\x0a" * 8,
    "bytes": b"\x22\x04\x0a\x00\x0a\x00",
    "four bytes": b"\x2d" + b"\x0a" * 4,
    "a far number": b"\xfa\xff\xff\xff\x0f\x01a",
    "a group": b"\x33\x34",
}


@pytest.mark.parametrize("field", UNKNOWN.values(), ids=UNKNOWN)
def test_fields_of_newer_clients_are_passed_over(field: bytes) -> None:
    assert len(read(field + batch(2) + field + batch(1)).requests) == 3
    assert len(read(field + batch(2) + field + batch(4)).requests) == 4


@pytest.mark.parametrize("field", [b"\x10\x01", b"\x13\x14", b"\x8a\x00\x00"])
def test_a_flood_of_unknown_fields_is_no_message(field: bytes) -> None:
    with pytest.raises(ValueError, match="more than 4 unknown fields"):
        read(field * 1000 + batch(1))


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.lists(st.sampled_from([batch(1), batch(2), *UNKNOWN.values()]), max_size=4), st.binary(max_size=12))
def test_what_is_broken_stays_broken(good: list[bytes], end: bytes) -> None:
    """What has no more parts than may be is read as protobuf reads it, or refused by it."""
    data = b"".join(good) + end
    try:
        expected = pb.RouteBatchRequest.FromString(data)
    except DecodeError:
        expected = None
    try:
        found = read(data)
    except (DecodeError, ValueError):
        found = None
    if expected is not None and len(expected.requests) <= 3 and found is not None:
        assert found == expected
    if expected is None and found is not None:
        assert len(found.requests) == 4, "cut before the fault"


@pytest.mark.parametrize("data", [b"\xff" * 4_000_000, b"\x0a" + b"\xff" * 4_000_000])
def test_numbers_without_end_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        read(data)


def test_two_million_empty_parts_cost_next_to_nothing() -> None:
    requests = bounded_reader(pb.RouteBatchRequest, 1024)(b"\x0a\x00" * 2_000_000).requests
    assert len(requests) == 1025


# -- over gRPC ------------------------------------------------------------------------------------

SERVICE = "/router_ml.v1.RouterService/"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class AnyRouter:
    def describe(self) -> Description:
        return Description("7", "ab", 1, "now", None, None, "static", 4, (), (), None, (), (), 0.95, 8192)

    decide = decide_batch = None  # never reached


@pytest.fixture
def server() -> Iterator[Server]:
    server = serve(AnyRouter(), settings=ServerSettings("127.0.0.1:0"))  # type: ignore[arg-type]
    server.start()
    yield server
    server.stop(0)


@pytest.mark.parametrize(
    "method",
    [
        *(SERVICE + name for name in ("Route", "RouteBatch", "RouteStream", "ReportOutcomes", "Describe")),
        HEALTH + "Check",
        HEALTH + "Watch",
        REFLECTION,
    ],
)
def test_bytes_that_are_no_message_are_the_client_s_fault_and_their_call_ends(server: Server, method: str) -> None:
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(method)(iter([b"\xff\xff"]), timeout=60))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no message of this call" in caught.value.details()
        answer = channel.unary_unary(SERVICE + "Describe")(b"", timeout=60)
        assert pb.DescribeResponse.FromString(answer).version == "7"
    calls = server._grpc._state.rpc_states  # type: ignore[attr-defined]  # no other way to see what gRPC keeps
    limit = time.monotonic() + 60
    while calls:
        assert time.monotonic() < limit, "gRPC keeps the call"
        time.sleep(0.01)


def test_a_batch_of_too_many_is_refused_by_its_number_whatever_it_weighs(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(SERVICE + "RouteBatch")(b"\x0a\x00" * 1_000_000, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "`requests` must hold at most 1024 items" in caught.value.details()
