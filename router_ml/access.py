"""Who may call: bearer tokens with scopes, read from a file that may change while the server runs.

The file has one token per line, its name, its scopes and the SHA-256 of the token, so that it holds no secret:

    # name        scopes        SHA-256 of the token
    chat-backend  route,report  2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b

A new token and its line, for 256 bits of chance that no one can guess:

    openssl rand -hex 32 | tee chat-backend.token | tr -d '\\n' | sha256sum
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import grpc

from router_ml.errors import InputError
from router_ml.file_stamp import file_stamp

_SERVICE = "/router_ml.v1.RouterService/"
_HEALTH = "/grpc.health.v1.Health/"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHECK_EVERY_S = 1.0
"""A call in between does not look at the file: `stat` would cost more than all the rest."""

_log = logging.getLogger(__name__)


class Scope(StrEnum):
    """What a token is good for."""

    ROUTE = "route"
    """Ask for decisions, and what the version in force can do."""
    REPORT = "report"
    """Report outcomes, which later versions learn from."""
    ADMIN = "admin"
    """All other calls but health checks, which need no token; today: server reflection."""


_SCOPES = {
    f"{_SERVICE}Route": Scope.ROUTE,
    f"{_SERVICE}RouteBatch": Scope.ROUTE,
    f"{_SERVICE}RouteStream": Scope.ROUTE,
    f"{_SERVICE}Describe": Scope.ROUTE,
    f"{_SERVICE}ReportOutcomes": Scope.REPORT,
}


@dataclass(frozen=True, slots=True)
class Token:
    """What the server knows of a token."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes
    """SHA-256, 32 bytes."""


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file, at least one; InputError names the line, and quotes no digest or what stands for one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a file of tokens ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: a file of tokens must be UTF-8 text") from None
    tokens: dict[str, Token] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        token = _token(line, f"{path}, line {number}")
        if token.name in tokens or token.digest in (other.digest for other in tokens.values()):
            raise InputError(
                f"{path}, line {number}: the name `{token.name}` or its token stands on an earlier line too"
            )
        tokens[token.name] = token
    if not tokens:
        raise InputError(f"{path}: holds no token; each line must be `name scopes sha256-of-the-token`")
    return tuple(tokens.values())


def _token(line: str, where: str) -> Token:
    parts = line.split()
    if len(parts) != 3:
        raise InputError(f"{where}: must be `name scopes sha256-of-the-token`; found {len(parts)} words")
    name, scopes, digest = parts
    unknown = set(scopes.split(",")) - set(Scope)
    if unknown:
        raise InputError(
            f"{where}: the scopes of `{name}` must be some of {', '.join(Scope)}, with commas and without spaces; "
            f"found {', '.join(f'`{scope}`' for scope in sorted(unknown))}"
        )
    if not _DIGEST.fullmatch(digest):
        raise InputError(
            f"{where}: the third word must be the SHA-256 of the token of `{name}`, 64 digits of 0-9 and a-f, "
            f"never the token itself; found {len(digest)} characters"
        )
    return Token(name, frozenset(map(Scope, scopes.split(","))), bytes.fromhex(digest))


class TokenCheck(grpc.ServerInterceptor):
    """Lets a call through when its metadata hold `authorization: Bearer TOKEN` with a token of the scope it needs.

    Refuses with UNAUTHENTICATED or PERMISSION_DENIED before the message is read. A changed file is in force
    within a second, for the calls that begin after; while it is wrong, the tokens before it stay, and the log says so.
    gRPC asks from one thread only.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """InputError when the file is missing or wrong."""
        self._path = path
        self._clock = clock
        self._stamp = file_stamp((path,))
        self._tokens = read_tokens(path)
        self._next_check = clock() + _CHECK_EVERY_S

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The handler of the call, or one that refuses it."""
        method: str = details.method
        if method.startswith(_HEALTH):
            return continuation(details)
        if self._clock() >= self._next_check:
            self._follow()
        presented = _bearer(details.invocation_metadata)
        if presented is None:
            return _refusal(
                grpc.StatusCode.UNAUTHENTICATED,
                "this server asks for a token: send it with the call, as metadata `authorization: Bearer TOKEN`",
            )
        token = self._known(presented)
        if token is None:
            return _refusal(
                grpc.StatusCode.UNAUTHENTICATED,
                "this server does not know the token of this call; it may have been replaced by a newer one",
            )
        scope = _SCOPES.get(method, Scope.ADMIN)
        if scope not in token.scopes:
            return _refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the token `{token.name}` lacks the scope `{scope}` that this call needs; "
                f"it has: {', '.join(sorted(token.scopes))}",
            )
        return continuation(details)

    def _known(self, presented: str) -> Token | None:
        """Every token is compared, in constant time, so that the time tells nothing of them."""
        digest = hashlib.sha256(presented.encode()).digest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def _follow(self) -> None:
        self._next_check = self._clock() + _CHECK_EVERY_S
        now = file_stamp((self._path,))
        if now == self._stamp:
            return
        self._stamp = now
        try:
            self._tokens = read_tokens(self._path)
        except InputError as error:
            _log.error("the tokens before it stay in force: %s", error)
        else:
            _log.info("%s: %d tokens now in force", self._path, len(self._tokens))


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    for key, value in metadata:
        if key == "authorization":
            if isinstance(value, str) and value[:7].lower() == "bearer ":
                return value[7:].strip()
            return None
    return None


def _refusal(status: grpc.StatusCode, message: str) -> Any:
    def refuse(messages: Any, context: grpc.ServicerContext) -> NoReturn:
        context.abort(status, message)

    # For every kind of call: only the handler of a stream runs before a message has arrived.
    return grpc.stream_stream_rpc_method_handler(refuse)


def check_exposure(host: str, *, encrypted: bool, tokens: bool, insecure: bool) -> None:
    """Refuse to be reached from other machines in plain text; InputError says what to do.

    `host` as it stands in the address to listen on, without brackets. `insecure`: the user asked for it.
    """
    if encrypted or _is_loopback(host):
        return
    if tokens:
        raise InputError(
            f"tokens would cross the network in plain text on {host}: give --tls-cert and --tls-key, "
            "or listen on 127.0.0.1 behind a proxy that encrypts"
        )
    if not insecure:
        raise InputError(
            f"{host} can be reached from other machines, and prompts would cross the network in plain text: "
            "give --tls-cert and --tls-key, listen on 127.0.0.1, or say --insecure where the network itself is trusted"
        )


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)
