"""The only home of MLflow: runs of trainings, registered versions, aliases.

Without settings everything lives in ``mlruns/`` under the working directory, a SQLite
database with the artifacts beside it; ``MLFLOW_TRACKING_URI`` names another store.
MLflow is imported on first use, kept quiet, and its telemetry stays off.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from router_ml.errors import GateError, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities.model_registry import ModelVersion

DEFAULT_TRACKING_URI = "sqlite:///mlruns/mlflow.db"
CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
"""The champion before the present one."""

_BUNDLE = "bundle"
_SQLITE = "sqlite:///"
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_OWN_LOCATION = "router_ml.artifacts_beside_database"

# Set only while MLflow runs, and only where the user did not.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that does not answer is reported after some 15 seconds; MLflow's own 7 retries take 4 minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """Where runs and versions are kept."""

    tracking_uri: str | None = None
    """None: `MLFLOW_TRACKING_URI`, else `DEFAULT_TRACKING_URI`."""
    experiment: str = "router-ml"
    model_name: str = "router"


DEFAULT_SETTINGS = RegistrySettings()


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a run shows of one training, or of one benchmark."""

    bundle: Path | None
    """Folder, kept as artifacts under ``bundle/``; None for a run that makes none, e.g. a benchmark."""
    data_name: str
    data_sha256: str
    """Fingerprint of the training rows."""
    parameters: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    """At most 100; None is left out."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """None and NaN, which mean unknown, are left out."""
    tags: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """File name, e.g. `cost_quality.png` -> figure."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON types, kept as `report.json`."""


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """A finished run."""

    run_id: str
    artifact_uri: str


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: int
    run_id: str
    source: str
    """Address of its bundle folder."""
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


def log_training_run(record: TrainingRecord, settings: RegistrySettings = DEFAULT_SETTINGS) -> LoggedRun:
    """Write one finished run; InputError when the bundle is missing or the store cannot be written."""
    if record.bundle is not None and not record.bundle.is_dir():
        raise InputError(f"`{record.bundle}` is not a bundle folder; there is nothing to log")
    with _client(settings) as client:
        run = client.create_run(_experiment_id(client, settings), tags=dict(record.tags))
        try:
            _fill_run(client, run.info.run_id, record)
        except BaseException:
            client.set_terminated(run.info.run_id, "FAILED")
            raise
        client.set_terminated(run.info.run_id)
        return LoggedRun(run.info.run_id, run.info.artifact_uri)


def resume_run(
    record: TrainingRecord, key: tuple[str, str], settings: RegistrySettings = DEFAULT_SETTINGS
) -> LoggedRun:
    """The run that carries the tag `key` (name, value), begun if there is none, filled and left open.

    Doing it again after a kill fills the same run with the same; `end_run` ends it.
    """
    with _client(settings) as client:
        experiment = _experiment_id(client, settings)
        name, value = key
        found = client.search_runs([experiment], f"tags.`{name}` = '{value}'", max_results=1)
        run = found[0] if found else client.create_run(experiment, tags={**record.tags, name: value})
        _fill_run(client, run.info.run_id, record)
        return LoggedRun(run.info.run_id, run.info.artifact_uri)


def end_run(
    run_id: str,
    settings: RegistrySettings = DEFAULT_SETTINGS,
    *,
    status: str = "FINISHED",
    tags: Mapping[str, str] | None = None,
    files: Sequence[Path] = (),
) -> None:
    """Attach the last files and tags, and end a run; doing it again changes nothing."""
    with _client(settings) as client:
        for name, value in (tags or {}).items():
            client.set_tag(run_id, name, value)
        for path in files:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status)


def end_abandoned(
    key: tuple[str, str], settings: RegistrySettings = DEFAULT_SETTINGS, *, tags: Mapping[str, str] | None = None
) -> None:
    """End the run that carries the tag `key` as killed, where there is one that is still open."""
    database = _database(_tracking_uri(settings))
    if database is not None and not database.exists():
        return
    with _client(settings) as client:
        experiment = _experiment_id(client, settings)
        found = client.search_runs([experiment], f"tags.`{key[0]}` = '{key[1]}'", max_results=1)
    if found and found[0].info.status == "RUNNING":
        end_run(found[0].info.run_id, settings, status="KILLED", tags=tags)


def version_of_run(run: LoggedRun, settings: RegistrySettings = DEFAULT_SETTINGS) -> int | None:
    """Number of the registered version whose bundle is of this run; None: there is none."""
    with _client(settings) as client:
        found = client.search_model_versions(f"name = '{settings.model_name}' and run_id = '{run.run_id}'")
        return min((int(version.version) for version in found), default=None)


