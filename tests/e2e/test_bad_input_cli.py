"""What a user sees who gives the program something wrong: one clear line, exit status 1 or 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router_ml.cli import main

ROW = {"request_id": "a", "prompt": "What is the invoice number?", "model": "small", "success": 1, "cost_usd": 0.001}


def logs(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def varied(n: int, **changes: object) -> list[dict]:
    """Rows that could be trained on, were it not for the changes."""
    return [
        ROW
        | {
            "request_id": str(i),
            "prompt": f"Question number {i}?",
            "model": ("small", "large")[i % 2],
            "success": i % 3 != 0,
        }
        | changes
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "empty"),
        (varied(40, success=None), "known `success`"),
        (varied(40, success=1), "one class"),
        (varied(40, model="small"), "only the model `small`"),
        ([{key: value for key, value in row.items() if key != "prompt"} for row in varied(40)], "prompt"),
        (
            [{key: value for key, value in row.items() if key != "success"} | {"sucess": 1} for row in varied(40)],
            "sucess",
        ),
        ([row | {"cost_usd": None} for row in varied(200)], "--catalog"),
    ],
    ids=["empty", "no known success", "one class", "one model", "no prompt", "misspelt column", "no cost"],
)
def test_logs_that_cannot_be_trained_on(
    rows: list[dict], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status = main(["train", logs(tmp_path / "logs.jsonl", rows), "--out", "bundle", "--no-register"])
    error = capsys.readouterr().err
    assert status in (1, 2)
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "bundle").exists()


def test_a_catalog_with_a_negative_price_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catalog.yaml").write_text(
        "models: [{name: small}]\noffers: [{name: small, model: small, request_usd: -1}]\n"
    )
    status = main(["train", logs(tmp_path / "l.jsonl", varied(40)), "--catalog", "catalog.yaml", "--out", "b"])
    assert status == 2
    assert "catalog.yaml: offer `small`: `request_usd`" in capsys.readouterr().err


def test_a_store_that_cannot_be_written_is_named_and_the_bundle_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").write_text("a file where the store should be")
    status = main(["train", logs(tmp_path / "l.jsonl", varied(400)), "--out", "bundle"])
    error = capsys.readouterr().err
    assert status == 2
    assert "mlruns" in error
    assert (tmp_path / "bundle" / "manifest.json").exists()


def test_a_missing_bundle_and_a_missing_version_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["route", "hello", "--model", "nowhere"]) == 1
    assert "nowhere is not a bundle" in capsys.readouterr().err
    assert main(["route", "hello", "--model", "models:/router@champion"]) == 2
    assert "train first" in capsys.readouterr().err


def test_rejected_rows_are_kept_aside_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [*varied(300), *varied(3, request_id="x", success=1.5), ROW | {"request_id": "y", "output_tokens": -4}]
    assert main(["train", logs(tmp_path / "l.jsonl", rows), "--out", "bundle", "--no-register", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    kept_aside = [json.loads(line) for line in next(tmp_path.glob("*.rejects.jsonl")).read_text().splitlines()]
    assert len(kept_aside) == 4
    assert sum(count["rows"] for count in report["read"]["rejected"]) == 4


def test_models_that_only_the_logs_or_only_the_catalog_know_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catalog.yaml").write_text(
        "models: [{name: small}, {name: huge}]\n"
        "offers: [{name: small, model: small, request_usd: 0.1}, {name: huge, model: huge, request_usd: 9}]\n"
    )
    options = ("--catalog", "catalog.yaml", "--out", "bundle", "--no-register", "--json")
    assert main(["train", logs(tmp_path / "l.jsonl", varied(300)), *options]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "in the logs but not in the catalog, so never chosen: large" in notes
    assert "in the catalog but without outcomes in the logs, so never chosen: huge" in notes
