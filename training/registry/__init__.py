"""The only home of MLflow: runs of trainings, registered versions, aliases, A/B tests.

Without settings everything lives in ``mlruns/`` under the working directory, a SQLite
database with the artifacts beside it; ``MLFLOW_TRACKING_URI`` names another store.
MLflow is imported on first use, kept quiet, and its telemetry stays off.
"""

from training.registry.live import (
    LookReport,
    Point,
    begin_test,
    change_share,
    end_test,
    live_test,
    live_tests,
    log_report,
)
from training.registry.runs import LoggedRun, TrainingRecord, end_abandoned, end_run, log_training_run, resume_run
from training.registry.store import DEFAULT_SETTINGS, DEFAULT_TRACKING_URI, RegistrySettings
from training.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    RegisteredVersion,
    aliases,
    champion_number,
    is_reference,
    look_up,
    promote,
    register,
    resolve,
    roll_back,
    set_alias,
    tag_version,
    version_of_run,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "DEFAULT_SETTINGS",
    "DEFAULT_TRACKING_URI",
    "PREVIOUS",
    "LoggedRun",
    "LookReport",
    "Point",
    "RegisteredVersion",
    "RegistrySettings",
    "TrainingRecord",
    "aliases",
    "begin_test",
    "champion_number",
    "change_share",
    "end_abandoned",
    "end_run",
    "end_test",
    "is_reference",
    "live_test",
    "live_tests",
    "log_report",
    "log_training_run",
    "look_up",
    "promote",
    "register",
    "resolve",
    "resume_run",
    "roll_back",
    "set_alias",
    "tag_version",
    "version_of_run",
]
