"""Train and evaluate on real outcomes from the command line; figures guarded with room for noise."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from router_ml.cli import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    status = main([*argv, "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


def test_routerbench_routes_ahead_of_segment_means_by_its_own_split(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logs, column = str(data_dir / "routerbench_subset.parquet"), ("--prompt-column", "question")
    trained = run(capsys, "train", logs, *column, "--out", "bundle", "--no-register")
    judged = run(capsys, "evaluate", logs, *column, "--model", "bundle", "--plots", "plots")
    assert judged["comparison"]["figures"] == trained["evaluation"]["comparison"]["figures"]
    assert judged["rows_used"] == "those held out in training (the file's own split)"
    figures = judged["comparison"]["figures"]
    assert len(judged["comparison"]["models"]) == 11
    assert judged["comparison"]["n_prompts"] > 900
    assert figures["router"]["aiq"] > figures["single-model hull"]["aiq"] + 0.015
    assert figures["router"]["aiq"] > figures["segment means"]["aiq"] - 0.01
    assert figures["router"]["cost_share_99"] < 0.85
    assert judged["calibration"]["ece"] < 0.035
    assert judged["calibration"]["brier"] < judged["calibration"]["brier_segment_means"] + 0.002
    assert {path.name for path in Path("plots").iterdir()} == {"cost_quality.png", "calibration.png"}
    assert sum(file.stat().st_size for file in Path("bundle").iterdir()) < 25e6


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.long)], ids=["a fourth", "all of it"])
def test_zeroeval_with_holes_in_coverage_compares_what_can_be_compared(
    every: int, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """55 models: all of their 132,000 answers take as long as everything else here together."""
    monkeypatch.chdir(tmp_path)
    table = pq.read_table(data_dir / "zeroeval.parquet")
    prompts = pc.unique(table["prompt_id"]).to_pylist()[::every]
    logs = "zeroeval.parquet"
    pq.write_table(table.filter(pc.is_in(table["prompt_id"], pa.array(prompts))), logs)
    trained = run(capsys, "train", logs, "--out", "bundle", "--no-register")
    assert any("o1-mini-2024-09-12" in note and "no price" in note for note in trained["notes"])
    judged = run(capsys, "evaluate", logs, "--model", "bundle")
    comparison = judged["comparison"]
    assert len(comparison["models"]) >= 25
    assert any(note.startswith("not compared") for note in judged["notes"])
    assert comparison["figures"]["router"]["aiq"] > comparison["figures"]["single-model hull"]["aiq"]
    assert judged["calibration"]["ece"] < 0.035


def test_two_models_without_any_cost_need_a_catalog_and_get_routellms_figures(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logs = str(data_dir / "routellm_mmlu.parquet")
    assert main(["train", logs, "--out", "bundle", "--no-register"]) == 2
    assert "--catalog" in capsys.readouterr().err
    names = ("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1")
    offers = [{"name": name, "model": name, "request_usd": cost} for name, cost in zip(names, (1.0, 0.0), strict=True)]
    catalog = {"models": [{"name": name} for name in names], "offers": offers}
    Path("catalog.json").write_text(json.dumps(catalog))
    trained = run(capsys, "train", logs, "--catalog", "catalog.json", "--out", "bundle", "--no-register")
    figures = trained["evaluation"]["comparison"]["two_models"]
    assert figures["apgr"] > 0.55
    assert figures["cpt_50"] < 0.45
