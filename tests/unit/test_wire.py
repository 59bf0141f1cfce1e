"""Serialized messages of many parts are read to the end only where they are what they should be."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml import wire
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
}


@pytest.mark.parametrize("field", UNKNOWN.values(), ids=UNKNOWN)
def test_fields_of_newer_clients_are_passed_over(field: bytes) -> None:
    assert len(read(field + batch(2) + field + batch(1)).requests) == 3
    assert len(read(field + batch(2) + field + batch(4)).requests) == 4


def test_a_flood_of_unknown_fields_is_no_message() -> None:
    with pytest.raises(ValueError, match="more than 4 unknown fields"):
        read(b"\x10\x01" * 1000 + batch(1))


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


@pytest.mark.parametrize("data", [b"\xff" * 100_000, b"\x0a" + b"\xff" * 100_000, b"\x10" + b"\x80" * 100_000])
def test_numbers_without_end_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        read(data)


def test_two_million_empty_parts_cost_next_to_nothing() -> None:
    requests = bounded_reader(pb.RouteBatchRequest, 1024)(b"\x0a\x00" * 2_000_000).requests
    assert len(requests) == 1025
