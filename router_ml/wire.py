"""Serialized requests, read without being harmed by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from router_ml.convert import MAX_ITEMS
from router_ml.v1 import router_pb2 as pb

_Message = TypeVar("_Message", bound=Message)
_Reader = Callable[[bytes], Any]

_SMALL_BYTES = 65_536
"""Not looked into: even all of empty parts, they take a few megabytes."""
_PART = 0x0A
"""How a part begins in the messages of many parts: field 1, with its length."""


class SafeReader(grpc.ServerInterceptor):
    """Answers bytes that are no message with INVALID_ARGUMENT, and reads messages of many parts in bounds.

    gRPC itself keeps a call whose message cannot be read for ever: 16 kB are lost with each (grpcio 1.82 to 1.85).
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The handler of the call, made safe; None when there is none."""
        handler = self._handlers.get(details.method)
        if handler is None:
            handler = continuation(details)
            if handler is not None:
                handler = self._handlers[details.method] = _safe(handler, _BOUNDED.get(details.method))
        return handler


class _Broken:
    """Stands for bytes that are no message."""


_BROKEN = _Broken()


def _safe(handler: Any, reader: _Reader | None) -> Any:
    reader = reader or handler.request_deserializer
    if reader is None:  # a handler that takes bytes as they come
        return handler
    serializer = handler.response_serializer

    def read(data: bytes) -> Any:
        try:
            return reader(data)
        except Exception:  # whatever it is, gRPC would keep the call
            return _BROKEN

    if handler.request_streaming:

        def streamed(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return handler.stream_stream(_checked(messages, context), context)

        return grpc.stream_stream_rpc_method_handler(streamed, read, serializer)

    behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary

    def single(message: Any, context: grpc.ServicerContext) -> Any:
        if message is _BROKEN:
            _refuse(context)
        return behavior(message, context)

    kind = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return kind(single, read, serializer)


def _checked(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
    for message in messages:
        if message is _BROKEN:
            _refuse(context)
        yield message


def _refuse(context: grpc.ServicerContext) -> None:
    context.abort(
        grpc.StatusCode.INVALID_ARGUMENT,
        "the bytes sent are no message of this call: build the client from the server's own .proto file",
    )


class _BrokenError(Exception):
    """The bytes are no message; protobuf, which reads them next, says so."""


def bounded_reader(kind: type[_Message], most: int) -> Callable[[bytes], _Message]:
    """Reads messages whose only field, number 1, is repeated.

    Protobuf makes an object of each part before anyone can count them: 4 MiB of two million empty ones take 450 MB.
    Of more than `most` parts it reads one more, so that a check of their number sees that they are too many.
    The reader raises what protobuf does on bytes that are no message, ValueError on as many unknown fields.
    """

    def read(data: bytes) -> _Message:
        if len(data) > _SMALL_BYTES:
            data = data[: _end(data, most + 1)]
        return kind.FromString(data)

    return read


def _end(data: bytes, most: int) -> int:
    """Where the part of number `most` ends; the length of the data where there are fewer or they are broken."""
    at = parts = others = 0
    try:
        while at < len(data) and parts < most:
            if data[at] == _PART:
                parts += 1
                size = data[at + 1]
                at += 2
                if size > 127:
                    size, at = _varint(data, at - 1)
                at += size
                continue
            others += 1
            if others > most:
                raise ValueError(f"a message of more than {most} unknown fields")
            tag, at = _varint(data, at)
            at = _skip(data, at, tag & 7)
    except (_BrokenError, IndexError):
        return len(data)
    return at


def _skip(data: bytes, at: int, wire_type: int) -> int:
    match wire_type:
        case 0:
            return _varint(data, at)[1]
        case 1:
            return at + 8
        case 2:
            size, at = _varint(data, at)
            return at + size
        case 3 | 4:  # a group begins or ends: what is in it is looked at like what is outside
            return at
        case 5:
            return at + 4
    raise _BrokenError


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        byte = data[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise _BrokenError


_BOUNDED: dict[str, _Reader] = {
    "/router_ml.v1.RouterService/RouteBatch": bounded_reader(pb.RouteBatchRequest, MAX_ITEMS),
    "/router_ml.v1.RouterService/ReportOutcomes": bounded_reader(pb.ReportOutcomesRequest, MAX_ITEMS),
}
