"""A/B tests in MLflow: a run per test whose tags are its state, with a run per arm below it.

Every change is one tag, so whoever reads sees the state before or after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from router_ml.errors import InputError
from router_ml.experiment import Unit
from training.live_tests import Ending, LiveTest, ReadVerdict, ShareChange, VersionArm, percent
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
    from mlflow.entities import Run

_EXPERIMENT = " live tests"
"""Ending of the experiment's name: charts of tests beside those of trainings would say nothing. Without a slash, which
the UI takes for a folder."""
_NAME, _MODEL, _ARM = "ab.test", "ab.model", "ab.arm"
_SHARES, _ENDED, _VERDICTS = "ab.shares", "ab.ended", "ab.verdicts"
_SHOWN = "ab.state"
"""In words, for a person; nothing is read from it."""
_PARENT = "mlflow.parentRunId"
_MOST = 5000


@dataclass(frozen=True, slots=True)
class Point:
    """A figure of a day."""

    metric: str
    value: float
    day: int
    """Counted from 1."""
    at: datetime


@dataclass(frozen=True, slots=True)
class LookReport:
    """What a look at a test leaves in its run."""

    points: Sequence[Point] = ()
    arms: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    """Of each arm's own run; the same metrics, so that charts lay the arms over each other."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """File name -> figure."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """File name -> content."""
    verdicts: Mapping[str, ReadVerdict] = field(default_factory=dict)
    note: str = ""
    """Markdown, what the run's page says first."""


def begin_test(test: LiveTest, settings: RegistrySettings = DEFAULT_SETTINGS) -> LiveTest:
    """Make its run, from which on it runs; the test with its `run_id`."""
    tags = {
        "mlflow.runName": test.name,
        _NAME: test.name,
        _MODEL: settings.model_name,
        "ab.kind": "shadow" if test.is_shadow else "test",
        "ab.unit": test.unit,
        "ab.segments": json.dumps(test.segments),
        "ab.salt": test.salt,
        "ab.layer_salt": test.layer_salt,
        "ab.start": repr(test.start),
        "ab.arms": json.dumps([asdict(arm) for arm in test.arms]),
        "ab.reading": json.dumps(test.reading),
        _SHARES: _changes(test.changes),
        _SHOWN: _words(test),
    }
    with client_of(settings) as client:
        run = client.create_run(experiment_id(client, _experiment(settings)), tags=tags)
        for arm in test.arms:
            mine = {"mlflow.runName": f"{test.name}/{arm.name}", _PARENT: run.info.run_id, _ARM: arm.name}
            version = {_MODEL: settings.model_name, "ab.version": str(arm.version)}
            client.create_run(run.info.experiment_id, tags=mine | version)
        return replace(test, run_id=run.info.run_id)


def live_tests(
    settings: RegistrySettings = DEFAULT_SETTINGS, *, ended: bool = False, unreadable: list[str] | None = None
) -> tuple[LiveTest, ...]:
    """The tests and shadows of the registered model that run, oldest first; with `ended` also all others.

    InputError where a test's tags were changed by hand to what nobody can read; where `unreadable` is given, such a
    test is left out, and `unreadable` told why.
    """
    database = database_of(tracking_uri(settings))
    if database is not None and not database.exists():
        return ()
    with client_of(settings) as client:
        # A store that was moved has an experiment for either place.
        found = client.search_experiments(filter_string=f"name LIKE '{settings.experiment}{_EXPERIMENT}%'")
        if not found:
            return ()
        query = f"tags.`{_MODEL}` = '{settings.model_name}' and tags.`{_NAME}` != ''"
        if not ended:
            query += " and attributes.status = 'RUNNING'"
        ids = [experiment.experiment_id for experiment in found]
        runs = client.search_runs(ids, query, max_results=_MOST, order_by=["attributes.start_time ASC"])
    tests = []
    for run in runs:
        try:
            tests.append(_test(run))
        except InputError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))
    return tuple(test for test in tests if ended or test.ended is None)


def live_test(name: str, settings: RegistrySettings = DEFAULT_SETTINGS, *, ended: bool = False) -> LiveTest:
    """The test of that name; InputError where there is none, or where it has ended unless `ended`."""
    unreadable: list[str] = []
    tests = {test.name: test for test in live_tests(settings, ended=True, unreadable=unreadable)}
    if name not in tests:
        running = [test.name for test in tests.values() if test.ended is None]
        found = "; ".join([f"running: {', '.join(running) or 'none'}", *unreadable])
        raise InputError(f"there is no test `{name}`; {found}")
    test = tests[name]
    if test.ended is not None and not ended:
        raise InputError(f"test `{name}` was {test.ended.how} on {test.ended.at:%Y-%m-%d %H:%M} UTC; start another")
    return test


def change_share(test: LiveTest, change: ShareChange, settings: RegistrySettings = DEFAULT_SETTINGS) -> LiveTest:
    """Ramp or halt."""
    changed = replace(test, changes=(*test.changes, change))
    with client_of(settings) as client:
        client.set_tag(test.run_id, _SHARES, _changes(changed.changes))
        client.set_tag(test.run_id, _SHOWN, _words(changed))
    return changed


