"""Versions come into force in all workers at once, or not at all."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from router_ml import bundle
from router_ml.bundle import Manifest
from router_ml.catalog import Catalog
from router_ml.experiment import Arm, Experiment, Unit
from router_ml.rollout import Generation, Refusal, Rollout, Versions
from router_ml.traffic import POINTER, InForce, Traffic, write_traffic
from router_ml.types import Request
from router_ml.versions import add_version, publish

MakeVersion = Callable[..., Path]
SESSIONS = [Request(text="bab xrob", session_id=f"s{k}") for k in range(30)]


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

    def split(self, challenger: str, *, share: float = 0.5, start: float = 0.0) -> Traffic:
        arms = (Arm("control", self.first), Arm("second", challenger))
        name = "trial" if start == 0 else "later"
        return Traffic(self.first, "layer", (Experiment(name, name, Unit.SESSION, None, share, start, arms),))

    def changed(self, name: str) -> tuple[Manifest, bytes, Catalog, bytes]:
        manifest, _, parts = bundle.verify(self.folder / self.first)
        catalog = Catalog.from_dict(json.loads(parts[bundle.CATALOG]))
        return replace(manifest, version=name), parts[bundle.GRAPH], catalog, parts[bundle.TOKENIZER]

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


def test_a_worker_that_ended_before_it_began_refuses_nothing(site: Site) -> None:
    site.workers[1].prepare = lambda number, traffic: _ended()  # type: ignore[method-assign]
    publish(site.folder, site.make("second"))
    site.rollout.step()
    assert (site.workers[0].version, site.generation.value) == ("second", 1)


def test_what_no_worker_has_judged_is_tried_again(site: Site) -> None:
    own = [worker.prepare for worker in site.workers]
    for worker in site.workers:
        worker.prepare = lambda number, traffic: _ended()  # type: ignore[method-assign]
    publish(site.folder, site.make("second"))
    site.rollout.step()
    assert (site.in_force, site.generation.value) == ({"first"}, 0)
    for worker, prepare in zip(site.workers, own, strict=True):
        worker.prepare = prepare  # type: ignore[method-assign]
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
    assert site.workers[0].versions.describe().refused is None
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


def test_a_test_comes_into_force_in_all_workers_and_only_what_is_new_is_opened(site: Site) -> None:
    second = add_version(site.folder, site.make("second"))
    write_traffic(site.folder, site.split(second, share=0.25))
    site.rollout.step()
    before = [worker.versions._opened[1] for worker in site.workers]
    assert [list(opened) for opened in before] == [[site.first, second]] * 2
    assert all(
        worker.versions._opened[0][site.first] is opened[site.first]
        for worker, opened in zip(site.workers, before, strict=True)
    )
    write_traffic(site.folder, site.split(second, share=0.5))
    site.rollout.step()
    for worker, opened in zip(site.workers, before, strict=True):
        after = worker.versions._opened[2]
        assert all(after[name] is opened[name] for name in (site.first, second))
    arms = [[worker.versions.decide(request).arm for request in SESSIONS] for worker in site.workers]
    assert arms[0] == arms[1]
    assert set(arms[0]) == {"trial/control", "trial/second"}


def test_a_version_that_changed_under_its_name_is_opened_anew(site: Site) -> None:
    before = site.workers[0].versions._opened[0][site.first]
    bundle.write(site.folder / site.first, *site.changed("first, again"))
    write_traffic(site.folder, site.split(site.first))
    site.rollout.step()
    after = site.workers[0].versions._opened[1][site.first]
    assert (after is before, after.describe().version) == (False, "first, again")


@pytest.mark.parametrize("what", ["canaries", "missing", "embeddings"])
def test_a_bad_challenger_refuses_the_whole_document_by_its_name(what: str, site: Site, embedding_bundle: Path) -> None:
    bad = "nowhere"
    if what != "missing":
        source = embedding_bundle if what == "embeddings" else site.make("bad", "p_success", 0.2)
        bad = add_version(site.folder, source)
    second = add_version(site.folder, site.make("second"))
    good = site.split(second, share=0.2)
    write_traffic(site.folder, good)
    site.rollout.step()
    write_traffic(site.folder, replace(good, tests=(*good.tests, *site.split(bad, share=0.2, start=0.5).tests)))
    site.rollout.step()
    assert site.rollout.in_force == good
    for worker in site.workers:
        told = worker.versions.describe()
        assert (told.refused or "").startswith(f"{bad}: ")
        assert [test.name for test in told.tests] == ["trial"]


def test_what_is_told_of_a_switch_names_versions_and_shares(site: Site) -> None:
    heard: list[InForce | None] = []
    rollout = Rollout(site.folder, Traffic(site.first), site.generation, lambda: site.workers, heard.append)
    second = add_version(site.folder, site.make("second"))
    write_traffic(site.folder, site.split(second, share=0.25))
    rollout.step()
    write_traffic(site.folder, site.split("nowhere"))
    rollout.step()
    (told, refusal) = heard
    assert refusal is None and told is not None
    assert (told.version, told.tests[0].share, [arm.version for arm in told.tests[0].arms]) == (
        "first",
        0.25,
        ["first", "second"],
    )


def _ended() -> Future[Refusal | str | None]:
    done: Future[Refusal | str | None] = Future()
    done.cancel()
    return done


def _answer(reason: str) -> Future[Refusal | str | None]:
    done: Future[Refusal | str | None] = Future()
    done.set_result(reason)
    return done
