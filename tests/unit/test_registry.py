"""Real MLflow on SQLite: what is logged, registered and found again, and how failures read."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from router_ml.errors import GateError, InputError
from training import registry
from training.registry import CHALLENGER, CHAMPION, LoggedRun, RegistrySettings, TrainingRecord


@dataclass(frozen=True)
class Store:
    """One store for the module: MLflow needs seconds to make a database."""

    folder: Path
    settings: RegistrySettings
    run: LoggedRun
    version: int


def record(folder: Path, **changes: object) -> TrainingRecord:
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / "manifest.json").write_text('{"format": 1}')
    figure = Figure()
    figure.add_subplot().plot([1, 2], [1, 2])
    values: dict[str, object] = {
        "bundle": bundle,
        "data_name": "logs",
        "data_sha256": "ab" * 32,
        "parameters": {"seed": 7, "encoder": "static", "unset": None},
        "metrics": {"aiq": 0.84, "cost_share_99": None, "ece": math.nan},
        "tags": {"kind": "test"},
        "figures": {"curve.png": figure},
        "report": {"aiq": 0.84},
    }
    return TrainingRecord(**(values | changes))  # type: ignore[arg-type]


def settings_of(folder: Path) -> RegistrySettings:
    return RegistrySettings(tracking_uri=f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("a store") / "mlruns"
    settings = settings_of(folder)
    run = registry.log_training_run(record(folder.parent), settings)
    version = registry.register(run, settings, tags={"gate": "passed"}, description="first", alias=CHAMPION)
    return Store(folder, settings, run, version)


def test_a_run_holds_what_was_recorded_and_leaves_the_unknown_out(store: Store) -> None:
    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri=store.settings.tracking_uri).get_run(store.run.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "7", "encoder": "static"}
    assert run.data.metrics == {"aiq": 0.84}
    assert run.data.tags["kind"] == "test"
    assert run.data.tags["data_sha256"] == "ab" * 32
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("logs", "ab" * 18)


def test_artifacts_lie_beside_the_database(store: Store) -> None:
    artifacts = store.folder / "artifacts" / store.run.run_id / "artifacts"
    assert (artifacts / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((artifacts / "report.json").read_text()) == {"aiq": 0.84}
    assert (artifacts / "bundle" / "manifest.json").is_file()


def test_a_version_resolves_by_number_and_by_alias_to_its_bundle(store: Store) -> None:
    by_number = registry.resolve(f"models:/router/{store.version}", store.settings)
    by_alias = registry.resolve("models:/router@champion", store.settings)
    assert by_number == by_alias == store.folder / "artifacts" / store.run.run_id / "artifacts" / "bundle"


def test_a_version_carries_tags_aliases_and_its_run(store: Store) -> None:
    found = registry.look_up("models:/router@champion", store.settings)
    assert (found.name, found.version, found.run_id) == ("router", store.version, store.run.run_id)
    assert found.tags == {"gate": "passed"}
    assert found.aliases == (CHAMPION,)


def test_versions_count_up_and_an_alias_moves(store: Store) -> None:
    settings = RegistrySettings(store.settings.tracking_uri, model_name="moving")
    assert registry.register(store.run, settings, alias=CHALLENGER) == 1
    assert registry.register(store.run, settings) == 2
    registry.set_alias(CHALLENGER, 2, settings)
    assert registry.look_up("models:/moving@challenger", settings).version == 2
    assert registry.look_up("models:/moving/1", settings).aliases == ()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/router@rival", "no alias `rival`; there are champion \\(version 1\\)"),
        ("models:/router/99", "no version 99; there are 1"),
        ("models:/absent/1", "no registered model `absent`; there are .*router"),
        ("models:/absent@champion", "no registered model `absent`"),
        ("models:/router", "expected `models:/NAME@ALIAS`"),
        ("models:/router/latest", "expected `models:/NAME@ALIAS`"),
        ("router@champion", "is not a version"),
    ],
)
def test_unknown_references_say_what_exists(store: Store, reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.resolve(reference, store.settings)


def test_a_reserved_alias_is_refused_in_words(store: Store) -> None:
    with pytest.raises(InputError, match="refused a value"):
        registry.set_alias("v9", store.version, store.settings)
    with pytest.raises(InputError, match="no version 42"):
        registry.set_alias(CHAMPION, 42, store.settings)


def test_a_copied_store_finds_its_own_bundles_and_writes_beside_itself(store: Store, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(store.folder, moved)
    gone = store.folder.rename(store.folder.with_name("away"))
    try:
        settings = settings_of(moved)
        bundle = registry.resolve("models:/router@champion", settings)
        assert bundle.is_relative_to(moved) and (bundle / "manifest.json").is_file()
        runs = [registry.log_training_run(record(tmp_path), settings) for _ in range(2)]
        assert all((moved / "artifacts" / run.run_id / "artifacts" / "bundle").is_dir() for run in runs)
        assert not store.folder.exists()
        shutil.rmtree(moved / "artifacts")
        with pytest.raises(InputError, match="its files are gone"):
            registry.resolve("models:/router@champion", settings)
    finally:
        gone.rename(store.folder)


def test_a_failed_training_run_is_marked_failed(store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    broken = record(tmp_path, metrics={"not allowed: *?": 1.0}, tags={"kind": "broken"})
    with pytest.raises(InputError, match="refused a value"):
        registry.log_training_run(broken, store.settings)
    client = MlflowClient(tracking_uri=store.settings.tracking_uri)
    experiment = client.get_experiment_by_name("router-ml")
    [run] = client.search_runs([experiment.experiment_id], "tags.kind = 'broken'")
    assert run.info.status == "FAILED"


def test_a_missing_bundle_is_not_logged(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a bundle folder"):
        registry.log_training_run(record(tmp_path, bundle=tmp_path / "absent"), store.settings)


def test_looking_up_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no MLflow store at .*MLFLOW_TRACKING_URI"):
        registry.resolve("models:/router@champion", settings_of(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///{tmp}/a_file/mlflow.db",
        "sqlite:///{tmp}/a_file",
        "file://{tmp}/folder",
        "carrier-pigeon://loft",
        "http://user:secret@127.0.0.1:9",
    ],
)
def test_a_store_that_cannot_be_used_is_the_users_to_mend(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "a_file").write_text("not a database " * 500)
    with pytest.raises(InputError, match=r"the MLflow store `.*` (cannot be used|refused)") as error:
        registry.log_training_run(record(tmp_path), RegistrySettings(uri.format(tmp=tmp_path)))
    assert "secret" not in str(error.value)


def test_a_read_only_database_is_reported_in_one_line(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    read_only = RegistrySettings(f"sqlite:///file:{store.folder}/mlflow.db?mode=ro&uri=true")
    with pytest.raises(InputError, match=r"cannot be used: .*attempt to write a readonly database; check"):
        registry.log_training_run(record(tmp_path), read_only)
    assert capfd.readouterr() == ("", "")


def test_the_environment_names_the_store_and_is_left_as_it_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(store.settings.tracking_uri))
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    before = dict(os.environ)
    assert registry.look_up("models:/router@champion").version == store.version
    assert dict(os.environ) == before


def test_a_first_training_prints_nothing_and_makes_the_default_store(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    program = (
        "from pathlib import Path\n"
        "from training import registry\n"
        "run = registry.log_training_run(registry.TrainingRecord(Path('bundle'), 'logs', 'ab' * 32))\n"
        "registry.register(run, alias='champion')\n"
        "assert registry.resolve('models:/router@champion').is_dir()\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(Path(registry.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlruns" / "mlflow.db").is_file()


def test_a_run_is_found_again_by_its_key_and_filled_once(store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    key = ("night", "20261121")
    first = registry.resume_run(record(tmp_path), key, store.settings)
    client = MlflowClient(tracking_uri=store.settings.tracking_uri)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    again = registry.resume_run(record(tmp_path), key, store.settings)
    assert again == first
    assert len(client.get_metric_history(first.run_id, "aiq")) == 1
    assert registry.version_of_run(first, store.settings) is None
    number = registry.register(first, store.settings)
    assert registry.version_of_run(first, store.settings) == number
    registry.end_abandoned(key, store.settings, tags={"superseded_by": "another"})
    ended = client.get_run(first.run_id)
    assert (ended.info.status, ended.data.tags["superseded_by"]) == ("KILLED", "another")
    registry.end_abandoned(("night", "none such"), store.settings)


def test_promotion_moves_the_champion_and_keeps_the_one_before(store: Store, tmp_path: Path) -> None:
    assert registry.champion_number(settings_of(tmp_path / "no store yet")) is None
    settings = replace(store.settings, model_name="promoted")
    assert registry.champion_number(settings) is None
    one, two, three = (registry.register(store.run, settings) for _ in range(3))
    assert registry.champion_number(settings) is None
    registry.promote(one, None, settings)
    assert registry.champion_number(settings) == one
    for _ in range(2):  # again, as after a kill
        registry.promote(two, one, settings)
        assert registry.look_up("models:/promoted@champion", settings).version == two
        assert registry.look_up("models:/promoted@previous", settings).version == one
    with pytest.raises(GateError, match=f"changed to version {two} meanwhile"):
        registry.promote(three, one, settings)
    assert registry.champion_number(settings) == two


def test_a_store_that_cannot_be_reached_is_not_one_without_a_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="cannot be used"):
        registry.champion_number(RegistrySettings(tracking_uri="http://127.0.0.1:9"))
