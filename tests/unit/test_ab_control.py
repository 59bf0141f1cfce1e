"""Tests of versions on a real MLflow store: started, placed, ramped, read, halted, promoted, rolled back, followed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router_ml import bundle
from router_ml.catalog import Catalog
from router_ml.cli import main
from router_ml.exploration import Exploration
from router_ml.journal import Journal, OutcomeReport
from router_ml.router import Router
from router_ml.traffic import Traffic, read_traffic
from router_ml.types import Decision, Request, ShadowDecision
from training import registry
from training.follow import Follower
from training.ingest import ingest_journal
from training.registry import CHAMPION, RegistrySettings, TrainingRecord
from training.registry.store import client_of

EASY_WORDS, HARD_WORDS = ["bab", "bac", "ded", "fif", "gog"], ["xrob", "xvac", "xzed"]
START = 1_761_955_200_000_000
DAY = 86_400_000_000
_NUMBERS = count()


@dataclass(frozen=True)
class Store:
    """Three registered versions; each test has a registered model of its own in it."""

    run: dict[str, registry.LoggedRun]
    uri: str


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Store:
    folder = tmp_path_factory.mktemp("ab store")
    uri = f"sqlite:///{folder}/mlflow.db"
    settings = RegistrySettings(tracking_uri=uri)
    runs = {}
    manifest, _, parts = bundle.verify(tiny_bundle)
    catalog = Catalog.from_dict(json.loads(parts[bundle.CATALOG]))
    optional = parts[bundle.TOKENIZER], parts[bundle.UNCERTAINTY]
    for name in ("v1", "v2", "v3"):
        bundle.write(folder / name, replace(manifest, version=name), parts[bundle.GRAPH], catalog, *optional)
        runs[name] = registry.log_training_run(TrainingRecord(folder / name, "logs", "ab" * 32), settings)
    return Store(runs, uri)


@pytest.fixture
def model(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistrySettings]:
    """A registered model of this test alone: versions 1, 2 and 3, of which 1 is the champion."""
    settings = RegistrySettings(store.uri, model_name=f"model {next(_NUMBERS)}")
    for name, run in store.run.items():
        registry.register(run, settings, alias=CHAMPION if name == "v1" else None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    yield settings


@pytest.fixture
def ab(model: RegistrySettings, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`router-ml ab ...` on the model: what it prints as JSON; with `fails`, its error."""

    def run(*argv: str, fails: int = 0) -> Any:
        capsys.readouterr()
        status = main(["ab", *argv, "--router", model.model_name, "--json"])
        out, err = capsys.readouterr()
        assert status == fails, err
        return err if fails else json.loads(out)

    return run


@pytest.fixture
def folder(model: RegistrySettings, tmp_path: Path) -> Callable[[], Traffic]:
    """What a server that follows the champion is told after one look of the follower."""
    follower = Follower(f"models:/{model.model_name}@champion", tmp_path / "bundles")

    def look() -> Traffic:
        follower.pull()
        found = read_traffic(tmp_path / "bundles")
        assert found is not None
        assert all((tmp_path / "bundles" / name).is_dir() for name in found.versions)
        return found

    return look


def version_of(folder: str) -> str:
    return folder.partition("-")[0]


# -- starting and following ---------------------------------------------------------------------


def test_what_is_started_ramped_and_stopped_is_what_servers_are_told(
    ab: Callable[..., Any], folder: Callable[[], Traffic]
) -> None:
    assert (version_of(folder().champion), folder().tests) == ("v1", ())
    ab("start", "--challenger", "2", "--challenger", "v3", "--share", "5%", "--name", "shorter", "--segment", "chat")
    told = folder()
    (test,) = told.tests
    assert [(arm.name, version_of(arm.version)) for arm in test.arms] == [("control", "v1"), ("v2", "v2"), ("v3", "v3")]
    assert (test.name, test.unit, test.segments, test.share) == ("shorter", "session", ("chat",), 0.05)
    ab("ramp", "shorter", "--share", "20%")
    ramped = folder()
    assert ramped.layer_salt == told.layer_salt and ramped.tests[0].share == 0.2
    assert (ramped.tests[0].salt, ramped.tests[0].start, ramped.tests[0].arms) == (test.salt, test.start, test.arms)
    units = [f"s{k}" for k in range(400)]
    before, after = ([t.tests[0].arm_of(t.layer_salt, unit) for unit in units] for t in (told, ramped))
    assert all(one in (None, other) for one, other in zip(before, after, strict=True))
    assert sum(arm is not None for arm in after) > 2 * sum(arm is not None for arm in before) > 0
    ab("stop", "shorter", "--reason", "enough")
    assert folder() == Traffic(told.champion)
    (ended,) = ab("status", "--all")["tests"]
    assert (ended["state"], ended["ended"]["reason"]) == ("stopped", "enough")
    assert [change["share"] for change in ended["changes"]] == [0.05, 0.2]
    assert ab("status")["tests"] == []


