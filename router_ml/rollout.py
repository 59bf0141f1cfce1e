"""What a pointer names comes into force: prepared by every worker first, then switched to in all of them at once.

What is in force is one number, the generation, in memory that all workers share. A worker holds what
decides for each generation that it prepared, and looks the number up at each decision: so the
switch is one write, and no decision waits for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from router_ml.bundle import read_manifest
from router_ml.errors import BundleError, InputError, RouterMlError
from router_ml.router import Router
from router_ml.shadow import ShadowQueue
from router_ml.split_router import SplitRouter
from router_ml.traffic import POINTER, InForce, Traffic, in_force, read_traffic
from router_ml.types import Decision, Description, Request
from router_ml.versions import open_version

_LOOK_SECONDS = 0.2
_LOG = logging.getLogger(__name__)


class Generation(Protocol):
    """A whole number in memory, e.g. of `multiprocessing.sharedctypes`."""

    value: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was not taken."""

    name: str
    """Of the version's folder, or of the pointer where that is wrong in itself."""
    reason: str


class Versions:
    """What one worker decides by, by generation; decides as the one in force does."""

    def __init__(
        self,
        folder: Path,
        traffic: Traffic,
        number: int,
        generation: Generation,
        open_next: Callable[[Path, Router | None], Router] = lambda path, before: open_version(path, like=before),
        shadows: ShadowQueue | None = None,
    ) -> None:
        """Opens what `traffic` names in `folder`, as generation `number`; BundleError when it will not do.

        `open_next` opens a version that follows another one, if any. Without `shadows` no shadow decides.
        """
        self._folder = folder
        self._generation = generation
        self._open = open_next
        self._shadows = shadows
        self._refusal: Refusal | None = None
        self._opened: dict[int, dict[str, Router]] = {}
        self._deciders: dict[int, Router | SplitRouter] = {}
        for name in traffic.versions:
            self._open_beside(number, name)
        self._set_up(number, traffic)

    def decide(self, request: Request) -> Decision:
        return self._deciders[self._generation.value].decide(request)

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        return self._deciders[self._generation.value].decide_batch(requests)

    def decide_each(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        return self._deciders[self._generation.value].decide_each(requests)

    def describe(self) -> Description:
        """What is in force, and what was refused since, if anything."""
        refused = "" if self._refusal is None else f"{self._refusal.name}: {self._refusal.reason}"
        return replace(self._deciders[self._generation.value].describe(), refused=refused or None)

    def prepare(self, generation: int, traffic: Traffic) -> Refusal | None:
        """Open what is not open yet for a generation to come; why not, or None when it is ready."""
        name = POINTER
        try:
            for name in traffic.versions:
                self._open_beside(generation, name)
            self._set_up(generation, traffic)
        except (RouterMlError, OSError) as error:
            return Refusal(name, str(error))
        except Exception as error:  # whatever a damaged bundle provokes, what is in force stays
            _LOG.exception("%s: cannot be opened", name)
            return Refusal(name, f"{type(error).__name__}: {error}")
        return None

    def settle(self, refusal: Refusal | None) -> None:
        """Keep what is in force and what was before it, on which a decision may still rest; note a refusal."""
        self._refusal = refusal
        now = self._generation.value
        for kept in (self._opened, self._deciders):
            for generation in [each for each in kept if not now - 1 <= each <= now]:
                del kept[generation]

    def _open_beside(self, generation: int, name: str) -> None:
        """Open a version for a generation, or take the one that is open already; the champion comes first."""
        path = self._folder / name
        before = self._opened.get(self._generation.value, {})
        router = before.get(name)
        if router is None or read_manifest(path)[1] != router.bundle.sha256:
            router = self._open(path, next(iter(before.values()), None))
        beside = self._opened.setdefault(generation, {})
        beside[name] = router
        champion = next(iter(beside.values()))
        if (router.bundle.tokenizer is None) != (champion.bundle.tokenizer is None):
            kind = "embeddings alone" if router.bundle.tokenizer is None else "text"
            raise BundleError(f"{path}: was trained on {kind}, unlike the champion: no request could be given to both")

    def _set_up(self, generation: int, traffic: Traffic) -> None:
        routers = self._opened[generation]
        tested = traffic.tests or traffic.shadows
        self._deciders[generation] = (
            SplitRouter(traffic, routers, self._shadows) if tested else routers[traffic.champion]
        )


class Worker(Protocol):
    """What prepares versions: `Versions` in this process behind a thread, or another process."""

    def prepare(self, generation: int, traffic: Traffic) -> Future[Refusal | str | None]:
        """Begin to prepare; the result is what was refused, or why the worker failed, or None.

        Cancelled where the worker ended before it began.
        """

    def settle(self, refusal: Refusal | None) -> None:
        """The switch was made, or the versions refused."""


class Rollout:
    """Looks at the pointer of a folder of versions, and brings what it names into force. Not for several threads."""

    def __init__(
        self,
        folder: Path,
        in_force: Traffic,
        generation: Generation,
        workers: Callable[[], Sequence[Worker]],
        told: Callable[[InForce | None], None] | None = None,
    ) -> None:
        """`told` hears of all that came into force, and None of each refusal."""
        self._folder = folder
        self._generation = generation
        self._workers = workers
        self._told = told
        self._seen: Traffic | str = in_force
        self.in_force = in_force
        """What all workers decide by."""

    def keep_looking(self, stopping: threading.Event, turn: AbstractContextManager[object] | None = None) -> None:
        """Look again and again until `stopping`; each time in the context `turn`, if given."""
        while not stopping.wait(_LOOK_SECONDS):
            with turn or nullcontext():
                self.step()

    def step(self, timeout_s: float = 120.0) -> None:
        """One look; returns when what the pointer names is served or refused, at once where it names nothing new."""
        try:
            traffic = read_traffic(self._folder)
        except InputError as error:
            if self._seen != str(error):
                self._seen = str(error)
                self._refuse(Refusal(POINTER, str(error)))
            return
        workers = list(self._workers())
        if traffic is None or traffic == self._seen or not workers:  # without workers nobody could refuse it
            return
        before, self._seen = self._seen, traffic
        if traffic == self.in_force:  # pointed back to, so that a refusal is over
            for worker in workers:
                worker.settle(None)
            return
        identity, refusal = self._identity(traffic)
        told = [refusal] if refusal else self._prepare(traffic, workers, timeout_s)
        if not told:  # nobody has judged it: those that take their places are asked at the next look
            self._seen = before
            return
        refusal = self._refusal(traffic, told)
        if refusal is not None:
            self._refuse(refusal)
            return
        self._generation.value += 1
        self.in_force = traffic
        for worker in workers:
            worker.settle(None)
        _LOG.info("version %s is in force", traffic)
        if self._told:
            self._told(in_force(traffic, identity))

    def _identity(self, traffic: Traffic) -> tuple[dict[str, tuple[str, str]], Refusal | None]:
        """Version name and bundle hash of each folder, as far as there is one."""
        identity: dict[str, tuple[str, str]] = {}
        for name in traffic.versions:
            try:
                manifest, digest, _ = read_manifest(self._folder / name)
            except BundleError as error:
                return identity, Refusal(name, str(error))
            identity[name] = manifest.version, digest
        return identity, None

    def _prepare(self, traffic: Traffic, workers: Sequence[Worker], timeout_s: float) -> list[Refusal | str | None]:
        """Let all workers prepare it; what each of them said, but for those that ended before they began."""
        told: list[Refusal | str | None] = []
        try:
            for future in [worker.prepare(self._generation.value + 1, traffic) for worker in workers]:
                with suppress(CancelledError):  # what takes its place opens whatever is in force by then
                    told.append(future.result(timeout_s))
        except (TimeoutError, OSError) as error:
            told.append(f"a worker did not prepare it ({error or 'no answer in time'})")
        return told

    def _refusal(self, traffic: Traffic, told: Sequence[Refusal | str | None]) -> Refusal | None:
        """Why it is refused, or None."""
        refusal = next((each for each in told if each is not None), None)
        if isinstance(refusal, str):  # the worker could not say which version it was
            new = [name for name in traffic.versions if name not in self.in_force.versions]
            refusal = Refusal(next(iter(new), POINTER), refusal)
        return refusal

    def _refuse(self, refusal: Refusal) -> None:
        _LOG.error("version %s is refused, %s stays in force: %s", refusal.name, self.in_force, refusal.reason)
        for worker in self._workers():
            worker.settle(refusal)
        if self._told:
            self._told(None)
