"""Estimates for files of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from router_ml.errors import InputError
from router_ml.router import Router
from training.predict import SCHEMA, predict


@pytest.fixture(scope="module")
def router(tiny_bundle: Path) -> Router:
    return Router.load(tiny_bundle)


def prompts_file(folder: Path, *rows: dict) -> list[Path]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [path]


def test_each_prompt_gets_a_row_per_model_and_one_is_chosen(router: Router, tmp_path: Path) -> None:
    files = prompts_file(
        tmp_path, {"prompt": "bab bac bad", "prompt_id": "a"}, {"prompt": "xrob xroc", "prompt_id": "b"}
    )
    report = predict(files, router, tmp_path / "out.parquet", prompt_column="prompt", quality_target=None)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["prompt_id"].to_pylist() == ["a"] * 4 + ["b"] * 4
    assert table["model"].to_pylist() == ["tiny", "small", "mid", "large"] * 2
    assert sum(table["chosen"].to_pylist()) == report.prompts == 2
    assert sum(report.chosen.values()) == 2


def test_the_cost_of_a_model_is_that_of_its_cheapest_offer(router: Router, tmp_path: Path) -> None:
    files = prompts_file(tmp_path, {"prompt": "bab bac bad"})
    predict(files, router, tmp_path / "out.parquet", prompt_column="prompt", quality_target=None)
    rows = {row["model"]: row for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    decision = router.route("bab bac bad")
    for model, row in rows.items():
        costs = [c.cost_usd for c in decision.candidates if c.model == model and c.cost_usd is not None]
        assert row["cost_usd"] == pytest.approx(min(costs), rel=1e-5)


def test_a_prompt_that_repeats_is_estimated_once_and_counted(router: Router, tmp_path: Path) -> None:
    files = prompts_file(tmp_path, {"prompt": "bab"}, {"prompt": "bab"}, {"prompt": "  "}, {"prompt": None})
    report = predict(files, router, tmp_path / "out.parquet", prompt_column="prompt", quality_target=None)
    assert (report.prompts, report.repeated, report.without_text) == (1, 1, 2)


def test_a_higher_quality_target_never_chooses_for_less(router: Router, tmp_path: Path) -> None:
    files = prompts_file(tmp_path, *({"prompt": f"bab xro{c} de{c}"} for c in "bcdfghjklm"))
    spent = []
    for target in (0.8, 0.9, 0.99):
        predict(files, router, tmp_path / "out.parquet", prompt_column="prompt", quality_target=target)
        rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
        spent.append(sum(row["cost_usd"] for row in rows if row["chosen"]))
    assert spent == sorted(spent)


def test_a_file_without_the_text_column_is_named_with_the_way_out(router: Router, tmp_path: Path) -> None:
    files = prompts_file(tmp_path, {"question": "bab"})
    with pytest.raises(InputError, match=r"prompts.jsonl: has no column `prompt`.*--prompt-column"):
        predict(files, router, tmp_path / "out.parquet", prompt_column="prompt", quality_target=None)
    assert not (tmp_path / "out.parquet").exists()


def test_a_file_of_blank_prompts_leaves_nothing_behind(router: Router, tmp_path: Path) -> None:
    files = prompts_file(tmp_path, {"prompt": " "})
    with pytest.raises(InputError, match="no prompt to estimate"):
        predict(files, router, tmp_path / "out.parquet", prompt_column="prompt", quality_target=None)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]