def test_tests_that_run_at_once_never_share_a_unit(ab: Callable[..., Any], folder: Callable[[], Traffic]) -> None:
    ab("start", "--challenger", "2", "--share", "10%", "--ceiling", "20%", "--name", "one")
    ab("start", "--challenger", "3", "--share", "10%", "--name", "two")
    told = folder()
    inside = [
        [test.arm_of(told.layer_salt, f"s{k}") is not None for k in range(2000)]
        for test in sorted(told.tests, key=lambda each: each.name)
    ]
    assert not any(a and b for a, b in zip(*inside, strict=True))
    assert all(0.15 < sum(each) / 2000 < 0.25 for each in inside)
    message = ab("start", "--challenger", "3", "--share", "1%", fails=2)
    assert "no room in the layer" in message and "`two` (which keeps 60%)" in message and "--ceiling" in message
    ab("ramp", "two", "--ceiling", "10%")
    assert "no room in the layer beside `two`" in ab("ramp", "one", "--ceiling", "50%", fails=2)
    ab("start", "--challenger", "3", "--share", "1%", "--name", "three")
    assert len(folder().tests) == 3


def test_a_new_layer_is_drawn_where_no_test_runs(ab: Callable[..., Any]) -> None:
    layers = []
    for name in ("one", "two"):
        layers.append(ab("start", "--challenger", "2", "--share", "10%", "--name", name)["layer_salt"])
        ab("stop", name)
    assert layers[0] != layers[1]


def test_a_shadow_takes_no_traffic_and_no_room(ab: Callable[..., Any], folder: Callable[[], Traffic]) -> None:
    ab("start", "--challenger", "2", "--share", "50%")
    ab("start", "--challenger", "3", "--share", "100%", "--shadow", "--unit", "request", "--name", "look")
    told = folder()
    (shadow,) = told.shadows
    assert (shadow.name, shadow.share, version_of(shadow.version), len(told.tests)) == ("look", 1.0, "v3", 1)
    assert "is a shadow" in ab("promote", "look", fails=2)


def test_a_version_that_cannot_be_had_holds_up_its_test_alone(
    ab: Callable[..., Any], store: Store, model: RegistrySettings, folder: Callable[[], Traffic], caplog: Any
) -> None:
    ab("start", "--challenger", "2", "--share", "10%", "--ceiling", "10%", "--name", "gone")
    ab("start", "--challenger", "3", "--share", "10%", "--name", "there")
    files = registry.resolve(f"models:/{model.model_name}/2")
    away = files.rename(files.with_name("away"))
    try:
        assert [test.name for test in folder().tests] == ["there"]
        assert "test gone takes no traffic" in caplog.text and "its files are gone" in caplog.text
        assert "its files are gone" in ab("start", "--challenger", "2", "--share", "1%", "--name", "x", fails=2)
    finally:
        away.rename(files)
    assert [test.name for test in folder().tests] == ["gone", "there"]


