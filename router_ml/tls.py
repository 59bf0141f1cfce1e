"""The server's side of TLS: certificates from files that may change while it runs."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from router_ml.errors import InputError
from router_ml.file_stamp import file_stamp

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. They are read again when they change, at the next connection; open connections stay as they are."""

    cert: Path
    """The server's certificate, then those between it and its root."""
    key: Path
    """Its private key, without a passphrase."""
    client_ca: Path | None = None
    """Given: mutual TLS; a client must show a certificate that one of these authorities signed."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are given."""
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """What a gRPC server listens with; InputError, which names the file, when one is missing or wrong."""
    follower = _Follower(files)
    return grpc.dynamic_ssl_server_credentials(
        follower.first, follower.fetch, require_client_authentication=files.client_ca is not None
    )


class _Follower:
    """Hands gRPC, which asks at every new connection, what the files hold if it is new and right.

    Of files replaced one after the other, a certificate may for a moment stand beside the wrong key: what was in
    force before stays until they fit.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp = file_stamp(files.paths)
        self.first = _read(files)

    def fetch(self) -> Any:
        now = file_stamp(self._files.paths)
        if now == self._stamp:
            return None
        self._stamp = now
        try:
            fresh = _read(self._files)
        except InputError as error:
            _log.error("the certificate before it stays in force: %s", error)
            return None
        _log.info("%s: a new certificate is in force", self._files.cert)
        return fresh


def _read(files: TlsFiles) -> Any:
    cert, key = _bytes(files.cert, "certificate"), _bytes(files.key, "private key")
    roots = None if files.client_ca is None else _bytes(files.client_ca, "certificate authority")
    # gRPC takes anything and then fails every connection, with no reason but on stderr: OpenSSL judges first.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise InputError(
            f"{files.cert} and {files.key} must be PEM files of a certificate and its own private key without "
            f"passphrase ({getattr(error, 'reason', None) or error})"
        ) from None
    if roots is not None:
        try:
            context.load_verify_locations(cadata=roots.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise InputError(
                f"{files.client_ca} must be a PEM file of certificates ({getattr(error, 'reason', None) or error})"
            ) from None
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=roots)


def _bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a {what} ({error.strerror})") from None
