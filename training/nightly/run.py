"""One night as one readable function: journal and logs in, a promoted or refused version and its report out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router_ml.errors import GateError, InputError
from training import registry
from training.commands import finite, metrics_of, parameters
from training.nightly.check import check
from training.nightly.decide import gates_on
from training.nightly.drift import Earlier
from training.nightly.gates import Gate, refusal
from training.nightly.gather import OUTCOMES, gather
from training.nightly.inputs import Inputs, NightlySettings, find_inputs
from training.nightly.judge import judge
from training.nightly.page import write_page
from training.nightly.pictures import CALIBRATION, CURVE
from training.nightly.report import report_of
from training.nightly.state import Night, Work, write_json
from training.pipeline import TrainSettings, train
from training.report import training_dict
from training.sources import REJECTS_SUFFIX

Say = Callable[[str], None]

STAGES = ("gather", "check", "train", "judge", "decide", "register", "promote", "report")
"""In order; what a night that is refused early does not reach leaves nothing."""
_NIGHT = "router_ml.night"
"""Tag by which a night finds its run again."""


@dataclass(frozen=True, slots=True)
class NightReport:
    """What came of a night."""

    folder: Path
    accepted: bool
    refused_by: str
    """Gates that said no; empty where none did."""
    is_repeat: bool
    """Whether these very inputs had been finished before, so that nothing was done."""
    data: dict[str, Any]
    """As in `report.json`."""


def run_nightly(settings: NightlySettings, say: Say, now: datetime | None = None) -> NightReport:
    """Go on with the night that stopped half-way, else begin one, unless these inputs are done.

    RouterMlError where another process is at work in the same folder; InputError where nothing can be read.
    """
    work = Work(settings.work)
    with work.locked():
        night, is_repeat = _tonight(work, settings, now or datetime.now(UTC), say)
        if not is_repeat:
            _stages(work, night, settings, say)
        data = night.find("report")
        assert data is not None  # a night that is done has reported
        return NightReport(night.folder, data["accepted"], data["refused_by"], is_repeat, data)


def _tonight(work: Work, settings: NightlySettings, now: datetime, say: Say) -> tuple[Night, bool]:
    """The night to work on, and whether it is done already."""
    for old in work.nights():
        if old.is_over:
            old.clear()
    night = work.to_resume(settings.sha256, now)
    if night is not None:
        say(f"going on with the night {night.id}")
        return night, False
    inputs = find_inputs(settings, registry.champion_number(settings.registry), now)
    done = work.of(inputs)
    if done is not None:
        return done, True
    night = work.begin(inputs)
    for old in work.unfinished():
        if old.id != night.id:
            # Its rows are all in tonight's inputs, so nothing is lost with it.
            registry.end_abandoned((_NIGHT, old.id), settings.registry, tags={"superseded_by": night.id})
            old.close({"by": night.id}, superseded=True)
    return night, False


def _stages(work: Work, night: Night, settings: NightlySettings, say: Say) -> None:
    inputs, folder = night.inputs, night.folder
    last = work.last_done(night)
    before = (last.find("gather") or {}) if last else {}
    earlier = [told for old in work.nights() if old.is_done and (told := old.find("check"))]

    say("joining journal and logs")
    try:
        gathered = night.once("gather", lambda: gather(inputs, settings, folder, before.get("newest_us")))
    except InputError:
        night.forget()  # or mending what is named would not help: the night has pinned what it was
        raise
    say("checking the rows")
    checked = night.once("check", lambda: check(folder / OUTCOMES, gathered, earlier))
    gates = [Gate(**gate) for gate in checked["gates"]]
    trained = judged = None
    if not refusal(gates):
        trained = night.once("train", lambda: _train(folder, settings, say))
        gates += [Gate(**gate) for gate in trained["gates"]]
    if trained and not refusal(gates):
        say("judging the version beside the champion and the simple baselines")
        judged = night.once(
            "judge", lambda: finite(_judge(folder, inputs, settings, gathered, _earlier(work, night, before)))
        )
        gates += gates_on(trained, judged, settings.latency_budget_us)
    refused_by = refusal(gates)
    decided = night.once("decide", lambda: {"accepted": not refused_by, "refused_by": refused_by})
    gates_told = [gate.to_dict() for gate in gates]

    say("registering the version in MLflow")
    registered = night.once("register", lambda: _register(night, settings, trained, judged, gates, decided))
    if decided["accepted"]:
        try:
            night.once("promote", lambda: _promote(registered, inputs, settings))
        except GateError:
            registry.end_run(registered["run_id"], settings.registry, tags={"promoted": "false"})
            night.close({"by": "a change of the champion"}, superseded=True)
            raise
    say("writing the report")
    report = night.once(
        "report",
        lambda: finite(
            report_of(night.id, settings, inputs, {stage: night.find(stage) for stage in STAGES}, gates_told)
        ),
    )
    page = folder / "report.html"
    write_page(page, report, folder)
    pictures = [path for name in (CURVE, CALIBRATION) if (path := folder / name).exists()]
    registry.end_run(
        registered["run_id"],
        settings.registry,
        tags={"promoted": str(decided["accepted"]).lower()},
        files=[page, folder / "report.json", *pictures],
    )
    write_page(settings.work / "report.html", report, folder)
    write_json(settings.work / "report.json", report)
    night.close({"accepted": decided["accepted"]})


def _train(folder: Path, settings: NightlySettings, say: Say) -> dict[str, Any]:
    """The bundle, and what is told of it; what cannot be trained on is a gate that says no."""
    try:
        catalog, rejects = settings.catalog, folder / f"train{REJECTS_SUFFIX}"
        trained = train([folder / OUTCOMES], catalog, _train_settings(settings), rejects, say)
        digest = trained.write(folder / "bundle")
    except InputError as error:
        advice = "Mend what is named, or add logs"
        return {"gates": [Gate("training", False, None, None, str(error), advice).to_dict()]}
    except GateError as error:
        return {"gates": [Gate("parity of the bundle", False, None, None, str(error), "Please report this").to_dict()]}
    told = training_dict(trained) | {
        "gates": [],
        "bundle_sha256": digest,
        "data_sha256": trained.manifest.data_fingerprint,
        "parameters": parameters(trained),
        "metrics": metrics_of(trained.judgement.report),
        "created": trained.manifest.created,
        "training_start": trained.manifest.training_start,
        "training_end": trained.manifest.training_end,
    }
    return dict(finite(told))


def _train_settings(settings: NightlySettings) -> TrainSettings:
    """An encoder named by a registered version is looked up only now, as it may change from night to night."""
    encoder = settings.train.encoder
    if registry.is_reference(encoder.teacher):
        encoder = replace(encoder, teacher=str(registry.resolve(encoder.teacher, settings.registry)))
    return replace(settings.train, encoder=encoder)


def _judge(
    folder: Path, inputs: Inputs, settings: NightlySettings, gathered: dict[str, Any], earlier: Earlier
) -> dict[str, Any]:
    champion = None
    if inputs.champion is not None:
        reference = f"models:/{settings.registry.model_name}/{inputs.champion}"
        champion = registry.resolve(reference, settings.registry)
    return judge(
        folder / OUTCOMES, folder, folder / "bundle", champion, settings.catalog, gathered, settings.confidence, earlier
    )


def _earlier(work: Work, night: Night, last: dict[str, Any]) -> Earlier:
    """What tonight must know of the nights before: where the last began, until when the champion was judged."""
    state = judged_until = None
    for old in work.nights():
        if not old.is_done or old.id == night.id:
            continue
        state = ((old.find("judge") or {}).get("drift") or {}).get("state", state)
        if (old.find("promote") or {}).get("champion") == night.inputs.champion:
            judged_until = (old.find("gather") or {}).get("newest_us")
    return Earlier(night.id, last.get("since_us"), judged_until, state)


def _register(
    night: Night,
    settings: NightlySettings,
    trained: dict[str, Any] | None,
    judged: dict[str, Any] | None,
    gates: list[Gate],
    decided: dict[str, Any],
) -> dict[str, Any]:
    """One run a night, whatever came of it; a version where there is a bundle, without an alias."""
    bundle = night.folder / "bundle"
    has_bundle = bundle.is_dir()
    told = trained or {}
    tags = {"kind": "nightly", "gates": f"refused by {decided['refused_by']}" if decided["refused_by"] else "passed"}
    if has_bundle:
        verdict = told["verdict"]
        tags |= {"router_version": told["version"], "bundle_sha256": told["bundle_sha256"]}
        tags["verdict"] = "deploy" if verdict["deploy"] else f"do not deploy; serves {verdict['serves']}"
    record = registry.TrainingRecord(
        bundle=bundle if has_bundle else None,
        data_name="outcome table",
        data_sha256=told.get("data_sha256") or night.inputs.sha256,
        parameters=told.get("parameters", {}),
        metrics=told.get("metrics", {}) | _metrics(gates, judged or {}),
        tags=tags | {f"gate.{gate.name}": gate.line[:4000] for gate in gates},
        report=told,
    )
    run = registry.resume_run(record, (_NIGHT, night.id), settings.registry)
    number = None
    if has_bundle:
        number = registry.version_of_run(run, settings.registry) or registry.register(run, settings.registry, tags=tags)
    return {"run_id": run.run_id, "number": number, "name": settings.registry.model_name}


def _metrics(gates: list[Gate], judged: dict[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {"gates_failed": float(sum(not gate.passed for gate in gates))}
    for gate in gates:
        name = gate.name.replace(" ", "_")
        found |= {f"gate.{name}": gate.figure, f"gate.{name}.passed": float(gate.passed)}
    for name, figures in judged.get("versus", {}).items():
        for figure, difference in figures.items():
            prefix = f"against_{name.replace(' ', '_')}.{figure}"
            found |= {f"{prefix}.{end}": difference[end] for end in ("difference", "low", "high")}
    return found


def _promote(registered: dict[str, Any], inputs: Inputs, settings: NightlySettings) -> dict[str, Any]:
    registry.promote(registered["number"], inputs.champion, settings.registry)
    return {"champion": registered["number"], "previous": inputs.champion}
