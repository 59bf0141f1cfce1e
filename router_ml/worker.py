"""What one serving process does: open the version, listen, journal, follow the versions it is told of."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from router_ml.catalog import Catalog
from router_ml.errors import RouterMlError
from router_ml.exploration import Exploration
from router_ml.journal import Journal
from router_ml.logs import set_up_logs
from router_ml.meter import JournalWatch, Memory, Meter
from router_ml.rollout import Generation, Refusal, Versions
from router_ml.router import Router
from router_ml.server import Server, ServerSettings, serve
from router_ml.shadow import ShadowQueue
from router_ml.tracing import Tracer, TraceSettings
from router_ml.traffic import Traffic
from router_ml.versions import open_version


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """What every worker of a server is started with."""

    settings: ServerSettings
    catalog: Catalog | None = None
    """In place of each version's own."""
    open_journal: Callable[[], Journal | None] = lambda: None
    digests: bool = False
    """Whether the journal keeps digests of prompts in place of their text."""
    exploration: Exploration | None = None
    """What is left to chance; None: nothing."""
    traces: TraceSettings | None = None
    logs: tuple[str, str] = ("text", "warning")
    """Format and level."""

    def open_version(self, path: Path, like: Router | None = None) -> Router:
        """A version as this server serves it; BundleError when it will not do."""
        return open_version(path, self.catalog, digests=self.digests, exploration=self.exploration, like=like)


@dataclass
class Serving:
    """A server with the versions that it decides by and what it writes to; in use until `close`."""

    versions: Versions
    server: Server
    _ends: ExitStack

    @classmethod
    def open(
        cls,
        plan: ServingPlan,
        folder: Path,
        traffic: Traffic,
        number: int,
        generation: Generation,
        memory: Memory | None = None,
    ) -> Serving:
        """Bind the port; BundleError or InputError when a version, the journal or the address will not do.

        `number` is the generation that `traffic`, of versions in `folder`, is of, `generation` what is in force at any
        time; `memory` is what is counted into, if anything is.
        """
        with ExitStack() as ends:  # in the opposite order
            meter = Meter(memory) if memory else None
            tracer = Tracer(plan.traces) if plan.traces else None
            if tracer:
                ends.callback(tracer.close)
            journal = plan.open_journal()
            if journal and meter:
                ends.callback(JournalWatch(meter, journal).close)
            if journal:
                ends.callback(journal.close)
            shadows = ShadowQueue(journal, meter)
            ends.callback(shadows.close)
            versions = Versions(folder, traffic, number, generation, plan.open_version, shadows)
            server = serve(versions, settings=plan.settings, journal=journal, meter=meter, tracer=tracer)
            gc.collect()
            gc.freeze()  # what lives as long as the process need not be walked again and again
            return cls(versions, server, ends.pop_all())

    def prepare(self, number: int, traffic: Traffic) -> Future[Refusal | str | None]:
        """As `rollout.Worker` asks, here in a thread of this process."""
        done: Future[Refusal | str | None] = Future()
        threading.Thread(target=lambda: done.set_result(self.versions.prepare(number, traffic)), daemon=True).start()
        return done

    def settle(self, refusal: Refusal | None) -> None:
        """Drop what is out of use, tell of a refusal."""
        self.versions.settle(refusal)
        self.server.tell_refused(None if refusal is None else refusal.name)

    def close(self) -> None:
        """After the server stopped: what was decided reaches the disk."""
        self._ends.close()


def run_worker(
    plan: ServingPlan,
    folder: Path,
    traffic: Traffic,
    number: int,
    generation: Generation,
    memory: Memory | None,
    pipe: Connection,
) -> None:
    """The life of a worker process; `pipe` leads to its supervisor, whose end is also the worker's."""
    set_up_logs(*plan.logs)
    try:
        serving = Serving.open(plan, folder, traffic, number, generation, memory)
    except RouterMlError as error:
        pipe.send(("failed", error))
        return
    threading.Thread(target=_obey, args=(serving, pipe), name="router-ml-supervised", daemon=True).start()
    try:
        serving.server.run(ready=lambda: pipe.send(("ready", None)))
    finally:
        serving.close()


def _obey(serving: Serving, pipe: Connection) -> None:
    try:
        while True:
            order, *values = pipe.recv()
            if order == "prepare":
                pipe.send(("begun", None))
                pipe.send(("prepared", serving.versions.prepare(*values)))
            else:
                serving.settle(*values)
    except (EOFError, OSError):  # the supervisor is gone: nobody would start or stop this process any more
        os.kill(os.getpid(), signal.SIGTERM)
