"""A night in Airflow: one task, so that a retry goes on where the night stopped."""

from __future__ import annotations

import pendulum
from airflow import DAG
from airflow.operators.bash import BashOperator

COMMAND = (
    "router-ml nightly --journal /srv/router-ml/journal --work /srv/router-ml/nightly "
    "--catalog /srv/router-ml/catalog.yaml --json"
)

with DAG(
    dag_id="router_ml_nightly",
    schedule="15 2 * * *",
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    # A missed night is caught up by the next one, which takes all days; running each of them would do it twice.
    catchup=False,
    max_active_runs=1,
) as dag:
    BashOperator(
        task_id="nightly",
        bash_command=COMMAND,
        env={"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        append_env=True,
        retries=2,
        retry_delay=pendulum.duration(minutes=10),
        execution_timeout=pendulum.duration(hours=4),
    )
