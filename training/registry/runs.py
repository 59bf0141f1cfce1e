"""Runs of trainings, nights and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_ml.errors import InputError
from training.registry.store import (
    DEFAULT_SETTINGS,
    RegistrySettings,
    client_of,
    database_of,
    experiment_id,
    tracking_uri,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

BUNDLE = "bundle"
"""Folder of the artifacts that holds it."""


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


def log_training_run(record: TrainingRecord, settings: RegistrySettings = DEFAULT_SETTINGS) -> LoggedRun:
    """Write one finished run; InputError when the bundle is missing or the store cannot be written."""
    if record.bundle is not None and not record.bundle.is_dir():
        raise InputError(f"`{record.bundle}` is not a bundle folder; there is nothing to log")
    with client_of(settings) as client:
        run = client.create_run(experiment_id(client, settings), tags=dict(record.tags))
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
    with client_of(settings) as client:
        experiment = experiment_id(client, settings)
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
    with client_of(settings) as client:
        for name, value in (tags or {}).items():
            client.set_tag(run_id, name, value)
        for path in files:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status)


def end_abandoned(
    key: tuple[str, str], settings: RegistrySettings = DEFAULT_SETTINGS, *, tags: Mapping[str, str] | None = None
) -> None:
    """End the run that carries the tag `key` as killed, where there is one that is still open."""
    database = database_of(tracking_uri(settings))
    if database is not None and not database.exists():
        return
    with client_of(settings) as client:
        experiment = experiment_id(client, settings)
        found = client.search_runs([experiment], f"tags.`{key[0]}` = '{key[1]}'", max_results=1)
    if found and found[0].info.status == "RUNNING":
        end_run(found[0].info.run_id, settings, status="KILLED", tags=tags)


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
        client.log_artifacts(run_id, str(record.bundle), BUNDLE)
