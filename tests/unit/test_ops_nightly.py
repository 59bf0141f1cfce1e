"""The examples for cron, Kubernetes and Airflow are in order, and ask for commands and options that exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

from router_ml.cli import _parser

NIGHTLY = Path(__file__).parents[2] / "ops" / "nightly"
FIELD = re.compile(r"(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*")


def of_cron() -> list[str]:
    lines = [line for line in (NIGHTLY / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    [line] = [line for line in lines if not re.match(r"[A-Z_]+=", line)]
    *times, command = line.split(None, 5)
    assert len(times) == 5 and all(FIELD.fullmatch(field) for field in times)
    return shlex.split(command)


def of_kubernetes() -> list[str]:
    job = yaml.safe_load((NIGHTLY / "cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert all(FIELD.fullmatch(field) for field in job["spec"]["schedule"].split())
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    [rule] = job["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    command: list[str] = container["command"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    for word in command[2:]:
        path = word.partition("=")[2]
        assert any(path == folder or path.startswith(f"{folder}/") for folder in mounted), word
    return command


def of_airflow() -> list[str]:
    tree = ast.parse((NIGHTLY / "airflow_dag.py").read_text())
    [command] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMAND"
    ]
    return shlex.split(command)


@pytest.mark.parametrize("command_of", [of_cron, of_kubernetes, of_airflow])
def test_an_example_asks_for_what_the_command_line_takes(command_of) -> None:  # type: ignore[no-untyped-def]
    program, *words = command_of()
    assert program == "router-ml"
    args = _parser().parse_args(words)
    assert args.run.__name__ and words[0] == "nightly"
    assert args.journal and args.work and args.catalog


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["nightly", "--work", "w", "--jurnal", "j"])
