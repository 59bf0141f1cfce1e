"""Who may call: tokens, scopes, and where a server listens in plain text."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from router_ml import access
from router_ml.access import Scope, TokenCheck, check_exposure, read_tokens
from router_ml.errors import InputError
from router_ml.server import Server, ServerSettings, serve
from router_ml.types import Description
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
ROUTER, REPORTER, ADMIN = "router-token-c0ffee", "reporter-token-c0ffee", "admin-token-c0ffee"


class AnyRouter:
    def describe(self) -> Description:
        return Description("7", "ab", 1, "now", None, None, "static", 4, (), (), None, (), (), 0.95, 8192)

    decide = decide_batch = None  # never reached: the requests here are empty or refused


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def token_file(path: Path, **tokens: tuple[str, str]) -> Path:
    """`name=(token, scopes)`."""
    path.write_text("".join(f"{name} {scopes} {digest(token)}\n" for name, (token, scopes) in tokens.items()))
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return token_file(
        tmp_path / "tokens", chat=(ROUTER, "route"), judge=(REPORTER, "report"), operator=(ADMIN, "admin,route,report")
    )


@contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    server = serve(AnyRouter(), settings=ServerSettings("127.0.0.1:0", **settings))  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


@pytest.fixture
def channel(tokens: Path) -> Iterator[grpc.Channel]:
    with serving(tokens=tokens) as server, grpc.insecure_channel(server.address) as channel:
        yield channel


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


CALLS = {
    "Route": lambda stub, metadata: stub.Route(pb.RouteRequest(), metadata=metadata, timeout=60),
    "RouteBatch": lambda stub, metadata: stub.RouteBatch(pb.RouteBatchRequest(), metadata=metadata, timeout=60),
    "RouteStream": lambda stub, metadata: list(stub.RouteStream(iter(()), metadata=metadata, timeout=60)),
    "ReportOutcomes": lambda stub, metadata: stub.ReportOutcomes(
        pb.ReportOutcomesRequest(), metadata=metadata, timeout=10
    ),
    "Describe": lambda stub, metadata: stub.Describe(pb.DescribeRequest(), metadata=metadata, timeout=60),
}
REPORTING = {"ReportOutcomes"}


def outcome(channel: grpc.Channel, name: str, metadata: Any) -> tuple[grpc.StatusCode, str]:
    try:
        CALLS[name](router_pb2_grpc.RouterServiceStub(channel), metadata)  # type: ignore[no-untyped-call]
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def list_services(channel: grpc.Channel, metadata: Any) -> grpc.StatusCode:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    try:
        list(stub.ServerReflectionInfo(requests, metadata=metadata, timeout=60))
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


# -- calls ----------------------------------------------------------------------------------------


def test_every_rpc_of_the_contract_has_a_scope_of_its_own() -> None:
    methods = {f"/{pb.DESCRIPTOR.services_by_name['RouterService'].full_name}/{name}" for name in CALLS}
    assert set(access._SCOPES) == methods
    assert {method.name for method in pb.DESCRIPTOR.services_by_name["RouterService"].methods} == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ROUTER),),
        (("authorization", f"Basic {ROUTER}"),),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization-bin", b"Bearer " + ROUTER.encode()),),
        (("token", ROUTER),),
    ],
)
def test_a_call_without_a_token_is_told_how_to_send_one(channel: grpc.Channel, name: str, metadata: Any) -> None:
    status, message = outcome(channel, name, metadata)
    assert status is UNAUTHENTICATED
    assert "authorization: Bearer TOKEN" in message


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("token", ["", "nonsense", ROUTER[:-1], ROUTER + "0", ROUTER.upper(), digest(ROUTER)])
def test_a_wrong_token_is_refused_and_not_repeated(channel: grpc.Channel, name: str, token: str) -> None:
    status, message = outcome(channel, name, bearer(token))
    assert status is UNAUTHENTICATED
    assert "does not know the token" in message or not token
    assert "c0ffee" not in message.lower()
    assert not token or token not in message


@pytest.mark.parametrize("name", CALLS)
def test_a_token_is_good_for_its_scopes_alone(channel: grpc.Channel, name: str) -> None:
    good, bad, scope = (REPORTER, ROUTER, "report") if name in REPORTING else (ROUTER, REPORTER, "route")
    assert outcome(channel, name, bearer(good))[0] not in (UNAUTHENTICATED, PERMISSION_DENIED)
    assert outcome(channel, name, bearer(ADMIN))[0] not in (UNAUTHENTICATED, PERMISSION_DENIED)
    status, message = outcome(channel, name, bearer(bad))
    assert status is PERMISSION_DENIED
    assert f"lacks the scope `{scope}`" in message


def test_the_scheme_is_read_in_any_case_and_spaces_around_the_token_do_not_count(channel: grpc.Channel) -> None:
    assert outcome(channel, "Describe", (("authorization", f"bearer  {ROUTER} "),))[0] is grpc.StatusCode.OK


def test_of_two_tokens_in_one_call_the_first_counts(channel: grpc.Channel) -> None:
    for first in (*bearer("nonsense"), ("authorization", "Basic nonsense")):
        assert outcome(channel, "Describe", (first, *bearer(ROUTER)))[0] is UNAUTHENTICATED


def test_reflection_and_whatever_comes_later_need_the_admin_scope(channel: grpc.Channel) -> None:
    assert list_services(channel, ()) is UNAUTHENTICATED
    assert list_services(channel, bearer(ROUTER)) is PERMISSION_DENIED
    assert list_services(channel, bearer(ADMIN)) is grpc.StatusCode.OK
    unknown = channel.unary_unary("/router_ml.v1.RouterService/Shutdown")
    for token, status in ((ROUTER, PERMISSION_DENIED), (ADMIN, grpc.StatusCode.UNIMPLEMENTED)):
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"", metadata=bearer(token), timeout=60)
        assert caught.value.code() is status


def test_health_needs_no_token(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_without_a_token_file_nothing_is_asked() -> None:
    with serving() as server, grpc.insecure_channel(server.address) as channel:
        assert outcome(channel, "Describe", ())[0] is grpc.StatusCode.OK
        assert list_services(channel, ()) is grpc.StatusCode.OK


def test_a_stream_is_refused_before_it_has_sent_anything(channel: grpc.Channel) -> None:
    stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]

    told = threading.Event()

    def silent() -> Iterator[pb.RouteStreamRequest]:
        told.wait(120)
        yield from ()

    with pytest.raises(grpc.RpcError) as caught:
        next(stub.RouteStream(silent(), timeout=60))
    told.set()
    assert caught.value.code() is UNAUTHENTICATED


def test_metadata_beyond_the_limit_are_refused_every_time() -> None:
    with serving() as server, grpc.insecure_channel(server.address) as channel:
        assert outcome(channel, "Describe", (("x-some", "a" * 7000),))[0] is grpc.StatusCode.OK
        for _ in range(3):
            assert outcome(channel, "Describe", (("x-some", "a" * 8000),))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


# -- a file that changes --------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Details:
    method = "/router_ml.v1.RouterService/Route"

    def __init__(self, token: str) -> None:
        self.invocation_metadata = bearer(token)


class Asked:
    """A token check, and whether it lets a call through."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self._check = TokenCheck(path, clock=self.clock)

    def lets(self, token: str) -> bool:
        return self._check.intercept_service(lambda details: "let through", Details(token)) == "let through"