def champion_number(settings: RegistrySettings = DEFAULT_SETTINGS) -> int | None:
    """Number of the champion, None where there is none; InputError where the store does not say."""
    database = _database(_tracking_uri(settings))
    if database is not None and not database.exists():
        return None
    with _client(settings) as client:
        found = client.search_registered_models(f"name = '{settings.model_name}'")
        aliases = found[0].aliases if found else {}
        return int(aliases[CHAMPION]) if CHAMPION in aliases else None


def promote(version: int, instead_of: int | None, settings: RegistrySettings = DEFAULT_SETTINGS) -> None:
    """Make a version the champion in place of `instead_of`, which `previous` names from now on.

    Doing it again changes nothing. GateError when another version has become the champion meanwhile.
    """
    current = champion_number(settings)
    if current not in (instead_of, version):
        raise GateError(
            f"the champion was changed to version {current} while this night ran, and the night judged version "
            f"{version} against {'none' if instead_of is None else instead_of}; nothing was promoted, run it again"
        )
    if instead_of is not None:
        set_alias(PREVIOUS, instead_of, settings)
    set_alias(CHAMPION, version, settings)


def register(
    run: LoggedRun,
    settings: RegistrySettings = DEFAULT_SETTINGS,
    *,
    tags: Mapping[str, str] | None = None,
    description: str = "",
    alias: str | None = None,
) -> int:
    """Make the bundle of a run the next version of the registered model, and return its number."""
    with _client(settings) as client:
        if settings.model_name not in {model.name for model in client.search_registered_models()}:
            client.create_registered_model(settings.model_name)
        version = client.create_model_version(
            settings.model_name,
            source=f"{run.artifact_uri}/{_BUNDLE}",
            run_id=run.run_id,
            tags=dict(tags or {}),
            description=description or None,
        )
        if alias is not None:
            client.set_registered_model_alias(settings.model_name, alias, str(version.version))
        return int(version.version)


def set_alias(alias: str, version: int, settings: RegistrySettings = DEFAULT_SETTINGS) -> None:
    """Let `alias` name that version of the registered model; InputError when there is no such version."""
    look_up(f"models:/{settings.model_name}/{version}", settings)
    with _client(settings) as client:
        client.set_registered_model_alias(settings.model_name, alias, str(version))


def is_reference(text: str) -> bool:
    """Whether `text` names a registered version rather than a folder."""
    return text.startswith("models:/")


