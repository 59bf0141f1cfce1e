"""Unary gRPC calls on one HTTP/2 connection, at a tenth of the processor time that gRPC's own client takes.

gRPC's client in Python needs as much time for a call as the server does, so it could not offer twice what
the server can take from the cores that are left. This one knows only what a load generator needs (RFC 9113):
requests of one frame, answers that are counted but not read. A call that fails has no message, by the rules
of gRPC, so an answer is good where a DATA frame came before the end of its stream.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

from router_ml.errors import RouterUnavailable

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 3, 4
_FRAME_BYTES = 16_384
_WINDOW = 65_535
_LARGEST_WINDOW = 2**31 - 1
_HEAD = 9

Finished = tuple[int, bool]
"""Stream, and whether it was answered well."""


class Connection:
    """One client. Not for several threads; `fileno` makes it fit for `select`."""

    def __init__(self, address: str, path: str, timeout_s: float = 10.0) -> None:
        """Connects; RouterUnavailable when nothing answers at HOST:PORT. `path` is /package.Service/Method."""
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s)
        except (OSError, ValueError) as error:
            raise RouterUnavailable(f"no server could be reached at {address} ({error})") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._received = bytearray()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._headers = _first_headers(path, address)
        self._next_stream = 1
        self._answered: dict[int, bool] = {}
        """Streams that are open -> whether a message came."""
        self._max_streams = _LARGEST_WINDOW
        self._send_window = _WINDOW
        self._taken = 0
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        self._unsent = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings))
        self._unsent += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - _WINDOW))
        self.flush()

    def fileno(self) -> int:
        """Of the socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """Drop the connection and what is in flight on it."""
        self._socket.close()

    @property
    def blocked(self) -> bool:
        """Whether bytes wait until the socket takes more."""
        return bool(self._unsent)

    def call(self, message: bytes) -> int:
        """Begin a call with a serialized message; its stream, which `receive` will name. Waits for nothing."""
        stream = self._next_stream
        self._next_stream += 2
        self._waiting.append((stream, b"\0" + struct.pack(">I", len(message)) + message))
        self.flush()
        return stream

    def flush(self) -> None:
        """Send what the server and the socket take."""
        while self._waiting and len(self._answered) < self._max_streams:
            stream, body = self._waiting[0]
            if len(body) > self._send_window:
                break
            self._waiting.popleft()
            self._answered[stream] = False
            self._send_window -= len(body)
            self._unsent += _frame(_HEADERS, _END_HEADERS, stream, self._headers)
            self._headers = _LATER_HEADERS
            for start in range(0, len(body), _FRAME_BYTES):
                part = body[start : start + _FRAME_BYTES]
                self._unsent += _frame(_DATA, _END_STREAM if start + len(part) == len(body) else 0, stream, part)
        if self._unsent:
            try:
                del self._unsent[: self._socket.send(self._unsent)]
            except BlockingIOError:
                pass
            except OSError as error:
                raise RouterUnavailable(f"the server closed the connection ({error})") from None

    def receive(self) -> list[Finished]:
        """The calls that ended, from what has arrived; RouterUnavailable when the connection ended."""
        try:
            data = self._socket.recv(262_144)
        except BlockingIOError:
            return []
        except OSError as error:
            raise RouterUnavailable(f"the server closed the connection ({error})") from None
        if not data:
            raise RouterUnavailable("the server closed the connection")
        received = self._received
        received += data
        finished: list[Finished] = []
        at, end = 0, len(received)
        while end - at >= _HEAD:
            after = at + _HEAD + int.from_bytes(received[at : at + 3], "big")
            if after > end:
                break
            self._take(received[at + 3], received[at + 4], int.from_bytes(received[at + 5 : at + 9], "big"),
                       received[at + _HEAD : after], finished)  # fmt: skip
            at = after
        del received[:at]
        self.flush()
        return finished

    def _take(self, kind: int, flags: int, stream: int, payload: bytearray, finished: list[Finished]) -> None:
        if kind == _DATA:
            if payload:
                self._answered[stream] = True
            self._taken += len(payload)
            if self._taken > _LARGEST_WINDOW // 2:
                self._unsent += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken))
                self._taken = 0
        elif stream == 0:
            self._control(kind, flags, payload)
        elif kind == _RST_STREAM and stream in self._answered:
            self._answered.pop(stream)
            finished.append((stream, False))
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            finished.append((stream, self._answered.pop(stream)))

    def _control(self, kind: int, flags: int, payload: bytearray) -> None:
        """What concerns the connection."""
        if kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == _MAX_CONCURRENT_STREAMS:
                    self._max_streams = value
            self._unsent += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._unsent += _frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE:
            self._send_window += int.from_bytes(payload, "big")
        elif kind == _GOAWAY:
            raise RouterUnavailable(f"the server ended the connection ({bytes(payload[8:]).decode(errors='replace')})")


def _frame(kind: int, flags: int, stream: int, payload: bytes | bytearray) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _first_headers(path: str, authority: str) -> bytes:
    """Headers of a connection's first call (RFC 7541): the server is to remember those that are not standard."""
    post, http = b"\x83", b"\x86"
    return b"".join((
        post, http,
        b"\x44", _text(path), b"\x41", _text(authority), b"\x5f", _text("application/grpc"),
        b"\x40", _text("te"), _text("trailers"), b"\x40", _text("grpc-timeout"), _text("10S"),
    ))  # fmt: skip


_LATER_HEADERS = bytes((0x83, 0x86, *(0x80 | index for index in (66, 65, 64, 63, 62))))
"""The same by the server's memory, newest first, as gRPC's clients send them."""


def _text(value: str) -> bytes:
    raw = value.encode("ascii")
    if len(raw) >= 127:
        raise ValueError(f"headers of 127 characters or more are not supported, found {value!r}")
    return bytes((len(raw),)) + raw
