"""A store of MLflow: where it is, a client that is quiet, and errors in words."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from router_ml.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

DEFAULT_TRACKING_URI = "sqlite:///mlruns/mlflow.db"

_SQLITE = "sqlite:///"
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


@contextmanager
def client_of(settings: RegistrySettings) -> Iterator[MlflowClient]:
    """A client in a quiet MLflow; every way in which a store can fail becomes an InputError."""
    uri = tracking_uri(settings)
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


def experiment_id(client: MlflowClient, settings: RegistrySettings) -> str:
    """Id of the experiment, made on first use.

    MLflow keeps absolute artifact addresses. Where the store was moved or copied, new
    runs get an experiment of their own, or they would write to where it was.
    """
    found: Experiment | None = client.get_experiment_by_name(settings.experiment)
    store = store_folder(settings)
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


def tracking_uri(settings: RegistrySettings) -> str:
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
    # MLflow keeps a store per address, so a relative one would still mean the folder of its first use.
    path = uri.removeprefix(_SQLITE)
    return f"{_SQLITE}{Path(path).absolute()}" if uri.startswith(_SQLITE) and not path.startswith("file:") else uri


def database_of(uri: str) -> Path | None:
    """File of a SQLite store; None for any other."""
    return Path(unquote(uri.removeprefix(_SQLITE).split("?")[0])) if uri.startswith(_SQLITE) else None


def store_folder(settings: RegistrySettings) -> Path | None:
    database = database_of(tracking_uri(settings))
    return None if database is None else database.parent.resolve()


def local_path(source: str) -> Path | None:
    parts = urlsplit(source)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(source)
