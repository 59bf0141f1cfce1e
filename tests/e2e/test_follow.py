"""A server in step with an alias in MLflow, and one that outlives MLflow."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training import registry
from training.registry import CHAMPION, RegistrySettings, TrainingRecord

_SPEC = importlib.util.spec_from_file_location("workers", Path(__file__).with_name("test_workers.py"))
assert _SPEC and _SPEC.loader
workers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(workers)

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc")


def test_it_takes_what_the_alias_names_and_goes_on_without_mlflow(
    make_version: Callable[..., Path], empty_store: Path, tmp_path: Path
) -> None:
    store = empty_store
    settings = RegistrySettings(tracking_uri=f"sqlite:///{store}/mlflow.db")
    for name in ("v1", "v2"):
        run = registry.log_training_run(TrainingRecord(make_version(name), "logs", "ab" * 32), settings)
        registry.register(run, settings, tags={}, description=name, alias=CHAMPION if name == "v1" else None)
    options = ("--follow", "models:/router@champion", "--bundles", str(tmp_path / "bundles"), "--workers", "2")
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"}
    with workers.serving(*options, **environment) as (process, address), workers.connected(address) as client:
        assert client.route("bab xrob").version == "v1"
        registry.set_alias(CHAMPION, 2, settings)
        workers.eventually(lambda: client.route("bab xrob").version == "v2", within_s=120)
        store.rename(tmp_path / "gone")
        assert client.route("bab xrob").version == "v2"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    # Nothing of MLflow is there, and what was pulled is served again.
    with workers.serving(*options, **environment) as (process, address), workers.connected(address) as client:
        assert client.route("bab xrob").version == "v2"


def test_a_follower_whose_parent_was_gone_before_it_began_ends(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    follower = [sys.executable, "-m", "training.follow", "models:/router@champion", str(tmp_path)]
    subprocess.run([*follower, "--parent", str(gone.pid)], check=True, timeout=180)