def end_test(test: LiveTest, ending: Ending, settings: RegistrySettings = DEFAULT_SETTINGS) -> LiveTest:
    """End it and the runs of its arms; nobody is in it from now on."""
    ended = replace(test, ended=ending)
    with client_of(settings) as client:
        client.set_tag(test.run_id, _ENDED, json.dumps(asdict(ending), default=datetime.isoformat))
        client.set_tag(test.run_id, _SHOWN, _words(ended))
        for run in (*_arm_runs(client, test).values(), test.run_id):
            client.set_terminated(run)
    return ended


def log_report(test: LiveTest, report: LookReport, settings: RegistrySettings = DEFAULT_SETTINGS) -> None:
    """Into the runs of the test and its arms, also after it has ended."""
    with client_of(settings) as client:
        _log_points(client, test.run_id, report.points)
        runs = _arm_runs(client, test)
        for arm, points in report.arms.items():
            _log_points(client, runs[arm], points)
        for name, figure in report.figures.items():
            client.log_figure(test.run_id, figure, name, save_kwargs={"dpi": 150})
        for name, text in report.texts.items():
            client.log_text(test.run_id, text, name)
        if report.note:
            links = _chart_links(client.get_run(test.run_id).info.experiment_id, runs, report)
            client.set_tag(test.run_id, "mlflow.note.content", "\n\n".join(filter(None, (report.note, links))))
        if report.verdicts:
            verdicts = {arm: asdict(verdict) for arm, verdict in report.verdicts.items()}
            client.set_tag(test.run_id, _VERDICTS, json.dumps(verdicts, default=datetime.isoformat))
            for arm, verdict in report.verdicts.items():
                client.set_tag(test.run_id, f"verdict.{arm}", f"{verdict.action}: {verdict.reason}"[:500])


def _chart_links(experiment: str, runs: Mapping[str, str], report: LookReport) -> str:
    """To the UI's own charts, in which the arms lie over each other; Markdown."""
    metrics = dict.fromkeys(point.metric for points in report.arms.values() for point in points)
    given = {"runs": json.dumps(list(runs.values())), "experiments": json.dumps([experiment]), "x_axis": "step"}
    links = []
    for metric in metrics:
        shown = given | {"metric": json.dumps(metric), "plot_metric_keys": json.dumps([metric])}
        links.append(f"[{metric}](#/metric?{urlencode(shown, quote_via=quote)})")
    return f"The arms by day: {', '.join(links)}" if links else ""


def _log_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Days that the run already has are left as they are; the day that is under way may get another point."""
    from mlflow.entities import Metric

    metrics = []
    for name in sorted({point.metric for point in points}):
        mine = [point for point in points if point.metric == name]
        known = {each.step for each in client.get_metric_history(run_id, name)} - {mine[-1].day}
        metrics += [
            Metric(name, each.value, int(each.at.timestamp() * 1000), each.day)
            for each in mine
            if each.day not in known
        ]
    for begin in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[begin : begin + 1000])


def _arm_runs(client: MlflowClient, test: LiveTest) -> dict[str, str]:
    """Arm -> its run."""
    parent = client.get_run(test.run_id).info.experiment_id
    found = client.search_runs([parent], f"tags.`{_PARENT}` = '{test.run_id}'")
    return {run.data.tags[_ARM]: run.info.run_id for run in found}


def _experiment(settings: RegistrySettings) -> RegistrySettings:
    return replace(settings, experiment=settings.experiment + _EXPERIMENT)


def _changes(changes: Sequence[ShareChange]) -> str:
    return json.dumps([asdict(change) for change in changes], default=datetime.isoformat)


def _words(test: LiveTest) -> str:
    if test.ended is not None:
        return f"{test.ended.how}: {test.ended.reason}"[:500]
    if test.share == 0:
        return f"halted: {test.changes[-1].reason}"[:500]
    return f"{'shadow of' if test.is_shadow else 'running, each arm with'} {percent(test.share)} of the {test.unit}s"


def _test(run: Run) -> LiveTest:
    tags = run.data.tags
    try:
        segments = json.loads(tags["ab.segments"])
        return LiveTest(
            name=tags[_NAME],
            is_shadow=tags["ab.kind"] == "shadow",
            unit=Unit(tags["ab.unit"]),
            segments=None if segments is None else tuple(segments),
            salt=tags["ab.salt"],
            layer_salt=tags["ab.layer_salt"],
            start=float(tags["ab.start"]),
            arms=tuple(VersionArm(**arm) for arm in json.loads(tags["ab.arms"])),
            changes=tuple(ShareChange(**_timed(change)) for change in json.loads(tags[_SHARES])),
            reading=json.loads(tags["ab.reading"]),
            verdicts={
                arm: ReadVerdict(**_timed(verdict)) for arm, verdict in json.loads(tags.get(_VERDICTS, "{}")).items()
            },
            ended=Ending(**_timed(json.loads(tags[_ENDED]))) if _ENDED in tags else None,
            run_id=run.info.run_id,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"the run `{run.info.run_id}` of test `{tags.get(_NAME)}` has tags that were changed by hand ({error!r}); "
            "mend them in MLflow, or delete the run"
        ) from None


def _timed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, "at": datetime.fromisoformat(values["at"])}
