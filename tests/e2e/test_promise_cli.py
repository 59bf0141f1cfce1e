"""A quality target kept with confidence, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router_ml.cli import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    status = main(list(argv))
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def test_promised_points_are_trained_put_in_force_shown_and_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(capsys, "simulate", "--out", "full.parquet", "--full-information", "--days", "3", "--requests-per-day", "100")
    options = ("train", "full.parquet", "--out", "bundle", "--no-register", "--confidence", "0.9", "--json")
    trained = json.loads(run(capsys, *options))
    points = trained["operating_points"]
    assert points["confidence"] == 0.9
    for plain, promised in (("willingness", "promised_willingness"), ("thresholds", "promised_thresholds")):
        assert len(points[plain]) == len(points[promised]) == len(points["quality_targets"])
    # The easiest target is promised, at a level no bolder than the plug-in one; the hardest can never be.
    assert points["promised_willingness"][0] is not None
    assert points["promised_willingness"][0] <= points["willingness"][0]
    assert points["promised_willingness"][-1] is None
    assert trained["promise"]["basis"] == "outcomes of every model on each prompt"

    shown = run(capsys, "evaluate", "full.parquet", "--model", "bundle")
    assert "in force: promised with 90 % confidence; with 90 % confidence: saved, quality kept" in shown
    assert "no promise" in shown
    routed = json.loads(run(capsys, "route", "Which clause?", "--model", "bundle", "--quality-target", "1", "--json"))
    assert "target_unreachable" in routed["reasons"]


@pytest.mark.parametrize("value", ["0", "1", "1.5", "nan", "sure"])
def test_a_confidence_outside_of_zero_and_one_is_wrong_use(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "logs.parquet", "--confidence", value])
    assert stopped.value.code == 2
    assert "--confidence" in capsys.readouterr().err
