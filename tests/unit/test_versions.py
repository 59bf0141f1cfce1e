"""A folder of versions, its pointer, and canaries: what is published, kept, refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from router_ml import bundle
from router_ml.canary import request_of
from router_ml.errors import BundleError
from router_ml.experiment import Arm, Experiment, Shadow, Unit
from router_ml.router import Router
from router_ml.traffic import POINTER, Traffic, read_traffic, write_traffic
from router_ml.versions import add_version, drop_old, open_version, publish

MakeVersion = Callable[..., Path]


def test_a_published_bundle_is_the_one_that_the_pointer_names(tiny_bundle: Path, tmp_path: Path) -> None:
    assert read_traffic(tmp_path / "none yet") is None
    name = publish(tmp_path, tiny_bundle)
    assert read_traffic(tmp_path) == Traffic(name)
    assert bundle.verify(tmp_path / name)[1] == bundle.verify(tiny_bundle)[1]
    assert {path.name for path in tmp_path.iterdir()} == {POINTER, name}


def test_publishing_it_again_changes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    name = publish(tmp_path, tiny_bundle)
    before = (tmp_path / name / bundle.MANIFEST).stat().st_mtime_ns
    assert publish(tmp_path, tiny_bundle) == name
    assert (tmp_path / name / bundle.MANIFEST).stat().st_mtime_ns == before


def test_the_newest_versions_stay_and_older_ones_and_strangers_are_told_apart(
    make_version: MakeVersion, tmp_path: Path
) -> None:
    folder = tmp_path / "bundles"
    (folder / "notes").mkdir(parents=True)
    names = [publish(folder, make_version(f"v{k}")) for k in range(5)]
    left = {path.name for path in folder.iterdir()}
    assert left == {POINTER, "notes", *names[2:]}


def test_versions_of_a_test_stay_however_many_come_after_them(make_version: MakeVersion, tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    champion, challenger, shadow, *_ = names = [add_version(folder, make_version(f"v{k}")) for k in range(7)]
    arms = (Arm("control", champion), Arm("v1", challenger))
    test = Experiment("trial", "", Unit.SESSION, None, 0.1, 0.0, arms)
    looks_on = Shadow("look", "", Unit.SESSION, None, 0.1, shadow)
    write_traffic(folder, Traffic(champion, "layer", (test,), (looks_on,)))
    drop_old(folder)
    assert {path.name for path in folder.iterdir()} == {POINTER, champion, challenger, shadow, *names[-2:]}


def test_a_damaged_bundle_is_not_published(make_version: MakeVersion, tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    name = publish(folder, make_version("good"))
    damaged = make_version("damaged")
    (damaged / bundle.GRAPH).write_bytes(b"")
    with pytest.raises(BundleError, match="changed or cut short"):
        publish(folder, damaged)
    assert read_traffic(folder) == Traffic(name)
    assert {path.name for path in folder.iterdir()} == {POINTER, name}


# -- canaries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["tiny_bundle", "embedding_bundle"])
def test_a_version_answers_its_canaries_where_it_was_made(fixture: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(fixture)
    router = open_version(folder)
    canaries = router.bundle.manifest.canaries
    assert len(canaries) >= 4
    assert {canary.segment for canary in canaries} >= {None, router.bundle.manifest.segments[0]}
    lengths = [router.decide(request_of(canary)).candidates for canary in canaries]
    assert len(lengths) == len(canaries)


@pytest.mark.parametrize(
    ("field", "change"), [("p_success", 0.01), ("output_tokens", 100.0), ("latency_ms", 1e4), ("output_tokens", None)]
)
def test_a_version_that_answers_otherwise_is_refused_by_name(
    field: str, change: float | None, make_version: MakeVersion
) -> None:
    folder = make_version("odd", field, change)
    Router.load(folder)  # whole, and still not to be trusted here
    with pytest.raises(
        BundleError, match=rf"version odd does not answer as where it was made.*canary prompt 1.*`{field}`"
    ):
        open_version(folder)


def test_a_bundle_of_format_1_has_no_canaries_and_is_served(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "old"))
    data = json.loads((folder / bundle.MANIFEST).read_text())
    del data["canaries"], data["manifest_sha256"]
    data["format"] = 1
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    data["manifest_sha256"] = hashlib.sha256(canonical).hexdigest()
    (folder / bundle.MANIFEST).write_text(json.dumps(data))
    router = open_version(folder)
    assert router.bundle.manifest == replace(bundle.load(tiny_bundle).manifest, canaries=())
    assert router.route("bab xrob").candidates == Router.load(tiny_bundle).route("bab xrob").candidates
