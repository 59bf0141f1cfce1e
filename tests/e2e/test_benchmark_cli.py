"""`router-ml benchmark` as its user types it: on a small table of several models' answers."""

from __future__ import annotations

import json
import random
from multiprocessing import active_children
from pathlib import Path

import pytest

from router_ml.cli import main
from training.benchmark.suite import BenchmarkSettings

MODELS = {"small": (0.5, 0.0001), "mid": (1.5, 0.001), "large": (3.0, 0.01)}
EASY, HARD = "name a colour of the rainbow please", "prove the spectral theorem for compact operators"


def write_table(path: Path, n: int = 240, *, one_model: bool = False, text: bool = True) -> Path:
    draw = random.Random(0)
    rows = []
    for i in range(n):
        hard = draw.random() < 0.5
        prompt = f"{HARD if hard else EASY} number {i} with {draw.choice(['care', 'speed', 'joy'])}"
        for model in [draw.choice(list(MODELS))] if one_model else MODELS:
            ability, cost = MODELS[model]
            won = draw.random() < (0.2 + 0.25 * ability if hard else 0.95)
            row = {"model": model, "success": float(won), "cost_usd": cost, "segment": f"app-{i % 2}"}
            rows.append(row | ({"prompt": prompt} if text else {"embedding": [draw.random() for _ in range(4)]}))
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_it_writes_a_report_pictures_and_a_run(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    table = write_table(tmp_path / "answers.jsonl")
    argv = ["benchmark", str(table), "--splits", "1", "--no-simulated", "--jobs", "1", "--out", "found"]
    assert main([*argv, "--studies", "stability", "--studies", "promise"]) == 0
    printed = capsys.readouterr().out
    for words in (
        "router-ml",
        "segment means",
        "TF-IDF + LR",
        "oracle",
        "decisions that flip",
        "judged on the population",
    ):
        assert words in printed
    data = json.loads((tmp_path / "found" / "benchmark.json").read_text())
    known, hidden = data["tables"]["answers"]["standings"]
    assert (known["segment_known"], hidden["segment_known"]) == (True, False)
    assert known["lines"]["router-ml"]["aiq"] > known["lines"]["best single model"]["aiq"]
    assert data["tables"]["answers"]["stability"][0]["router"]["white space"] == 0
    pictures = {path.name for path in (tmp_path / "found").glob("*.png")}
    assert pictures == {"cost_quality_answers.png", "aiq_gain.png"}
    assert "kept in MLflow as run" in printed and any((empty_store / "artifacts").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"one_model": True}, "answers of several models to the same prompts"),
        ({"text": False}, "needs the text of the prompts"),
    ],
    ids=["one model per prompt", "no text"],
)
def test_a_table_it_cannot_judge_by_is_named_with_what_it_lacks(
    options: dict[str, bool], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "logs.jsonl", **options)
    argv = ["benchmark", str(table), "--no-simulated", "--no-studies", "--no-register", "--jobs", "1", "--splits", "1"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "logs" in said and words in said
    assert "Traceback" not in said


def test_a_table_that_lacks_the_column_stops_the_others_and_the_simulated_one_needs_none_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "logs.parquet"
    main(["simulate", "--out", str(table), "--days", "1", "--requests-per-day", "20", "--json"])
    capsys.readouterr()
    assert main(["benchmark", str(table), "--prompt-column", "question", "--jobs", "2", "--no-register"]) == 2
    assert "logs.parquet: no column `question`" in capsys.readouterr().err
    assert not active_children()
    settings = BenchmarkSettings((table,), ("question",))
    assert settings.prompt_columns_of(table) == ("question",)
    assert settings.prompt_columns_of(tmp_path / "simulated.parquet") == ("prompt",)


def test_a_file_that_is_not_there_and_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(tmp_path / "none.parquet"), "--no-simulated", "--jobs", "1"]) == 2
    assert "none.parquet" in capsys.readouterr().err
    assert main(["benchmark", "--no-simulated"]) == 2
    assert "nothing to benchmark on" in capsys.readouterr().err
