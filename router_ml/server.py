"""The server process: socket, threads, health, reflection, graceful stop."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from router_ml.access import TokenCheck, check_exposure
from router_ml.address import split_address
from router_ml.admission import MeteredPool
from router_ml.convert import MAX_MESSAGE_BYTES
from router_ml.errors import InputError
from router_ml.meter import Meter
from router_ml.service import SERVICE_NAME, Decider, Record, RouterServicer
from router_ml.tls import TlsFiles, server_credentials
from router_ml.tracing import Tracer
from router_ml.v1 import router_pb2_grpc
from router_ml.wire import SafeReader

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}

_METADATA_BYTES = 8192
"""Most metadata of a call, as gRPC counts them: names, values and 32 bytes for each."""

_LOOK_SECONDS = 0.2
"""A signal that arrives just as the main thread begins to sleep, or in another thread, does not wake it: it looks."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server listens."""

    listen: str = "127.0.0.1:50051"
    """HOST:PORT; port 0 takes any free one. Beyond this machine it takes `tls`, or `insecure`."""
    threads: int = 128
    """Unary calls taken up at once, of which most wait, for their message or for the interpreter; more than one
    connection may have, so that a client that begins calls and never sends their messages leaves some to the others."""
    max_waiting: int = 64
    """Calls that may wait; one more is refused with RESOURCE_EXHAUSTED at once, rather than answered late."""
    max_streams: int = 16
    """RouteStream calls served at once, each with a thread of its own; further ones are refused."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Longer request messages are refused."""
    max_calls_per_connection: int = 100
    """Calls in flight on one connection; the client's side holds back what is more."""
    grace_s: float = 5.0
    """Seconds that calls in flight have to finish once the server is told to stop."""
    share_port: bool = False
    """Let other processes of this user listen on the same port; the kernel spreads connections over them."""
    tls: TlsFiles | None = None
    """None: no encryption."""
    tokens: Path | None = None
    """File of the bearer tokens that calls must show, see `router_ml.access`; None: anyone who can connect may call."""
    insecure: bool = False
    """Listen beyond this machine without encryption; never with tokens, which others could read."""