def test_tokens_are_rotated_without_a_restart(tmp_path: Path, tokens: Path) -> None:
    asked = Asked(tokens)
    assert (asked.lets(ROUTER), asked.lets("new")) == (True, False)
    token_file(tmp_path / "next", chat=("new", "route")).rename(tokens)
    asked.clock.now += 1.0
    assert (asked.lets("new"), asked.lets(ROUTER)) == (True, False)


def test_the_file_is_looked_at_once_a_second_and_not_at_every_call(tmp_path: Path, tokens: Path) -> None:
    asked = Asked(tokens)
    token_file(tmp_path / "next", chat=("new", "route")).rename(tokens)
    asked.clock.now += 0.9
    assert asked.lets(ROUTER)
    asked.clock.now += 0.1
    assert not asked.lets(ROUTER)


@pytest.mark.parametrize("broken", ["", "nonsense\n", f"chat route {digest(ROUTER)}\nchat rout\n", None])
def test_a_broken_new_file_leaves_the_tokens_before_it_in_force_and_is_logged(
    tokens: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked(tokens)
    if broken is None:
        tokens.unlink()
    else:
        tokens.write_text(broken)
    for _ in range(3):
        asked.clock.now += 1.0
        assert (asked.lets(ROUTER), asked.lets("nonsense")) == (True, False)
    (logged,) = caplog.records
    assert logged.levelno == logging.ERROR
    assert f"the tokens before it stay in force: {tokens}" in logged.getMessage()
    token_file(tokens, chat=("new", "route"))
    asked.clock.now += 1.0
    assert (asked.lets("new"), asked.lets(ROUTER)) == (True, False)


def test_a_server_takes_a_rotated_token_while_it_runs(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_CHECK_EVERY_S", 0.0)
    with serving(tokens=tokens) as server, grpc.insecure_channel(server.address) as channel:
        assert outcome(channel, "Describe", bearer(ROUTER))[0] is grpc.StatusCode.OK
        token_file(tmp_path / "next", chat=("new", "route")).rename(tokens)
        assert outcome(channel, "Describe", bearer("new"))[0] is grpc.StatusCode.OK
        assert outcome(channel, "Describe", bearer(ROUTER))[0] is UNAUTHENTICATED


# -- what the file may hold -----------------------------------------------------------------------


def test_a_file_holds_names_scopes_and_digests(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# who\n\n  chat  route,report\t{digest('a')}\r\n   # more\njudge report {digest('b')}")
    chat, judge = read_tokens(path)
    assert (chat.name, chat.scopes) == ("chat", {Scope.ROUTE, Scope.REPORT})
    assert (judge.name, judge.scopes) == ("judge", {Scope.REPORT})
    assert chat.digest == hashlib.sha256(b"a").digest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no token"),
        ("# nothing\n\n", "holds no token"),
        ("chat route", "line 1: must be `name scopes sha256-of-the-token`; found 2 words"),
        (f"# who\nchat route, report {digest('a')}", "line 2: must be `name scopes"),
        (f"chat rout,report {digest('a')}", "the scopes of `chat` must be some of route, report, admin"),
        (f"chat route, {digest('a')}", "the scopes of `chat` must be some of"),
        ("chat route c0ffee", "the third word must be the SHA-256 of the token of `chat`"),
        (f"chat route {digest('a').upper()}", "the third word must be the SHA-256"),
        (f"chat route {digest('a')}\nchat report {digest('b')}", "line 2: the name `chat`"),
        (f"chat route {digest('a')}\njudge report {digest('a')}", "line 2: the name `judge` or its token stands"),
    ],
)
def test_a_wrong_line_is_named_and_what_may_be_a_secret_is_not_quoted(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_tokens(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "c0ffee" not in str(caught.value)
    assert digest("a") not in str(caught.value).lower()


def test_a_missing_or_binary_file_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read as a file of tokens \(No such file"):
        serve(AnyRouter(), settings=ServerSettings("127.0.0.1:0", tokens=tmp_path / "none"))  # type: ignore[arg-type]
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="must be UTF-8 text"):
        serve(AnyRouter(), settings=ServerSettings("127.0.0.1:0", tokens=tmp_path / "binary"))  # type: ignore[arg-type]


# -- where a server listens in plain text ---------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_may_be_reached_in_plain_text(host: str) -> None:
    check_exposure(host, encrypted=False, tokens=True, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "no-such-host.invalid"])
def test_other_machines_need_encryption_or_the_user_s_word(host: str) -> None:
    with pytest.raises(
        InputError, match=r"prompts would cross the network in plain text: give --tls-cert .*--insecure"
    ):
        check_exposure(host, encrypted=False, tokens=False, insecure=False)
    check_exposure(host, encrypted=False, tokens=False, insecure=True)
    check_exposure(host, encrypted=True, tokens=True, insecure=False)


def test_tokens_never_cross_a_network_in_plain_text_whatever_the_user_says() -> None:
    for insecure in (False, True):
        with pytest.raises(InputError, match="tokens would cross the network in plain text"):
            check_exposure("0.0.0.0", encrypted=False, tokens=True, insecure=insecure)


def test_a_server_refuses_to_listen_everywhere_in_plain_text_unless_told_to(tokens: Path) -> None:
    with pytest.raises(InputError, match="can be reached from other machines"):
        serve(AnyRouter(), settings=ServerSettings("0.0.0.0:0"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tokens would cross the network"):
        serve(AnyRouter(), settings=ServerSettings("0.0.0.0:0", tokens=tokens, insecure=True))  # type: ignore[arg-type]
    server = serve(AnyRouter(), settings=ServerSettings("0.0.0.0:0", insecure=True))  # type: ignore[arg-type]
    server.stop(0)
