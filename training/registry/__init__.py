"""The only home of MLflow: runs of trainings, registered versions, aliases, A/B tests.

Without settings everything lives in ``mlruns/`` under the working directory, a SQLite
database with the artifacts beside it; ``MLFLOW_TRACKING_URI`` names another store.
MLflow is imported on first use, kept quiet, and its telemetry stays off.
"""

from training.registry.runs import LoggedRun, TrainingRecord, end_abandoned, end_run, log_training_run, resume_run
from training.registry.store import DEFAULT_SETTINGS, DEFAULT_TRACKING_URI, RegistrySettings
from training.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    RegisteredVersion,
    champion_number,
    is_reference,
    look_up,
    promote,
    register,
    resolve,
    set_alias,
    version_of_run,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "DEFAULT_SETTINGS",
    "DEFAULT_TRACKING_URI",
    "PREVIOUS",
    "LoggedRun",
    "RegisteredVersion",
    "RegistrySettings",
    "TrainingRecord",
    "champion_number",
    "end_abandoned",
    "end_run",
    "is_reference",
    "log_training_run",
    "look_up",
    "promote",
    "register",
    "resolve",
    "resume_run",
    "set_alias",
    "version_of_run",
]
