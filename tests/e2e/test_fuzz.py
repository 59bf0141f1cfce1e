"""What hostile or broken clients send does not stop the server, swell it, or bring what they sent into its log."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from router_ml.v1 import router_pb2 as pb

SERVICE = "/router_ml.v1.RouterService/"
UNARY = tuple(SERVICE + name for name in ("Route", "RouteBatch", "ReportOutcomes", "Describe"))
STREAMS = (SERVICE + "RouteStream", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
OTHERS = ("/grpc.health.v1.Health/Check", SERVICE + "Nothing", "/", "/no/such/thing", "/" + "a" * 2000)
METHODS = (*UNARY * 6, *STREAMS, *OTHERS)
PROMPT, SECRET = "zqxjzqxjzqxj", "kvwkkvwkkvwk"
"""Marks of prompts and tokens; their quarters are looked for in the log."""
AUTHORIZED = (("authorization", f"Bearer {SECRET}-good"),)
METADATA = (
    *[AUTHORIZED] * 12,
    (),
    (("authorization", f"Bearer {SECRET}-wrong"),),
    (("authorization", SECRET),),
    (("authorization", "Bearer ~"), ("x-bin", b"\0\xff" * 50)),
)
TOO_LONG = (*AUTHORIZED, ("x-long", SECRET * 800))
FAIR = {
    "OK",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNIMPLEMENTED",
    "NOT_FOUND",
}
"""What a server in order may answer here."""
GROWTH_MB = 384
"""A conversation of 4 MiB made of two million empty messages takes 120 MB while it is read, and each thread keeps
some of what it had; no more however often it comes."""
LASTING_MB = 96
"""What words never seen before fill the caches with; it does not grow with the number of messages."""


@dataclass
class Target:
    process: subprocess.Popen[bytes]
    address: str
    log: Path

    @property
    def memory_mb(self) -> tuple[int, int]:
        """Resident now, and at its highest."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        now, high = (int(re.search(rf"{key}:\s+(\d+)", status)[1]) // 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[index]
        return now, high


@contextmanager
def target(bundle: Path, folder: Path) -> Iterator[Target]:
    """A server with tokens and journal in a process of its own, all that it prints in one file."""
    digest = hashlib.sha256(f"{SECRET}-good".encode()).hexdigest()
    (folder / "tokens").write_text(f"all route,report,admin {digest}\n")
    options = ["--listen", "127.0.0.1:0", "--journal", str(folder / "journal"), "--tokens", str(folder / "tokens")]
    log = folder / "log"
    with log.open("wb") as out:
        argv = [sys.executable, "-m", "router_ml.cli", "serve", "--model", str(bundle), *options]
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
    try:
        for _ in range(2400):
            if found := re.search(rb" on (127\.0\.0\.1:\d+); ", log.read_bytes()):
                break
            time.sleep(0.05)
        assert found, log.read_text()
        yield Target(process, found[1].decode(), log)
    finally:
        process.kill()
        process.wait()


# -- messages -------------------------------------------------------------------------------------

words = st.sampled_from(
    ["", PROMPT, f"{PROMPT} \ud7ff\0 {PROMPT}", "chat", "tiny", "tiny@us", "eu", "a" * 300]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
floats = st.floats() | st.sampled_from([0.5, 0.95, 1.0])
whole = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 500)
some_words = st.lists(words, max_size=4)