def look_up(reference: str, settings: RegistrySettings = DEFAULT_SETTINGS) -> RegisteredVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/NUMBER` names; InputError when there is none."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"`{reference}` is not a version: expected `models:/NAME@ALIAS` or `models:/NAME/NUMBER`")
    database = _database(_tracking_uri(settings))
    if database is not None and not database.exists():
        raise InputError(
            f"`{reference}`: there is no MLflow store at `{database}`; train first, "
            "or set MLFLOW_TRACKING_URI to the store that holds the version"
        )
    with _client(settings) as client:
        found = _find_version(client, reference, **match.groupdict())
        return RegisteredVersion(
            name=found.name,
            version=int(found.version),
            run_id=found.run_id or "",
            source=found.source or "",
            aliases=tuple(found.aliases),
            tags=dict(found.tags),
        )


def resolve(reference: str, settings: RegistrySettings = DEFAULT_SETTINGS, into: Path | None = None) -> Path:
    """The local bundle folder of a registered version.

    The artifact itself where the store is local, also after ``mlruns/`` was moved or
    copied; otherwise a download below `into`, an empty folder, by default a new temporary one.
    InputError when the version or its files do not exist.
    """
    version = look_up(reference, settings)
    source = _local_path(version.source)
    if source is None:
        into = into or Path(tempfile.mkdtemp(prefix="router-ml-"))
        with _client(settings):
            from mlflow.artifacts import download_artifacts

            return Path(
                download_artifacts(
                    artifact_uri=version.source, dst_path=str(into), tracking_uri=_tracking_uri(settings)
                )
            )
    candidates = [source]
    store = _store_folder(settings)
    if store is not None and version.run_id in source.parts:
        candidates.append(store / "artifacts" / Path(*source.parts[source.parts.index(version.run_id) :]))
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    looked = " and ".join(f"`{candidate}`" for candidate in candidates)
    raise InputError(f"`{reference}` is registered, but its files are gone: looked at {looked}; train again")


def _fill_run(client: MlflowClient, run_id: str, record: TrainingRecord) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    # Of the run's beginning, so that filling it again after a kill writes the same.
    now = client.get_run(run_id).info.start_time
    known = {name: value for name, value in record.metrics.items() if value is not None and value == value}
    parameters = {name: value for name, value in record.parameters.items() if value is not None}
    client.log_batch(
        run_id,
        metrics=[Metric(name, float(value), now, 0) for name, value in known.items()],
        params=[Param(name, str(value)) for name, value in parameters.items()],
    )
    # MLflow's digest holds 36 characters; the whole fingerprint is a tag.
    data = Dataset(record.data_name, record.data_sha256[:36], source_type="local", source=record.data_name)
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
    client.set_tag(run_id, "data_sha256", record.data_sha256)
    for name, figure in record.figures.items():
        client.log_figure(run_id, figure, name, save_kwargs={"dpi": 150})
    client.log_dict(run_id, dict(record.report), "report.json")
    if record.bundle is not None:
        client.log_artifacts(run_id, str(record.bundle), _BUNDLE)


def _experiment_id(client: MlflowClient, settings: RegistrySettings) -> str:
    """Id of the experiment, made on first use.

    MLflow keeps absolute artifact addresses. Where the store was moved or copied, new
    runs get an experiment of their own, or they would write to where it was.
    """
    found: Experiment | None = client.get_experiment_by_name(settings.experiment)
    store = _store_folder(settings)
    if store is None:
        return found.experiment_id if found else client.create_experiment(settings.experiment)
    location = (store / "artifacts").as_uri()
    name = settings.experiment
    if found is not None and _OWN_LOCATION in found.tags and found.artifact_location != location:
        name = f"{settings.experiment} ({store})"
        found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=location, tags={_OWN_LOCATION: "true"}))


def _find_version(
    client: MlflowClient, reference: str, name: str, alias: str | None, version: str | None
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        raise InputError(f"`{reference}`: no registered model `{name}`; there are {_listed(sorted(models))}")
    if alias is not None:
        aliases = [f"{found} (version {number})" for found, number in sorted(models[name].aliases.items())]
        raise InputError(f"`{reference}`: model `{name}` has no alias `{alias}`; there are {_listed(aliases)}")
    numbers = sorted(int(found.version) for found in client.search_model_versions(f"name = '{name}'"))
    raise InputError(f"`{reference}`: model `{name}` has no version {version}; there are {_listed(numbers)}")


def _listed(names: list[Any]) -> str:
    return ", ".join(str(name) for name in names) or "none"


def _tracking_uri(settings: RegistrySettings) -> str:
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
    # MLflow keeps a store per address, so a relative one would still mean the folder of its first use.
    path = uri.removeprefix(_SQLITE)
    return f"{_SQLITE}{Path(path).absolute()}" if uri.startswith(_SQLITE) and not path.startswith("file:") else uri


def _database(uri: str) -> Path | None:
    """File of a SQLite store; None for any other."""
    return Path(unquote(uri.removeprefix(_SQLITE).split("?")[0])) if uri.startswith(_SQLITE) else None


def _store_folder(settings: RegistrySettings) -> Path | None:
    database = _database(_tracking_uri(settings))
    return None if database is None else database.parent.resolve()


def _local_path(source: str) -> Path | None:
    parts = urlsplit(source)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(source)


@contextmanager
def _client(settings: RegistrySettings) -> Iterator[MlflowClient]:
    """A client in a quiet MLflow; every way in which a store can fail becomes an InputError."""
    uri = _tracking_uri(settings)
    with _quiet():
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        # What MLflow logs before it raises, tracebacks included, is in the exception too.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        try:
            yield MlflowClient(tracking_uri=uri)
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            shown = re.sub(r"//[^/@]*@", "//***@", uri)
            # SQLAlchemy puts the cause in the last line above the statement, everyone else in the first.
            lines = str(error).partition("\n[SQL")[0].splitlines() or [type(error).__name__]
            reason = lines[-1 if "\n[SQL" in str(error) else 0][:400].replace(uri, shown)
            if isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE":
                raise InputError(f"the MLflow store `{shown}` refused a value: {reason}") from None
            raise InputError(
                f"the MLflow store `{shown}` cannot be used: {reason}; check that it can be reached and written, "
                f"or set MLFLOW_TRACKING_URI to another (default `{DEFAULT_TRACKING_URI}`)"
            ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        # Deprecations between MLflow and its own libraries are no news for the user.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)
