"""Encryption of the server: certificates made here, real handshakes, files swapped while it runs."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from router_ml.cli import main
from router_ml.errors import InputError
from router_ml.server import Server, ServerSettings, serve
from router_ml.tls import TlsFiles, server_credentials
from router_ml.types import Description
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc


class AnyRouter:
    def describe(self) -> Description:
        return Description("7", "ab", 1, "now", None, None, "static", 4, (), (), None, (), (), 0.95, 8192)

    decide = decide_batch = None


class Authority:
    """Signs certificates of 127.0.0.1."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._certificate(self._name, self._key, ca=True)
        self.pem = own.public_bytes(serialization.Encoding.PEM)

    def issue(self, passphrase: bytes | None = None) -> tuple[bytes, bytes]:
        """A certificate and its private key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "router")])
        secret = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        return (
            self._certificate(name, key, ca=False).public_bytes(serialization.Encoding.PEM),
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret),
        )

    def _certificate(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


@pytest.fixture(scope="module")
def old() -> Authority:
    return Authority("old")


@pytest.fixture(scope="module")
def new() -> Authority:
    return Authority("new")


@pytest.fixture
def files(tmp_path: Path, old: Authority) -> TlsFiles:
    return write(TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem"), old)


def write(files: TlsFiles, authority: Authority) -> TlsFiles:
    for path, content in zip(files.paths, authority.issue(), strict=False):
        replace(path, content)
    return files


def replace(path: Path, content: bytes) -> None:
    path.with_suffix(".next").write_bytes(content)
    os.replace(path.with_suffix(".next"), path)


@contextmanager
def serving(tls: TlsFiles, **settings: Any) -> Iterator[Server]:
    server = serve(AnyRouter(), settings=ServerSettings("127.0.0.1:0", tls=tls, **settings))  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


@contextmanager
def trusting(server: Server, root: Authority, own: tuple[bytes, bytes] | None = None) -> Iterator[grpc.Channel]:
    """A channel with a connection of its own, not one that gRPC shares between channels of like options."""
    cert, key = own or (None, None)
    credentials = grpc.ssl_channel_credentials(root.pem, key, cert)
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.secure_channel(server.address, credentials, options) as channel:
        yield channel


def version(channel: grpc.Channel) -> str:
    stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
    found: str = stub.Describe(pb.DescribeRequest(), timeout=60).version
    return found


def reaches(server: Server, root: Authority, own: tuple[bytes, bytes] | None = None) -> bool:
    """Whether a new connection succeeds."""
    with trusting(server, root, own) as channel:
        try:
            return version(channel) == "7"
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False


def test_a_client_that_trusts_the_authority_is_served_and_others_are_not(
    files: TlsFiles, old: Authority, new: Authority
) -> None:
    with serving(files) as server:
        assert reaches(server, old)
        assert not reaches(server, new)
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
            version(channel)


def test_a_new_certificate_is_taken_without_a_restart_and_open_connections_stay(
    files: TlsFiles, old: Authority, new: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(files) as server, trusting(server, old) as before:
        assert version(before) == "7"
        with caplog.at_level(logging.INFO):
            write(files, new)
            assert reaches(server, new)
        assert not reaches(server, old)
        assert version(before) == "7"
        assert f"{files.cert}: a new certificate is in force" in caplog.messages


def test_while_new_files_do_not_fit_the_certificate_before_them_stays(
    files: TlsFiles, old: Authority, new: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = new.issue()
    with serving(files) as server:
        replace(files.cert, cert)  # its key comes later
        assert reaches(server, old)
        assert reaches(server, old)
        (message,) = caplog.messages
        assert message.startswith(f"the certificate before it stays in force: {files.cert} and {files.key} must be PEM")
        replace(files.key, key)
        assert reaches(server, new)
        files.key.unlink()
        assert reaches(server, new)


def test_mutual_tls_asks_clients_for_a_certificate(files: TlsFiles, old: Authority, new: Authority) -> None:
    authority = files.cert.with_name("clients.pem")
    authority.write_bytes(new.pem)
    with serving(TlsFiles(files.cert, files.key, authority)) as server:
        assert reaches(server, old, new.issue())
        assert not reaches(server, old)
        assert not reaches(server, old, old.issue())


def test_the_authority_of_clients_is_replaced_without_a_restart_too(
    files: TlsFiles, old: Authority, new: Authority
) -> None:
    authority = files.cert.with_name("clients.pem")
    authority.write_bytes(new.pem)
    with serving(TlsFiles(files.cert, files.key, authority)) as server:
        replace(authority, old.pem)
        assert reaches(server, old, old.issue())
        assert not reaches(server, old, new.issue())


def test_tokens_go_with_encryption_on_every_interface(files: TlsFiles, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"chat route {'0' * 64}\n")
    settings = ServerSettings("0.0.0.0:0", tls=files, tokens=tmp_path / "tokens")
    serve(AnyRouter(), settings=settings).stop(0)  # type: ignore[arg-type]


def test_wrong_files_are_refused_at_start_and_named(files: TlsFiles, old: Authority, new: Authority) -> None:
    folder = files.cert.parent
    (folder / "other.key").write_bytes(new.issue()[1])
    (folder / "locked.pem").write_bytes(b"".join(old.issue(passphrase=b"secret")))
    (folder / "text").write_text("no certificate")
    for wrong, message in (
        (TlsFiles(folder / "none", files.key), "none: cannot be read as a certificate (No such file"),
        (TlsFiles(files.cert, folder / "none"), "none: cannot be read as a private key (No such file"),
        (TlsFiles(files.cert, files.key, folder / "none"), "none: cannot be read as a certificate authority"),
        (TlsFiles(folder / "text", files.key), "text and"),
        (TlsFiles(files.cert, folder / "other.key"), "other.key must be PEM files of a certificate and its own"),
        (TlsFiles(folder / "locked.pem", folder / "locked.pem"), "without passphrase"),
        (TlsFiles(files.cert, files.key, folder / "text"), "text must be a PEM file of certificates"),
    ):
        with pytest.raises(InputError) as caught:
            server_credentials(wrong)
        assert message in str(caught.value)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_serves_encrypted_to_clients_with_certificate_and_token(
    files: TlsFiles, old: Authority, new: Authority, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "clients.pem").write_bytes(new.pem)
    (tmp_path / "tokens").write_text(f"chat route {hashlib.sha256(b'good').hexdigest()}\n")
    options = ["--tls-cert", files.cert, "--tls-key", files.key, "--tls-client-ca", tmp_path / "clients.pem"]
    argv = [sys.executable, "-m", "router_ml.cli", "serve", "--model", tiny_bundle, "--listen", "127.0.0.1:0"]
    argv += [*options, "--tokens", tmp_path / "tokens"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r" on (127\.0\.0\.1:\d+); ", process.stdout.readline())
            assert found
            cert, key = new.issue()
            credentials = grpc.ssl_channel_credentials(old.pem, key, cert)
            with grpc.secure_channel(found[1], credentials) as channel:
                stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
                request = pb.RouteRequest(text="bab deb")
                assert stub.Route(request, metadata=(("authorization", "Bearer good"),), timeout=60).offer
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Route(request, metadata=(("authorization", "Bearer bad"),), timeout=60)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--listen", "0.0.0.0:0"], "0.0.0.0 can be reached from other machines"),
        (["--tls-cert", "cert.pem"], "encryption needs both --tls-cert and --tls-key"),
        (["--tls-client-ca", "ca.pem"], "encryption needs both --tls-cert and --tls-key"),
        (["--tls-cert", "cert.pem", "--tls-key", "key.pem"], "cert.pem: cannot be read as a certificate"),
        (["--tokens", "tokens"], "tokens: cannot be read as a file of tokens"),
    ],
)
def test_the_command_names_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path,
    options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--model", str(tiny_bundle), "--listen", "127.0.0.1:0", *options]) == 2
    assert message in capsys.readouterr().err
