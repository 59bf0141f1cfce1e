"""What one serving process does: open the version, listen, journal, follow the versions it is told of."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from router_ml.catalog import Catalog
from router_ml.errors import RouterMlError
from router_ml.journal import Journal
from router_ml.rollout import Generation, Refusal, Versions
from router_ml.router import Router
from router_ml.server import Server, ServerSettings, serve
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

    def open_version(self, path: Path, like: Router | None = None) -> Router:
        """A version as this server serves it; BundleError when it will not do."""
        return open_version(path, self.catalog, digests=self.digests, like=like)


@dataclass
class Serving:
    """A server with the versions that it decides by and the journal that it writes; in use until `close`."""

    versions: Versions
    server: Server
    journal: Journal | None

    @classmethod
    def open(cls, plan: ServingPlan, path: Path, number: int, generation: Generation) -> Serving:
        """Bind the port; BundleError or InputError when the version, the journal or the address will not do.

        `number` is the generation that the version at `path` is of; `generation` is what is in force at any time.
        """
        versions = Versions(plan.open_version(path), number, generation, plan.open_version)
        journal = plan.open_journal()
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be walked again and again
        try:
            return cls(versions, serve(versions, settings=plan.settings, journal=journal), journal)
        except BaseException:
            if journal:
                journal.close()
            raise

    def prepare(self, number: int, path: Path) -> Future[str | None]:
        """As `rollout.Worker` asks, here in a thread of this process."""
        done: Future[str | None] = Future()
        threading.Thread(target=lambda: done.set_result(self.versions.prepare(number, path)), daemon=True).start()
        return done

    def settle(self, refusal: Refusal | None) -> None:
        """Drop what is out of use, tell of a refusal."""
        self.versions.settle(refusal)
        self.server.tell_refused(None if refusal is None else refusal.name)

    def close(self) -> None:
        """After the server stopped: what was decided reaches the disk."""
        if self.journal:
            self.journal.close()


def run_worker(plan: ServingPlan, path: Path, number: int, generation: Generation, pipe: Connection) -> None:
    """The life of a worker process; `pipe` leads to its supervisor, whose end is also the worker's."""
    try:
        serving = Serving.open(plan, path, number, generation)
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
                pipe.send(("prepared", serving.versions.prepare(*values)))
            else:
                serving.settle(*values)
    except (EOFError, OSError):  # the supervisor is gone: nobody would start or stop this process any more
        os.kill(os.getpid(), signal.SIGTERM)
