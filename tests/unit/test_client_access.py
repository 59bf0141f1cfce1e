"""Encryption and tokens on the client's side: certificates made here, real handshakes, files changed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from router_ml.aio_client import AsyncRouterClient
from router_ml.client import RouterClient
from router_ml.errors import InputError, RouterUnavailable
from router_ml.types import Request
from router_ml.v1 import router_pb2 as pb

NOWHERE = "127.0.0.1:1"
FAR = "router.internal:50051"


def described_by(*addresses, **options):
    with RouterClient(list(addresses), **{"bulk_timeout_s": 20.0} | options) as client:
        return client.describe().version


def described_by_asyncio(*addresses, **options):
    async def describe():
        async with AsyncRouterClient(list(addresses), **{"bulk_timeout_s": 20.0} | options) as client:
            return (await client.describe()).version

    return asyncio.run(describe())


@pytest.fixture(params=[described_by, described_by_asyncio], ids=["sync", "asyncio"])
def describe(request):
    return request.param


@contextlib.contextmanager
def telling_tokens(credentials=None):
    """The address of a server whose version is what stood in the call's `authorization`."""

    def call(message, context):
        told = dict(context.invocation_metadata()).get("authorization", "none")
        return pb.DescribeResponse(version=told).SerializeToString()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(call)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    at = "127.0.0.1:0"
    port = server.add_insecure_port(at) if credentials is None else server.add_secure_port(at, credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


class Authority:
    """Signs certificates of 127.0.0.1, and writes them as PEM files."""

    def __init__(self, folder):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._folder = folder
        folder.mkdir()
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self._certificate(self._key, ca=True))

    def issue(self, name):
        """Files of a certificate and of its private key."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert_file, key_file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        cert_file.write_bytes(self._certificate(key, ca=False))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file

    def credentials(self, clients_of=None):
        """What a server of this authority listens with."""
        cert, key = (file.read_bytes() for file in self.issue("server"))
        roots = None if clients_of is None else clients_of.ca.read_bytes()
        return grpc.ssl_server_credentials([(key, cert)], roots, require_client_auth=roots is not None)

    def _certificate(self, key, *, ca):
        now = datetime.now(UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        subject = issuer if ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "router")])
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


@pytest.fixture
def ours(tmp_path):
    return Authority(tmp_path / "ours")


@pytest.fixture
def other(tmp_path):
    return Authority(tmp_path / "other")


def test_a_call_is_encrypted_and_carries_the_token(describe, ours):
    with telling_tokens(ours.credentials()) as address:
        assert describe(address, tls_ca=ours.ca, token="s3cret") == "Bearer s3cret"
        assert describe(address, tls_ca=ours.ca) == "none"


def test_a_server_of_another_authority_is_not_trusted(describe, ours, other):
    with telling_tokens(other.credentials()) as address, pytest.raises(RouterUnavailable):
        describe(address, tls_ca=ours.ca, token="s3cret")


def test_the_client_shows_its_certificate_to_a_server_that_asks(describe, ours, other):
    cert, key = ours.issue("client")
    with telling_tokens(other.credentials(clients_of=ours)) as address:
        assert describe(address, tls_ca=other.ca, tls_cert=cert, tls_key=key) == "none"
        with pytest.raises(RouterUnavailable):
            describe(address, tls_ca=other.ca)


def test_on_this_machine_a_token_needs_no_encryption(describe):
    with telling_tokens() as address:
        assert describe(address, token="s3cret") == "Bearer s3cret"
        assert describe(address.replace("127.0.0.1", "localhost"), token="s3cret") == "Bearer s3cret"


def test_a_stream_carries_the_token_too():
    def call(messages, context):
        for _ in messages:
            told = dict(context.invocation_metadata())["authorization"]
            yield pb.RouteStreamResponse(decision=pb.RouteResponse(version=told)).SerializeToString()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.stream_stream_rpc_method_handler(call)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with RouterClient(f"127.0.0.1:{port}", token="s3cret") as client:
        assert [answer.version for answer in client.decide_stream([Request("Hello")])] == ["Bearer s3cret"]
    server.stop(0)


def replace(path, content):
    path.with_suffix(".next").write_text(content)
    os.replace(path.with_suffix(".next"), path)


def test_a_token_file_is_read_again_when_it_changes(tmp_path):
    file = tmp_path / "token"
    file.write_text("first\n")
    with telling_tokens() as address, RouterClient(address, token_file=file) as client:
        assert client.describe().version == "Bearer first"
        replace(file, "later\n")
        assert client.describe().version == "Bearer later"


@pytest.mark.parametrize("broken", ["", "two words", None])
def test_a_token_file_that_breaks_leaves_the_token_in_force_and_is_logged_once(tmp_path, caplog, broken):
    file = tmp_path / "token"
    file.write_text("first")
    with telling_tokens() as address, RouterClient(address, token_file=file) as client:
        if broken is None:
            file.unlink()
        else:
            replace(file, broken)
        assert [client.describe().version for _ in range(3)] == ["Bearer first"] * 3
        (message,) = [record.getMessage() for record in caplog.records]
        assert "`token_file`" in message
        assert "the token read before stays in use" in message
        assert "two words" not in message
        replace(file, "later")
        assert client.describe().version == "Bearer later"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": "a", "token_file": "b"}, "`token` and `token_file` exclude each other"),
        ({"token": ""}, "`token` must be one word"),
        ({"token": "s3cret\nx"}, "`token` must be one word"),
        ({"token": "s3crét"}, "`token` must be one word"),
        ({"token_file": "/nowhere/token"}, "`token_file` cannot be read: /nowhere/token"),
        ({"tls_ca": "/nowhere/ca"}, "`tls_ca` cannot be read: /nowhere/ca"),
        ({"tls_ca": __file__}, "`tls_ca` must be a PEM file of certificates"),
        ({"tls_cert": "a"}, "`tls_cert` and `tls_key` must be given together"),
        ({"tls_ca": "a", "tls_key": "a"}, "`tls_cert` and `tls_key` must be given together"),
        ({"tls_cert": "a", "tls_key": "a"}, "`tls_cert` needs `tls_ca`"),
    ],
)
def test_wrong_options_are_refused_by_name_and_without_the_token(options, words):
    with pytest.raises(InputError, match=words) as caught:
        RouterClient(NOWHERE, **options)
    assert "s3cr" not in str(caught.value)


def test_a_key_that_is_not_the_certificates_is_refused(ours):
    (cert, _), (_, key) = ours.issue("one"), ours.issue("two")
    with pytest.raises(InputError, match="`tls_cert` and `tls_key` must be PEM files of a certificate and of its key"):
        RouterClient(NOWHERE, tls_ca=ours.ca, tls_cert=cert, tls_key=key)


def test_a_token_does_not_leave_this_machine_unencrypted(ours):
    for address in (FAR, "10.0.0.1:50051", "[2001:db8::1]:50051"):
        with pytest.raises(InputError, match="a token is sent to other machines only over TLS: give `tls_ca`"):
            RouterClient([NOWHERE, "[::1]:1", address], token="s3cret")
        RouterClient(address, token="s3cret", tls_ca=ours.ca).close()
        RouterClient(address).close()