SHED = (grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""What a well-behaved client may hear while another one floods the server."""


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


prompts = st.one_of(
    st.fixed_dictionaries({"text": words}),
    st.fixed_dictionaries(
        {
            "messages": st.builds(
                pb.Conversation, messages=st.lists(st.builds(pb.Message, role=words, content=words), max_size=4)
            )
        }
    ),
    st.fixed_dictionaries({"embedding": st.builds(pb.Embedding, values=st.lists(st.floats(width=32), max_size=20))}),
    st.just({}),
)
limits = st.fixed_dictionaries(
    {},
    optional={
        "segment": words,
        "session_id": words,
        "tenant": words,
        "allowed_models": some_words,
        "denied_models": some_words,
        "allowed_regions": some_words,
        "required_capabilities": some_words,
        "max_cost_usd": floats,
        "max_output_tokens": whole,
        "quality_target": floats,
        "min_success_probability": floats,
        "input_tokens": whole,
        "cached_input_tokens": st.dictionaries(words, whole, max_size=4),
        "batch": st.booleans(),
    },
)
requests = st.builds(lambda prompt, more: pb.RouteRequest(**prompt, **more), prompts, limits)
ids = st.sampled_from(["0193488e-7c00-7abc-8def-0123456789ab", "", PROMPT])
outcomes = st.builds(
    pb.Outcome, decision_id=ids, offer=words, success=maybe(floats), cost_usd=maybe(floats), output_tokens=maybe(whole)
)
wholesome = st.one_of(
    requests,
    st.builds(pb.RouteBatchRequest, requests=st.lists(requests, max_size=4)),
    st.builds(pb.RouteStreamRequest, id=words, request=requests),
    st.builds(pb.ReportOutcomesRequest, outcomes=st.lists(outcomes, max_size=4)),
).map(lambda message: message.SerializeToString())


def mutated(message: bytes, seed: int) -> bytes:
    """A few bytes changed, cut out, doubled or put in, or the end cut off."""
    draw = random.Random(seed)
    data = bytearray(message or PROMPT.encode())
    for _ in range(draw.choice([0, 1, 1, 1, 2, 5])):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[at : at + draw.randint(1, 8)]
            case 2:
                data[at:at] = draw.randbytes(draw.randint(1, 8))
            case 3:
                data[at:at] = data[at : at + draw.randint(1, 64)]
            case 4:
                data[at:at] = draw.choice(
                    [b"\xff" * 10, b"\xff\xff\xff\xff\x7f", b"\0", b"\x80\x80\x80\x80\x00", b"\x0b"]
                )
            case 5:
                del data[at:]
    return bytes(data)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a message."""
    size, head = len(content), bytearray(varint(number << 3 | 2))
    return bytes(head) + varint(size) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def huge() -> Iterator[bytes]:
    """As much trouble as the message limit lets in, and more than it."""
    room = 4 * 1024 * 1024 - 64
    text = field(1, PROMPT.encode())
    yield field(1, (PROMPT * (room // len(PROMPT))).encode())
    yield field(1, "\u4e2d".encode() * (room // 3))
    yield field(2, b"\x0a\x00" * (room // 2))  # two million empty messages
    yield field(2, (field(1, b"u") + field(2, b"zqxj")) * (room // 12))
    yield field(3, field(1, struct.pack("<f", 1.0) * (room // 4)))
    for names in (7, 8, 9, 10):
        yield text + field(names, b"zqxj") * (room // 6)
    yield text + b"".join(field(16, field(1, b"%07d" % i) + b"\x10\x01") for i in range(room // 13))
    yield b"\x0a\x00" * (room // 2)  # two million empty members
    yield field(1, text) * (room // len(field(1, text)))
    yield b"\x0b" * room  # groups in groups
    yield field(1, b"a" * (room + 1000))
    yield field(1, PROMPT.encode() * 1_000_000)


def send(channel: grpc.Channel, method: str, payload: bytes, metadata: Any, seen: Counter[str], **options: Any) -> None:
    """One call; fails when the answer is none that a server in order gives."""
    try:
        if method in STREAMS:
            list(channel.stream_stream(method)(iter([payload] * 2), metadata=metadata, timeout=120, **options))
        else:
            channel.unary_unary(method)(payload, metadata=metadata, timeout=120, **options)
        answer = "OK"
    except grpc.RpcError as error:
        answer = error.code().name
        assert answer in FAIR, (method, payload[:200], answer, error.details())
        if "no message" in error.details():
            answer = "no message"
    seen[answer] += 1


def fuzz_messages(channel: grpc.Channel, n: int, seen: Counter[str]) -> None:
    """A tenth as they should be, more or less, the others mutations of those and noise."""
    corpus: list[bytes] = []

    @settings(
        max_examples=n // 10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(METHODS), wholesome, st.sampled_from(METADATA))
    def one(method: str, payload: bytes, metadata: Any) -> None:
        corpus.append(payload)
        send(channel, method, payload, metadata, seen)

    one()
    draw = random.Random(n)
    for _ in range(n - len(corpus)):
        noise = draw.random() < 0.1
        payload = draw.randbytes(draw.randint(0, 400)) if noise else mutated(draw.choice(corpus), draw.getrandbits(32))
        send(channel, draw.choice(METHODS), payload, draw.choice(METADATA), seen)


def fuzz_huge(channel: grpc.Channel, seen: Counter[str]) -> None:
    for payload in huge():
        for method in (UNARY[0], UNARY[1], STREAMS[0]):
            send(channel, method, payload, AUTHORIZED, seen)
    send(channel, UNARY[0], b"", TOO_LONG, seen)
    bomb = field(1, b"a" * 50_000_000)  # 50 kB on the wire
    send(channel, UNARY[0], bomb, AUTHORIZED, seen, compression=grpc.Compression.Gzip)


# -- below messages: bytes on the socket ----------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def header(name: str, value: str) -> bytes:
    """Literal, not indexed, not compressed; up to 126 bytes each."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def call_headers(path: str = UNARY[0]) -> bytes:
    pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a", "te": "trailers"}
    pairs |= {"content-type": "application/grpc", "authorization": f"Bearer {SECRET}-good"}
    return b"".join(header(name, value) for name, value in pairs.items())


HELLO = PREFACE + frame(SETTINGS, 0, 0, b"")
CALL = HELLO + frame(HEADERS, 4, 1, call_headers())
TEXT = field(1, PROMPT.encode())


MESSAGE = b"\0" + len(TEXT).to_bytes(4, "big") + TEXT
ATTACKS: tuple[Callable[[random.Random], bytes], ...] = (
    lambda draw: draw.randbytes(draw.randint(0, 4000)),
    lambda draw: PREFACE + draw.randbytes(draw.randint(0, 4000)),
    lambda draw: HELLO + b"".join(noise_frame(draw) for _ in range(20)),
    # a length that never comes
    lambda draw: CALL + frame(DATA, 1, 1, b"\0\xff\xff\xff\xff" + PROMPT.encode()),
    # compressed, in an encoding that was not told
    lambda draw: CALL + frame(DATA, 1, 1, b"\1" + MESSAGE[1:]),
    # opened and reset at once, again and again
    lambda draw: HELLO + b"".join(opened_and_reset(2 * i + 1) for i in range(200)),
    lambda draw: HELLO + frame(PING, 0, 0, bytes(8)) * 500,
    # a farewell, whose reason gRPC may log
    lambda draw: HELLO + frame(GOAWAY, 0, 0, bytes(4) + draw.randbytes(4) + f"{PROMPT} {SECRET}\n\x1b[31m".encode()),
    # headers that never end
    lambda draw: HELLO + frame(HEADERS, 0, 1, call_headers()) + frame(CONTINUATION, 0, 1, header("x", SECRET)) * 500,
    lambda draw: b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n" + PROMPT.encode(),
    # the beginning of TLS
    lambda draw: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(500),
    # a call in order, then noise
    lambda draw: CALL + frame(DATA, 1, 1, MESSAGE) + draw.randbytes(500),
    lambda draw: mutated(CALL + frame(DATA, 1, 1, MESSAGE), draw.randrange(2**32)),
)
"""What one connection sends."""


def noise_frame(draw: random.Random) -> bytes:
    return frame(draw.randrange(12), draw.randrange(256), draw.randrange(8), draw.randbytes(draw.randint(0, 40)))


def opened_and_reset(stream: int) -> bytes:
    return frame(HEADERS, 4, stream, call_headers()) + frame(RESET, 0, stream, bytes(4))


def fuzz_socket(address: str, n: int) -> None:
    host, port = address.split(":")
    draw = random.Random(5)
    for i in range(n):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            try:
                connection.sendall(draw.choice(ATTACKS)(draw))
                if i % 4 == 0:  # some wait for an answer, the others hang up
                    connection.settimeout(0.02)
                    connection.recv(65536)
            except OSError:  # refused, as it may be
                pass


# -- the server afterwards ------------------------------------------------------------------------


def check_answers(channel: grpc.Channel) -> None:
    """It decides as ever, at once or, while gRPC sheds what a flood has left (CANCELLED), within seconds."""
    request = pb.RouteRequest(text="xrob xvac xzed xquf xkyg", segment="chat").SerializeToString()
    answers: list[str] = []
    limit = time.monotonic() + 60
    while answers[-20:] != ["large"] * 20:
        try:
            answer = channel.unary_unary(UNARY[0])(request, metadata=AUTHORIZED, timeout=60)
            answers.append(pb.RouteResponse.FromString(answer).model)
        except grpc.RpcError as error:
            assert error.code() in SHED and time.monotonic() < limit, error
            answers.append("")
            time.sleep(0.02)


def attack(bundle: Path, folder: Path, n_messages: int, n_connections: int, n_huge: int) -> None:
    seen: Counter[str] = Counter()
    with target(bundle, folder) as server:
        # The client's own limit would stop a huge message before it is sent.
        options = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20)]
        with grpc.insecure_channel(server.address, options) as channel:
            check_answers(channel)
            before, _ = server.memory_mb
            fuzz_messages(channel, n_messages, seen)
            fuzz_socket(server.address, n_connections)
            check_answers(channel)
            between, _ = server.memory_mb
            for _ in range(n_huge):
                fuzz_huge(channel, seen)
            check_answers(channel)
        after, highest = server.memory_mb
        log = server.log.read_bytes()
        assert server.process.poll() is None
    print(f"\n{sum(seen.values()):,} messages: {dict(seen.most_common())}; {n_connections:,} broken connections")
    print(f"resident {before} MB before, {between} MB between, {after} MB after, {highest} MB at most")
    print(f"log: {len(log):,} bytes")
    print(*Counter(re.sub(rb"\\d+", b"#", line)[:120] for line in log.splitlines()).most_common(12), sep="\n")
    assert sum(seen.values()) >= n_messages
    assert {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "no message"} <= set(seen)
    assert between < before + LASTING_MB
    assert highest < between + GROWTH_MB
    assert b"zqxj" not in log
    assert b"kvwk" not in log
    assert log.isascii() and b"\x1b" not in log


def test_a_few_thousand_hostile_messages_and_connections(tiny_bundle: Path, tmp_path: Path) -> None:
    attack(tiny_bundle, tmp_path, 2_000, 300, 1)


@pytest.mark.long
def test_a_hundred_thousand_hostile_messages_and_connections(tiny_bundle: Path, tmp_path: Path) -> None:
    attack(tiny_bundle, tmp_path, 100_000, 5_000, 5)