class Server:
    """A router behind a socket. It owns its threads and socket, not the router or the journal.

    All methods may be called from any thread, except `run`, which needs the main one.
    """

    def __init__(self, grpc_server: grpc.Server, healths: health.HealthServicer, settings: ServerSettings, port: int):
        self._grpc = grpc_server
        self._health = healths
        self._settings = settings
        self._port = port
        self._refused: str | None = None
        self._serving = False

    @property
    def port(self) -> int:
        """The port it listens on, the real one where any free one was asked for."""
        return self._port

    @property
    def address(self) -> str:
        """HOST:PORT for clients on this machine."""
        host = self._settings.listen.rpartition(":")[0]
        return f"{_LOOPBACK.get(host, host)}:{self._port}"

    @property
    def serving(self) -> bool:
        """Whether it answers calls: started, and not told to stop."""
        return self._serving

    def start(self) -> None:
        """Begin to serve; returns at once."""
        self._grpc.start()
        for name in ("", SERVICE_NAME):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._serving = True
        _log.info("serving on %s", self.address, extra={"address": self.address})

    def tell_refused(self, name: str | None) -> None:
        """Let health checks of `version:NAME` say NOT_SERVING for a version that was refused; None: it is over."""
        if self._refused is not None:
            self._health.set(f"version:{self._refused}", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        self._refused = name
        if name is not None:
            self._health.set(f"version:{name}", health_pb2.HealthCheckResponse.NOT_SERVING)

    def stop(self, grace_s: float | None = None) -> None:
        """Report NOT_SERVING, take no new calls, let those in flight finish within the grace; returns when done.

        `grace_s` defaults to that of the settings. May be called again.
        """
        self._serving = False
        self._health.enter_graceful_shutdown()
        self._grpc.stop(self._settings.grace_s if grace_s is None else grace_s).wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until stopped, or for `timeout_s` seconds; whether it stopped."""
        return not self._grpc.wait_for_termination(timeout_s)

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then stop; a second signal acts as it would without a server.

        `ready` is called once requests are answered and the first signal stops in order.
        """
        told = threading.Event()

        def tell(number: int, frame: FrameType | None) -> None:
            told.set()

        before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.start()
            if ready:
                ready()
            while not told.wait(_LOOK_SECONDS):
                pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.stop()


def serve(
    router: Decider,
    *,
    settings: ServerSettings | None = None,
    journal: Record | None = None,
    meter: Meter | None = None,
    tracer: Tracer | None = None,
) -> Server:
    """A server bound to its port, not yet started: call `start`, or `run` to serve until told to stop.

    What it does is counted by `meter` and traced by `tracer`, where given; neither is closed with it.
    InputError when the address is wrong or cannot be bound, e.g. because its port is in use.
    """
    settings = settings or ServerSettings()
    _check_settings(settings)
    healths = health.HealthServicer()
    name = "router-ml-rpc"
    n_threads = settings.threads + settings.max_streams
    metered = None if meter is None else MeteredPool(n_threads, name, SERVICE_NAME, meter)
    server = grpc.server(
        metered or ThreadPoolExecutor(n_threads, name),
        maximum_concurrent_rpcs=n_threads + settings.max_waiting,
        options=[
            # Unless asked for: a second server on the port would silently take half the calls.
            ("grpc.so_reuseport", int(settings.share_port)),
            ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            # The same number twice: in between, gRPC would refuse by chance.
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
            # Nothing compressed is taken: grpcio 1.82 unpacks a few kB to any size before it looks at the limit.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),  # clients ping every 10 s of a silent stream
        ],
        interceptors=[
            *([metered.interceptor] if metered else ()),
            *([TokenCheck(settings.tokens)] if settings.tokens else ()),
            SafeReader(),
        ],
    )
    servicer = RouterServicer(router, journal, max_streams=settings.max_streams, meter=meter, tracer=tracer)
    router_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    healths.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    return Server(server, healths, settings, _bind(server, settings))


def _check_settings(settings: ServerSettings) -> None:
    for name in ("threads", "max_waiting", "max_streams", "max_message_bytes", "max_calls_per_connection"):
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"`{name}` must be a whole number above 0; found {value!r}")
    if not settings.grace_s >= 0:
        raise InputError(f"`grace_s` must be 0 or more seconds; found {settings.grace_s!r}")


def reserve_port(settings: ServerSettings) -> tuple[socket.socket, str]:
    """Hold an address for servers that share its port: the socket to keep open, and the address with the real port.

    InputError when the address is wrong or cannot be bound, or may not be listened on like that.
    """
    host, port = _parsed(settings.listen)
    _probe(host.strip("[]"), port, settings.listen)
    _check_exposure(host, settings)
    family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    held = socket.socket(family, kind)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(address)
    return held, f"{host}:{held.getsockname()[1]}"


def _bind(server: grpc.Server, settings: ServerSettings) -> int:
    host, port = _parsed(settings.listen)
    if not settings.share_port:
        _probe(host.strip("[]"), port, settings.listen)
    _check_exposure(host, settings)
    try:
        if settings.tls:
            return server.add_secure_port(settings.listen, server_credentials(settings.tls))
        return server.add_insecure_port(settings.listen)
    except RuntimeError as error:
        raise InputError(f"cannot listen on {settings.listen} ({error})") from None


def _parsed(listen: str) -> tuple[str, int]:
    address = split_address(listen)
    if address is None:
        raise InputError(
            f"`listen` must be HOST:PORT with a port from 0 to 65535, e.g. 127.0.0.1:50051; found {listen!r}"
        )
    return address


def _check_exposure(host: str, settings: ServerSettings) -> None:
    check_exposure(
        host.strip("[]"),
        encrypted=settings.tls is not None,
        tokens=settings.tokens is not None,
        insecure=settings.insecure,
    )


def _probe(host: str, port: int, listen: str) -> None:
    """Bind once with Python's socket: gRPC hides the reason of a failure and prints to stderr."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = f"port {port} is in use: stop what uses it, or choose another one (port 0 takes any free one)"
        else:
            advice = f"{error.strerror}; choose a name or address of this machine and a port that is open to you"
        raise InputError(f"cannot listen on {listen}: {advice}") from None