def test_a_test_whose_tags_were_changed_by_hand_stands_in_nobodys_way_but_its_own(
    ab: Callable[..., Any], model: RegistrySettings, folder: Callable[[], Traffic], caplog: Any
) -> None:
    broken = ab("start", "--challenger", "2", "--share", "10%", "--ceiling", "10%", "--name", "broken")
    ab("start", "--challenger", "3", "--share", "10%", "--ceiling", "10%", "--name", "sound")
    with client_of(model) as client:
        client.set_tag(broken["run_id"], "ab.shares", "ten percent")
    assert [test.name for test in folder().tests] == ["sound"]
    assert "of test `broken` has tags that were changed by hand" in caplog.text
    assert [test["name"] for test in ab("status")["tests"]] == ["sound"]
    assert "`broken` has tags that were changed by hand" in ab("status")["unreadable"][0]
    assert "changed by hand" in ab("start", "--challenger", "3", "--share", "10%", "--name", "more", fails=2)
    assert "there is no test `broken`; running: sound; the run" in ab("stop", "broken", fails=2)
    registry.promote(3, 1, model)
    back = ab("rollback", "--reason", "it talks too much")
    assert (back["champion"], back["stopped"], len(back["unreadable"])) == (1, ["sound"], 1)
    assert registry.champion_number(model) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--challenger", "9", "--share", "10%"), "has no version 9; there are 1, 2, 3"),
        (("--challenger", "rival", "--share", "10%"), "has no alias `rival`"),
        (("--challenger", "1", "--share", "10%"), "version 1 is the champion itself"),
        (("--challenger", "2", "--challenger", "v2", "--share", "10%"), "same version twice"),
        (("--challenger", "2", "--share", "60%"), "get at most 50% each"),
        (("--challenger", "2", "--share", "10%", "--ceiling", "5%"), "must lie between the share, 10%, and 50%"),
        (("--challenger", "2", "--share", "10%", "--name", "a/b"), "found 'a/b'"),
        (("--challenger", "2", "--challenger", "3", "--share", "10%", "--shadow"), "--shadow takes one"),
    ],
)
def test_what_cannot_be_started_is_told_to_a_person(ab: Callable[..., Any], argv: tuple[str, ...], words: str) -> None:
    assert words in ab("start", *argv, fails=2)


def test_names_and_units_that_would_mix_tests_up_are_refused(ab: Callable[..., Any]) -> None:
    ab("start", "--challenger", "2", "--share", "10%", "--ceiling", "10%", "--name", "taken")
    again = ("start", "--challenger", "3", "--share", "1%", "--name", "taken")
    assert "there is or was a test `taken`" in ab(*again, fails=2)
    message = ab("start", "--challenger", "3", "--share", "1%", "--unit", "tenant", fails=2)
    assert "--unit tenant: test `taken` takes the same segments by session" in message
    ab("stop", "taken")
    assert "there is or was a test `taken`" in ab(*again, fails=2)
    assert "there is no test `absent`; running: none" in ab("stop", "absent", fails=2)
    assert "test `taken` was stopped on" in ab("ramp", "taken", "--share", "5%", fails=2)


def test_without_champion_or_store_it_says_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ab", "start", "--challenger", "2", "--share", "10%", "--router", "nobody"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert main(argv) == 2
    assert "model `nobody` has no champion to test against" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(argv) == 2
    assert "cannot be used" in capsys.readouterr().err


# -- reading, guardrails, promotion -------------------------------------------------------------


