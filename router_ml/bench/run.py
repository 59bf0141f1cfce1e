"""The measurement from beginning to end. Read this page first."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from router_ml.bench import in_process, over_grpc
from router_ml.bench.figures import Figure, Target
from router_ml.bench.machine import machine
from router_ml.bench.over_grpc import Load, Running
from router_ml.bench.processes import Cores, Generators, ServerProcess, pinned, spawned
from router_ml.bench.prompts import prompts, usual
from router_ml.convert import decision_to_proto
from router_ml.errors import InputError
from router_ml.router import Router
from router_ml.types import Description

_MAX_TOKENS = 2048
_TEXTS = 256

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is asked, and how long. InputError on a value out of range."""

    tokens: int = 128
    """Of each prompt sent over gRPC."""
    clients: int = 8
    per_second: float = 1000.0
    """Calls offered in the open loop, all clients together."""
    rounds: int = 5
    seconds: float = 2.0
    """Length of a round over gRPC."""
    calls: int = 2000
    """Calls of a round in process."""
    serve_options: tuple[str, ...] = ()
    """Further options for `router-ml serve`."""

    def __post_init__(self) -> None:
        for name in ("tokens", "clients", "per_second", "rounds", "seconds", "calls"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"`{name}` of the bench must be above 0; found {getattr(self, name)!r}")
        if self.tokens > _MAX_TOKENS:
            raise InputError(f"`tokens` of the bench must be {_MAX_TOKENS} at most; found {self.tokens}")


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, on what."""

    machine: dict[str, Any]
    version: Description
    settings: BenchSettings
    cores: Cores
    figures: tuple[Figure, ...]
    parts_us: dict[int, dict[str, float]] = field(default_factory=dict)
    """Prompt length in tokens -> part of `Router.route` -> median microseconds; empty for a running server."""


def bench_bundle(folder: Path, settings: BenchSettings, say: Say) -> Report:
    """Measure a bundle: in process, then behind servers started for it."""
    cores, on = Cores.split(), machine()
    with pinned(cores.server):
        router = Router.load(folder)
        texts = prompts(in_process.tokenizer_of(router), usual, settings.tokens, _TEXTS)
        answer_bytes = decision_to_proto(router.route(texts[0])).ByteSize()
        say("in process")
        figures, parts = in_process.measure(router, settings.tokens, settings.rounds, settings.calls)
    with closing(Generators(cores.generators, settings.clients)) as generators:
        figures += _served(folder, answer_bytes, settings, _load(settings, generators, texts), cores, say)
    return Report(on, router.describe(), settings, cores, tuple(figures), parts)


def bench_server(address: str, settings: BenchSettings, say: Say) -> Report:
    """Measure a server that runs, here or elsewhere: what its callers see."""
    cores, on = Cores.split(), machine()
    texts = prompts(None, usual, settings.tokens, _TEXTS)
    server = Running(address)
    version = over_grpc.greet(address, texts[0])
    with closing(Generators(cores.generators, settings.clients)) as generators:
        load = _load(settings, generators, texts)
        say("unary calls")
        figures = [over_grpc.one_at_a_time(server, None, load), over_grpc.at_a_rate(server, None, load)]
        say("unary calls, saturated and beyond")
        full, beyond = over_grpc.saturated(server, None, load)
        say("streams and batches")
        figures += [full, beyond, *over_grpc.streams(server, None, full, load), over_grpc.batches(server, load)]
    return Report(on, version, settings, Cores((), cores.generators), tuple(figures))


def _load(settings: BenchSettings, generators: Generators, texts: Sequence[str]) -> Load:
    return Load(generators, texts, settings.clients, settings.per_second, settings.rounds, settings.seconds)


def _served(
    folder: Path, answer_bytes: int, settings: BenchSettings, load: Load, cores: Cores, say: Say
) -> list[Figure]:
    """Each kind of load gets a fresh server, so that none inherits the queue or the memory of another."""
    has_workers = _serve_has("--workers")
    one = ("--workers", "1") if has_workers else ()
    ready: list[float] = []
    resident: list[int] = []

    @contextmanager
    def serving(on: Sequence[int], *options: str) -> Iterator[ServerProcess]:
        with tempfile.TemporaryDirectory(prefix="router-ml-bench-") as journal:
            argv = ["router_ml.cli", "serve", "--model", str(folder), "--listen", "127.0.0.1:0", "--journal", journal]
            with spawned([*argv, *options, *settings.serve_options], on) as server:
                over_grpc.greet(server.address, load.texts[0])
                yield server
                ready.append(server.ready_s)
                if (found := server.resident_bytes()) is not None:
                    resident.append(found)

    figures: list[Figure] = []
    with spawned(["router_ml.bench.floors", str(folder), str(answer_bytes)], cores.server) as floor:
        with serving(cores.server, *one) as server:
            say("unary calls of one client")
            figures.append(over_grpc.one_at_a_time(server, floor, load))
            say("unary calls at a rate")
            figures.append(over_grpc.at_a_rate(server, floor, load))
            say("unary calls, saturated and beyond")
            full, beyond = over_grpc.saturated(server, floor, load)
            figures += [full, beyond]
        with serving(cores.server, *one) as server:
            say("streams")
            figures += over_grpc.streams(server, floor, full, load)
    with serving(cores.server, *one) as server:
        say("batches")
        figures.append(over_grpc.batches(server, load))
    if has_workers and (all_cores := sorted({*cores.server, *cores.generators}))[1:]:
        n = len(all_cores) - (-(-len(all_cores) // 8) if len(all_cores) > 2 else 0)
        with serving(all_cores[:n], "--workers", str(n)) as server:
            say(f"{n} workers")
            figures.append(over_grpc.workers(server, full, load, n))
    return figures + _of_the_process(ready, resident)


def _of_the_process(ready_s: Sequence[float], resident_bytes: Sequence[int]) -> list[Figure]:
    ready = median(ready_s)
    figures = [
        Figure(
            "start_to_ready", "start of the server to ready", beside={"s": ready}, targets=(Target("s", 2.0, ready),)
        )
    ]
    if resident_bytes:
        megabytes = max(resident_bytes) / 1e6
        figures.append(
            Figure(
                "resident",
                "resident memory after load, largest process",
                beside={"mb": megabytes},
                targets=(Target("MB", 250.0, megabytes),),
            )
        )
    return figures


def _serve_has(option: str) -> bool:
    """Whether this version's `serve` knows an option."""
    shown = subprocess.run(
        [sys.executable, "-m", "router_ml.cli", "serve", "--help"], capture_output=True, text=True, check=True
    )
    return f" {option} " in shown.stdout
