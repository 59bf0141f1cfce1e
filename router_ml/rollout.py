"""A new version comes into force: prepared by every worker first, then switched to in all of them at once.

What is in force is one number, the generation, in memory that all workers share. A worker holds a
router for each generation that it prepared, and looks the number up at each decision: so the
switch is one write, and no decision waits for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from router_ml.bundle import read_manifest
from router_ml.errors import BundleError, InputError, RouterMlError
from router_ml.router import Router
from router_ml.types import Decision, Description, Request
from router_ml.versions import POINTER, current, open_version

_LOOK_SECONDS = 0.2
_LOG = logging.getLogger(__name__)


class Generation(Protocol):
    """A whole number in memory, e.g. of `multiprocessing.sharedctypes`."""

    value: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that was not taken."""

    name: str
    """Of its folder."""
    reason: str


class Versions:
    """The routers of one worker, by generation; decides as the one in force does."""

    def __init__(
        self,
        router: Router,
        number: int,
        generation: Generation,
        open_next: Callable[[Path, Router], Router] = lambda path, before: open_version(path, like=before),
    ) -> None:
        """`router` is that of generation `number`; `open_next` opens a version that follows another one."""
        self._generation = generation
        self._open = open_next
        self._routers = {number: router}
        self._refusal: Refusal | None = None

    @property
    def router(self) -> Router:
        """The one in force."""
        return self._routers[self._generation.value]

    def decide(self, request: Request) -> Decision:
        return self.router.decide(request)

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        return self.router.decide_batch(requests)

    def describe(self) -> Description:
        """The version in force, and the one that was refused since, if any."""
        refused = "" if self._refusal is None else f"{self._refusal.name}: {self._refusal.reason}"
        return replace(self.router.describe(), refused=refused or None)

    def prepare(self, generation: int, path: Path) -> str | None:
        """Open a version for a generation to come; why not, or None when it is ready."""
        try:
            self._routers[generation] = self._open(path, self.router)
        except (RouterMlError, OSError) as error:
            return str(error)
        except Exception as error:  # whatever a damaged bundle provokes, the version in force stays
            _LOG.exception("%s: cannot be opened", path)
            return f"{type(error).__name__}: {error}"
        return None

    def settle(self, refusal: Refusal | None) -> None:
        """Keep the router in force and the one before it, on which a decision may still rest; note a refusal."""
        self._refusal = refusal
        in_force = self._generation.value
        for generation in [each for each in self._routers if not in_force - 1 <= each <= in_force]:
            del self._routers[generation]


class Worker(Protocol):
    """What prepares versions: `Versions` in this process behind a thread, or another process."""

    def prepare(self, generation: int, path: Path) -> Future[str | None]:
        """Begin to prepare; the result is why not, or None."""

    def settle(self, refusal: Refusal | None) -> None:
        """The switch was made, or the version refused."""


class Rollout:
    """Looks at the pointer of a folder of versions, and brings what it names into force. Not for several threads."""

    def __init__(
        self,
        folder: Path,
        in_force: str,
        generation: Generation,
        workers: Callable[[], Sequence[Worker]],
        told: Callable[[tuple[str, str] | None], None] | None = None,
    ) -> None:
        """`told` hears name and bundle hash of each version that came into force, and None of each refused one."""
        self._folder = folder
        self._generation = generation
        self._workers = workers
        self._told = told
        self._seen: str | None = in_force
        self.in_force = in_force
        """Name of the version that all workers decide by."""

    def keep_looking(self, stopping: threading.Event, turn: AbstractContextManager[object] | None = None) -> None:
        """Look again and again until `stopping`; each time in the context `turn`, if given."""
        while not stopping.wait(_LOOK_SECONDS):
            with turn or nullcontext():
                self.step()

    def step(self, timeout_s: float = 120.0) -> None:
        """One look; returns when what the pointer names is served or refused, at once where it names nothing new."""
        try:
            name = current(self._folder)
        except InputError as error:
            if self._seen != str(error):
                self._seen = str(error)
                self._refuse(Refusal(POINTER, str(error)))
            return
        workers = list(self._workers())
        if name is None or name == self._seen or not workers:  # without workers nobody could refuse it
            return
        self._seen = name
        if name == self.in_force:  # pointed back to before another one was taken
            return
        following = self._generation.value + 1
        try:
            manifest, digest, _ = read_manifest(self._folder / name)
        except BundleError as error:
            self._refuse(Refusal(name, str(error)))
            return
        try:
            waiting = [worker.prepare(following, self._folder / name) for worker in workers]
            reasons = [future.result(timeout_s) for future in waiting]
        except (TimeoutError, OSError) as error:
            reasons = [f"a worker did not prepare it ({error or 'no answer in time'})"]
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is not None:
            self._refuse(Refusal(name, reason))
            return
        self._generation.value = following
        self.in_force = name
        for worker in workers:
            worker.settle(None)
        _LOG.info("version %s is in force", name)
        if self._told:
            self._told((manifest.version, digest))

    def _refuse(self, refusal: Refusal) -> None:
        _LOG.error("version %s is refused, %s stays in force: %s", refusal.name, self.in_force, refusal.reason)
        for worker in self._workers():
            worker.settle(refusal)
        if self._told:
            self._told(None)