def logs_of(path: Path, test: str, challenger: str, *, errors: float, cost: float, n: int = 6000) -> Path:
    """An outcome table of a test with equal arms but for the challenger's errors and cost."""
    rng = np.random.default_rng(7)
    inside, side = rng.random(n) < 0.8, rng.integers(2, size=n)
    arms = np.array([f"{test}/control", f"{test}/{challenger}"])[side]
    failed = rng.random(n) < np.where(side == 1, errors, 0.01)
    table = {
        "request_id": [f"{test}-{k}" for k in range(n)],
        "session_id": [f"{test}-s{k}" for k in range(n)],
        "prompt": ["bab"] * n,
        "timestamp": pa.array(START + np.arange(n) * (5 * DAY // n), pa.timestamp("us", "UTC")),
        "model": ["m"] * n,
        "version": [str(1 + k) for k in side],
        "arm": [arm if i else None for arm, i in zip(arms, inside, strict=True)],
        "success": np.where(failed, 0.0, (rng.random(n) < 0.9).astype(float)),
        "cost_usd": rng.lognormal(-6, 0.2, n) * np.where(side == 1, cost, 1.0),
        "error": pa.array([("timeout" if f else None) for f in failed], pa.string()),
    }
    pq.write_table(pa.table(table), path)
    return path


def test_a_harmful_challenger_is_halted_and_no_alias_moves(
    ab: Callable[..., Any], model: RegistrySettings, folder: Callable[[], Traffic], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    run_id = ab("start", "--challenger", "2", "--share", "40%", "--name", "bad")["run_id"]
    assert len(folder().tests) == 1
    logs = logs_of(tmp_path / "logs.parquet", "bad", "v2", errors=0.2, cost=1.0)
    (look,) = ab("watch", str(logs))["tests"]
    assert (look["test"]["state"], look["test"]["share"]) == ("halted", 0.0)
    assert "worse in" in look["halted"] and "guardrail, v2: worse in" in look["test"]["changes"][-1]["reason"]
    assert registry.champion_number(model) == 1
    assert folder().tests == ()
    client = MlflowClient(tracking_uri=model.tracking_uri)
    run = client.get_run(run_id)
    assert run.data.tags["ab.state"].startswith("halted: guardrail, v2: worse in")
    assert "bad/v2: STOP; worse in" in run.data.tags["mlflow.note.content"]
    assert "[error_rate](#/metric?runs=" in run.data.tags["mlflow.note.content"]
    files = {file.path for file in client.list_artifacts(run_id)}
    assert {"report.html", "report.txt", "reading.json", "cost_quality.png", "over_time_success.png"} <= files
    # Another look, when more has become known, adds no second point to a day that is over.
    ab("watch", str(logs_of(tmp_path / "later.parquet", "bad", "v2", errors=0.25, cost=1.0)))
    paths = client.get_metric_history(run_id, "success/v2.difference")
    assert sorted({point.step for point in paths}) == [1, 2, 3, 4, 5]
    assert len([point for point in paths if point.step < 5]) == 4
    arms = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert {each.data.tags["mlflow.runName"] for each in arms} == {"bad/control", "bad/v2"}
    errors = {each.data.tags["ab.arm"]: each.data.metrics["error_rate"] for each in arms}
    assert errors["control"] < 0.03 and errors["v2"] > 0.15
    assert "does not advise to promote v2 (stop:" in ab("promote", "bad", fails=1)
    assert registry.champion_number(model) == 1


def test_a_better_challenger_is_promoted_and_rolled_back(
    ab: Callable[..., Any], model: RegistrySettings, folder: Callable[[], Traffic], tmp_path: Path
) -> None:
    goal = ("--goal", "cost_per_request", "--margin", "error_rate=3pt", "--name", "good")
    ab("start", "--challenger", "2", "--share", "40%", "--ceiling", "40%", *goal)
    assert "it has not been read" in ab("promote", "good", fails=1)
    (look,) = ab("watch", str(logs_of(tmp_path / "a.parquet", "good", "v2", errors=0.01, cost=0.7)))["tests"]
    assert look["test"]["verdicts"]["v2"]["action"] == "promote"
    assert look["halted"] is None and look["reading"]["deciding"] == ["cost_per_request", "error_rate"]
    ab("start", "--challenger", "3", "--share", "10%", "--name", "other")
    assert len(folder().tests) == 2
    assert ab("promote", "good")["version"] == 2
    told = folder()
    assert version_of(told.champion) == "v2"
    assert [(test.name, version_of(test.arms[0].version)) for test in told.tests] == [("other", "v1")]
    tags = registry.look_up(f"models:/{model.model_name}/2", model).tags
    assert (tags["promoted_by_test"], tags["promoted_instead_of"]) == ("good", "1")
    assert "better in cost per request" in tags["promoted_because"]
    assert registry.aliases(model) == {"champion": 2, "previous": 1}
    assert "the champion was changed to version 2" in ab("promote", "other", "--force", fails=1)
    ab("start", "--challenger", "3", "--share", "5%", "--name", "late")
    back = ab("rollback", "--reason", "complaints")
    assert (back["champion"], back["withdrawn"], back["stopped"]) == (1, 2, ["late"])
    told = folder()
    assert (version_of(told.champion), [test.name for test in told.tests]) == ("v1", ["other"])
    assert registry.look_up(f"models:/{model.model_name}/2", model).tags["rolled_back_because"] == "complaints"
    assert "has no version to go back to" in ab("rollback", fails=2)
    assert registry.champion_number(model) == 1


def test_each_test_is_read_by_its_own_rows_and_what_has_none_is_told(ab: Callable[..., Any], tmp_path: Path) -> None:
    logs = [
        logs_of(tmp_path / f"{name}.parquet", name, "v2", errors=errors, cost=1.0)
        for name, errors in (("bad", 0.2), ("even", 0.01))
    ]
    assert "no test of model" in ab("watch", str(logs[0]), fails=2)
    for name in ("bad", "even", "new"):
        ab("start", "--challenger", "2", "--share", "10%", "--ceiling", "10%", "--name", name)
    looks = {look["test"]["name"]: look for look in ab("watch", *map(str, logs))["tests"]}
    assert [looks[name]["test"]["state"] for name in ("bad", "even", "new")] == ["halted", "running", "running"]
    assert {arm["arm"] for arm in looks["even"]["reading"]["arms"]} == {"even/control", "even/v2"}
    assert not [each for each in looks["even"]["reading"]["findings"] if each["kind"] == "split"]
    assert looks["new"]["trouble"] == "nothing to read yet: no row is of new/control or new/v2"
    ab("ramp", "bad", "--share", "1%")
    ab("stop", "bad")
    (late,) = ab("watch", str(logs[0]), "--test", "bad")["tests"]
    assert late["test"]["state"] == "stopped" and late["reading"] and late["halted"] is None


# -- shadows and the desk -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def journal(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred decisions with outcomes, on each of which a shadow looked that likes `tiny` best."""
    folder = tmp_path_factory.mktemp("shadowed") / "journal"
    router = Router.load(tiny_bundle, exploration=Exploration(0.2, salt="s"))
    rng = np.random.default_rng(3)
    with Journal(folder) as journal:
        for k in range(400):
            words = rng.choice(EASY_WORDS + HARD_WORDS, size=6)
            request = Request(text=f"{' '.join(words)} {k}", segment="chat", session_id=f"s{k // 2}")
            (decision,) = router.decide_batch_as([f"d{k}"], [request])
            assert isinstance(decision, Decision)
            journal.append_decision(request, decision)
            same = decision.model == "tiny"
            served = decision.candidate(decision.offer)
            journal.append_shadow(
                ShadowDecision(
                    decision_id=decision.decision_id,
                    test="look",
                    version="v2",
                    bundle_sha256="ab" * 32,
                    offer="tiny@us",
                    model="tiny",
                    p_success=0.8,
                    cost_usd=0.0001,
                    agrees=same,
                    served_p_success=served.p_success,
                    served_cost_usd=0.0001 if same else 0.0002,
                    served_propensity=float(same),
                    micros=100 + k,
                    error="",
                )
            )
            success = float(rng.random() < 0.8)
            journal.append_outcomes([OutcomeReport(decision.decision_id, success=success, cost_usd=0.0001)])
    return folder


def test_a_shadow_is_told_of_from_the_journal(
    ab: Callable[..., Any], model: RegistrySettings, journal: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    run_id = ab("start", "--challenger", "2", "--share", "100%", "--shadow", "--unit", "request", "--name", "look")[
        "run_id"
    ]
    (look,) = ab("watch", str(journal))["tests"]
    found = look["shadow"]
    share = found["agrees"]
    assert (found["decisions"], found["failed"], found["not_judged"]) == (400, {}, None)
    assert 0.05 < share < 0.95
    assert found["saving"] == pytest.approx(1 - 1 / (share + 2 * (1 - share)))
    assert found["median_us"] == pytest.approx(299.5)
    success = found["off_policy"]["success"]
    assert success["estimate"]["low"] < 0.8 < success["estimate"]["high"]
    assert success["difference"]["low"] < 0 < success["difference"]["high"]
    metrics = MlflowClient(tracking_uri=model.tracking_uri).get_run(run_id).data.metrics
    assert metrics["shadow.agrees"] == share and "success/difference" in metrics
    table = ingest_journal(journal, tmp_path / "table").table
    (look,) = ab("watch", str(table))["tests"]
    assert "stands in the journal alone" in look["trouble"]


def test_the_desk_tells_what_a_challenger_would_have_done(ab: Callable[..., Any], journal: Path) -> None:
    done = ab("replay", str(journal), "--challenger", "2", "--all-rows")
    assert (done["champion"], done["challenger"], done["requests"]) == ("v1", "v2", 400)
    assert (done["agrees"], done["switches"], done["unread"]) == (1.0, [], 0)
    old, new = done["by_challenger"]
    assert old == new and old["usd"] > 0
    assert 390 < done["off_policy"]["n_requests"] <= 400
    assert "has no version 9" in ab("replay", str(journal), "--challenger", "9", fails=2)
