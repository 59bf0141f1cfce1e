"""The processes of a measurement: a server of its own, the generators, and what they use of the machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from router_ml.bench.load import Found
from router_ml.errors import RouterMlError

_HAS_PROC = Path("/proc/self/stat").is_file()
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ADDRESS = re.compile(r" on (\S+:\d+)")
_START_S = 60.0
_STOP_S = 15.0
_HEAD_START_S = 0.3
"""Between the order to generators and their first call, so that all have connected."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where; empty: nothing can be pinned on this system."""

    server: tuple[int, ...]
    generators: tuple[int, ...]

    @classmethod
    def split(cls) -> Cores:
        """The first core for the server, the others for the generators; one core alone is shared."""
        if not hasattr(os, "sched_setaffinity"):
            return cls((), ())
        first, *others = sorted(os.sched_getaffinity(0))
        return cls((first,), tuple(others or (first,)))


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """This thread, and what it starts meanwhile, on these cores alone."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class ServerProcess:
    """A server and its workers, if it has any."""

    def __init__(self, process: subprocess.Popen[str], address: str, ready_s: float) -> None:
        self._process = process
        self.address = address
        self.ready_s = ready_s
        """From its start to the line that says it answers."""

    def cpu_s(self) -> float | None:
        """User and system time so far, all its processes together; None where the system does not tell."""
        return sum(map(_cpu_s, _tree(self._process.pid))) if _HAS_PROC else None

    def resident_bytes(self) -> int | None:
        """Of its largest process; None where the system does not tell."""
        return max(map(_resident_bytes, _tree(self._process.pid))) if _HAS_PROC else None


@contextmanager
def spawned(argv: Sequence[str], cores: Sequence[int]) -> Iterator[ServerProcess]:
    """Run `python -m ...argv`, which prints a line with "on HOST:PORT" once it answers; stopped at the end.

    RouterMlError with what it said when it does not come up.
    """
    begin = time.perf_counter()
    with pinned(cores):
        process = subprocess.Popen(
            [sys.executable, "-m", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    watch = threading.Timer(_START_S, process.kill)
    watch.start()
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        ready_s = time.perf_counter() - begin
        watch.cancel()
        found = _ADDRESS.search(line)
        if found is None:
            process.kill()
            said = (process.stderr.read() or line).strip() or f"it said nothing in {ready_s:.0f} s"
            raise RouterMlError(f"the server to measure did not start: {said}")
        # What it says from now on must not fill the pipe and stop it.
        for stream in (process.stdout, process.stderr):
            threading.Thread(target=stream.read, daemon=True).start()
        yield ServerProcess(process, found[1], ready_s)
    finally:
        watch.cancel()
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Generators:
    """Processes that make load, each on a core of its own where there are enough."""

    def __init__(self, cores: Sequence[int], clients: int) -> None:
        self.n = max(1, min(clients, len(cores)))
        self._pool = ProcessPoolExecutor(self.n, get_context("spawn"), _stay, (tuple(cores),))

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()

    def one(self, load: Callable[..., Found], *arguments: object) -> Found:
        """What one generator finds."""
        return self._results([self._pool.submit(load, *arguments)])

    def all(self, load: Callable[[int, float], Callable[[], Found]]) -> Found:
        """What all find who begin at the same time: `load` gives the work of generator k, to begin at a time."""
        start = time.monotonic() + _HEAD_START_S
        return self._results([self._pool.submit(load(k, start)) for k in range(self.n)])

    def _results(self, under_way: Sequence[Future[Found]]) -> Found:
        try:
            return Found.together([each.result() for each in under_way])
        except BrokenProcessPool:
            raise RouterMlError("a process that makes load was killed; is there memory enough?") from None


def _stay(cores: tuple[int, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command ends them
    if cores:
        os.sched_setaffinity(0, cores)


def _tree(pid: int) -> list[int]:
    """A process and all that it started, and so on."""
    pids = [pid]
    for each in pids:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            pids += map(int, _read(task).split())
    return pids


def _cpu_s(pid: int) -> float:
    # The name, in brackets, may hold spaces.
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S if fields else 0.0


def _resident_bytes(pid: int) -> int:
    fields = _read(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * _PAGE_BYTES if fields else 0


def _read(path: Path) -> str:
    """Empty where the process or thread has just ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
