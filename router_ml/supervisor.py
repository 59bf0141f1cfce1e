"""One serving process per core behind one port, and what keeps them alive.

The supervisor decides nothing: it starts workers, starts a dead one again, tells all of them which
version to prepare, and passes on the signal to stop. The kernel spreads connections over the workers
(SO_REUSEPORT), so the clients of a worker that died find another one as they connect again.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from router_ml.errors import RouterMlError
from router_ml.metrics import ServerMetrics
from router_ml.rollout import Generation, Refusal, Rollout
from router_ml.server import reserve_port
from router_ml.traffic import Traffic
from router_ml.worker import ServingPlan, run_worker

_START_SECONDS = 120.0
_LOOK_SECONDS = 0.2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a worker that died is started again; doubled until one lives for the longest pause."""

_LOG = logging.getLogger(__name__)
_SPAWN = multiprocessing.get_context("spawn")  # gRPC does not survive a fork


@dataclass(eq=False)
class _Worker:
    """A worker process as its supervisor sees it; `prepare` and `settle` are those of `rollout.Worker`."""

    process: SpawnProcess
    pipe: Connection
    begun: float = field(default_factory=time.monotonic)
    ready: Future[None] = field(default_factory=Future)
    ended: threading.Event = field(default_factory=threading.Event)
    """Asked instead of the process: while one thread takes note of its end, others are told that it lives."""
    _preparing: Future[Refusal | str | None] | None = None
    _has_begun: bool = False
    """To prepare: a worker that ends before it may be a victim of anything, but not of the version."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards the three before it: whoever waits for a worker hears of its end, whichever comes first."""

    def prepare(self, number: int, traffic: Traffic) -> Future[Refusal | str | None]:
        preparing: Future[Refusal | str | None] = Future()
        with self._lock:
            self._preparing, self._has_begun = preparing, False
            if self.ended.is_set():
                preparing.cancel()
        self._send("prepare", number, traffic)
        return preparing

    def settle(self, refusal: Refusal | None) -> None:
        self._send("settle", refusal)

    @property
    def answers(self) -> bool:
        """Whether it came up and lives."""
        return self.ready.done() and self.ready.exception() is None and not self.ended.is_set()

    def listen(self) -> None:
        """Take what the worker says until it ends; runs in a thread of its own."""
        try:
            while True:
                told, value = self.pipe.recv()
                if told == "ready":
                    self.ready.set_result(None)
                elif told == "failed":
                    self.ready.set_exception(value)
                elif told == "begun":
                    self._has_begun = True
                elif self._preparing is not None:
                    self._preparing.set_result(value)
        except (EOFError, OSError):
            self.process.join()
            while self.process.exitcode is None:  # starting a process takes note of ended ones too, and may be at it
                time.sleep(0.001)
            self._tell_of_end()

    def _tell_of_end(self) -> None:
        """To whoever waits for it."""
        if not self.ready.done():
            self.ready.set_exception(RouterMlError(f"a worker died as it started ({self._end()})"))
        with self._lock:
            self.ended.set()
            if self._preparing is None or self._preparing.done():
                return
            if self._has_begun:
                self._preparing.set_result(f"a worker died of it ({self._end()})")
            else:
                self._preparing.cancel()

    def _send(self, *order: Any) -> None:
        try:
            self.pipe.send(order)
        except OSError:
            pass  # it is dying; `listen` notices and the supervisor starts another one

    def _end(self) -> str:
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"status {code}"


class Supervisor:
    """Keeps `n_workers` workers serving. `run` belongs into the main thread."""

    def __init__(
        self,
        plan: ServingPlan,
        folder: Path,
        traffic: Traffic,
        n_workers: int,
        *,
        follow: bool = False,
        metrics: ServerMetrics | None = None,
    ) -> None:
        """`traffic`, of versions in `folder`, is what to begin with; with `follow`, what its pointer names comes later.

        `metrics` has a memory for each worker. InputError when the address cannot be bound.
        """
        self._reserved, self.address = reserve_port(plan.settings)
        self._plan = replace(plan, settings=replace(plan.settings, listen=self.address, share_port=True))
        self._generation: Generation = _SPAWN.RawValue("L", 0)
        self._folder = folder
        self._first = traffic
        self._lock = threading.Lock()  # a worker is started, or a version brought into force, never both
        self._workers: list[_Worker] = []
        self._n_workers = n_workers
        self._metrics = metrics
        told = metrics.switched if metrics else None
        self._rollout = Rollout(folder, traffic, self._generation, self._living, told) if follow else None
        self._stopping = threading.Event()

    @property
    def serving(self) -> bool:
        """Whether all workers answer, and none is told to stop."""
        return not self._stopping.is_set() and bool(self._workers) and all(each.answers for each in self._workers)

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT, then let all workers drain; `ready` is called once all of them serve.

        RouterMlError when the first workers cannot start.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopping.set()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._workers = [self._start(k) for k in range(self._n_workers)]
            for worker in self._workers:
                worker.ready.result(_START_SECONDS)
            ready()
            if self._rollout:
                look = threading.Thread(
                    target=self._rollout.keep_looking, args=(self._stopping, self._lock), daemon=True
                )
                look.start()
            self._keep_alive()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._end(self._workers)
            self._reserved.close()

    def _living(self) -> list[_Worker]:
        """One that is gone is replaced by one that opens whatever is in force by then."""
        return [worker for worker in self._workers if not worker.ended.is_set()]

    def _start(self, k: int) -> _Worker:
        ours, theirs = _SPAWN.Pipe()
        traffic = self._rollout.in_force if self._rollout else self._first
        memory = self._metrics.memories[k] if self._metrics else None
        arguments = (self._plan, self._folder, traffic, self._generation.value, self._generation, memory, theirs)
        process = _SPAWN.Process(target=run_worker, args=arguments, name="router-ml-worker")
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        threading.Thread(target=worker.listen, daemon=True).start()
        return worker

    def _keep_alive(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.wait(_LOOK_SECONDS):
            for k, worker in enumerate(self._workers):
                if not worker.ended.is_set():
                    continue
                lived = time.monotonic() - worker.begun
                pause = _FIRST_PAUSE if lived > _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)
                _LOG.error(
                    "worker %d ended (%s) and is started again in %.1f s", worker.process.pid, worker._end(), pause
                )
                if self._metrics:
                    self._metrics.worker_died(k)
                if self._stopping.wait(pause):
                    return
                with self._lock:
                    self._workers[k] = self._start(k)

    def _end(self, workers: Sequence[_Worker]) -> None:
        self._stopping.set()
        for worker in workers:
            worker.process.terminate()
        limit = time.monotonic() + self._plan.settings.grace_s + 10
        for worker in workers:
            if not worker.ended.wait(max(0.0, limit - time.monotonic())):
                _LOG.error("worker %d did not stop in time and is killed", worker.process.pid)
                worker.process.kill()
                worker.ended.wait()
