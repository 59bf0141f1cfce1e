"""Where a client connects and as whom: addresses, TLS, bearer token, options of the channel."""

from __future__ import annotations

import ipaddress
import logging
import re
import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc

from router_ml.address import split_address
from router_ml.errors import InputError
from router_ml.file_stamp import file_stamp

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # the client trusts its server; a batch of answers may be long
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),  # so that in a rolling restart one server is back before the next one goes
    ("grpc.min_reconnect_backoff_ms", 1000),  # how long a host that is silent may take to connect; else 20 s
    ("grpc.client_idle_timeout_ms", 2**31 - 1),  # else the first call after half an hour would have to connect
    # A connection whose other end has vanished is replaced in seconds, rather than in a quarter of an hour.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),  # of pings that gRPC sends for other reasons; keepalive waits for them
    ("grpc.use_local_subchannel_pool", 1),  # an address given twice gets two connections
)

_TOKEN = re.compile(r"[!-~]+")

_LOG = logging.getLogger(__name__)


def check_addresses(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """One address or several as a tuple; InputError unless each is HOST:PORT."""
    listed = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    if not listed:
        raise InputError("`addresses` must hold at least one HOST:PORT; found none")
    for address in listed:
        parts = split_address(address) if isinstance(address, str) else None
        if parts is None or parts[1] == 0:
            raise InputError(f"`addresses` must be HOST:PORT, e.g. 127.0.0.1:50051, or several; found {address!r}")
    return listed


def is_loopback(address: str) -> bool:
    """Whether what is sent there stays on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def channel_credentials(
    ca: str | Path | None, cert: str | Path | None, key: str | Path | None
) -> grpc.ChannelCredentials | None:
    """TLS that trusts the authorities in the PEM file `ca`, and shows `cert` with its `key`; None without `ca`.

    InputError when a file cannot be read or is no PEM file, or one is given that needs another.
    """
    if (cert is None) != (key is None):
        raise InputError("`tls_cert` and `tls_key` must be given together: a certificate and its key")
    if ca is None:
        if cert is not None:
            raise InputError("`tls_cert` needs `tls_ca`, the authorities that the server's certificate is checked by")
        return None
    roots = _read("tls_ca", ca)
    # gRPC takes anything and then fails every call without a reason: OpenSSL judges first.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise InputError(f"`tls_ca` must be a PEM file of certificates; {ca} is none ({error.reason})") from None
    if cert is None or key is None:
        return grpc.ssl_channel_credentials(roots)
    own_key, own_cert = _read("tls_key", key), _read("tls_cert", cert)
    try:
        context.load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        raise InputError(
            f"`tls_cert` and `tls_key` must be PEM files of a certificate and of its key without a passphrase; "
            f"{cert} and {key} are not ({error.reason})"
        ) from None
    return grpc.ssl_channel_credentials(roots, own_key, own_cert)


class Token:
    """A bearer token as metadata; one from a file is read again when the file changes."""

    def __init__(self, token: str | None, file: str | Path | None) -> None:
        """InputError when both are given, the file cannot be read, or the token cannot be sent."""
        if token is not None and file is not None:
            raise InputError("`token` and `token_file` exclude each other; give one")
        self._file = None if file is None else Path(file)
        self._seen = None if self._file is None else file_stamp((self._file,))
        if file is not None:
            token = _read("token_file", file).decode(errors="replace")
        self._metadata = () if token is None else _bearer("token" if file is None else "token_file", token)

    def __bool__(self) -> bool:
        return bool(self._metadata)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call carries. A file that cannot be read leaves the last token in force and is logged."""
        if self._file is not None:
            now = file_stamp((self._file,))
            if now != self._seen:
                self._seen = now
                self._read_again(self._file)
        return self._metadata

    def _read_again(self, file: str | Path) -> None:
        try:
            self._metadata = _bearer("token_file", _read("token_file", file).decode(errors="replace"))
        except InputError as error:
            _LOG.error("%s; the token read before stays in use", error)


def _bearer(field: str, token: str) -> tuple[tuple[str, str], ...]:
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        # Not quoted: even a broken token may be most of a good one.
        raise InputError(f"`{field}` must be one word of printable ASCII characters; found {len(token)} characters")
    return (("authorization", f"Bearer {token}"),)


def _read(field: str, file: str | Path) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"`{field}` cannot be read: {file} ({error.strerror})") from None
