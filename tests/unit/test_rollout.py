"""Versions come into force in all workers at once, or not at all."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from router_ml.rollout import Generation, Refusal, Rollout, Versions
from router_ml.traffic import POINTER, Traffic, write_traffic
from router_ml.types import Request
from router_ml.versions import publish

MakeVersion = Callable[..., Path]


class InThisThread:
    """A worker without a process."""

    def __init__(self, folder: Path, name: str, generation: Generation) -> None:
        self.versions = Versions(folder, Traffic(name), generation.value, generation)
        self.seen: list[int] = []
        self.generation = generation

    def prepare(self, number: int, traffic: Traffic) -> Future[Refusal | str | None]:
        self.seen.append(self.generation.value)
        done: Future[Refusal | str | None] = Future()
        done.set_result(self.versions.prepare(number, traffic))
        return done

    def settle(self, refusal: Refusal | None) -> None:
        self.versions.settle(refusal)

    @property
    def version(self) -> str:
        return self.versions.decide(Request(text="bab xrob")).version


class Site:
    """A folder with one version in force in two workers."""

    def __init__(self, folder: Path, make_version: MakeVersion) -> None:
        self.folder, self.make = folder, make_version
        self.generation: Generation = ctypes.c_ulong(0)
        self.first = publish(folder, make_version("first"))
        self.workers = [InThisThread(folder, self.first, self.generation) for _ in range(2)]
        self.rollout = Rollout(folder, Traffic(self.first), self.generation, lambda: self.workers)

    @property
    def in_force(self) -> set[str]:
        return {worker.version for worker in self.workers}


@pytest.fixture
def site(tmp_path: Path, make_version: MakeVersion) -> Site:
    return Site(tmp_path / "bundles", make_version)


def test_nothing_new_changes_nothing(site: Site) -> None:
    site.rollout.step()
    assert (site.in_force, site.generation.value) == ({"first"}, 0)


def test_a_new_version_is_prepared_by_all_before_any_decides_by_it(site: Site) -> None:
    publish(site.folder, site.make("second"))
    site.rollout.step()
    assert site.in_force == {"second"}
    assert [worker.seen for worker in site.workers] == [[0], [0]]


def test_a_version_that_one_worker_cannot_prepare_comes_into_force_in_none(site: Site) -> None:
    site.workers[1].prepare = lambda number, traffic: _answer("no memory")  # type: ignore[method-assign]
    name = publish(site.folder, site.make("second"))
    site.rollout.step()
    assert site.in_force == {"first"}
    for worker in site.workers:
        assert worker.versions.describe().refused == f"{name}: no memory"


def test_without_a_worker_nothing_is_switched_until_there_is_one(site: Site) -> None:
    publish(site.folder, site.make("second"))
    workers, site.workers = site.workers, []
    site.rollout.step()
    assert site.generation.value == 0
    site.workers = workers
    site.rollout.step()
    assert site.in_force == {"second"}


def test_a_bad_version_is_refused_once_and_forgotten_when_a_good_one_comes(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    bad = publish(site.folder, site.make("bad", "p_success", 0.2))
    for _ in range(3):
        site.rollout.step()
    assert site.in_force == {"first"}
    assert [
        record.message for record in caplog.records if bad in record.message and "is refused" in record.message
    ] == [record.message for record in caplog.records]
    assert len(caplog.records) == 1
    assert "canary prompt" in (site.workers[0].versions.describe().refused or "")
    publish(site.folder, site.make("third"))
    site.rollout.step()
    assert site.in_force == {"third"}
    assert site.workers[0].versions.describe().refused is None


def test_a_pointer_to_nothing_is_refused_and_pointing_back_is_no_change(site: Site) -> None:
    write_traffic(site.folder, Traffic("nowhere"))
    site.rollout.step()
    assert "has no manifest.json" in (site.workers[0].versions.describe().refused or "")
    write_traffic(site.folder, Traffic(site.first))
    site.rollout.step()
    (site.folder / POINTER).write_text("../up")
    site.rollout.step()
    assert (site.in_force, site.generation.value) == ({"first"}, 0)


def test_only_the_router_in_force_and_the_one_before_stay_in_memory(site: Site) -> None:
    for k in range(4):
        publish(site.folder, site.make(f"next-{k}"))
        site.rollout.step()
    assert site.in_force == {"next-3"}
    assert all(sorted(worker.versions._opened) == [3, 4] for worker in site.workers)


def test_an_older_version_comes_back_when_the_pointer_says_so(site: Site) -> None:
    publish(site.folder, site.make("second"))
    site.rollout.step()
    write_traffic(site.folder, Traffic(site.first))
    site.rollout.step()
    assert site.in_force == {"first"}


def _answer(reason: str) -> Future[Refusal | str | None]:
    done: Future[Refusal | str | None] = Future()
    done.set_result(reason)
    return done
