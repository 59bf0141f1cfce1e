"""Every bad input of an outcome table, and what the user is told."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router_ml.errors import InputError
from training.outcomes import OutcomeReader, read_outcomes, write_outcomes

NOW = datetime(2026, 11, 20, tzinfo=UTC)
GOOD: dict[str, Any] = {"request_id": "good", "prompt": "2 + 2?", "model": "small", "success": 1}


def reader(path: Path, **options: Any) -> OutcomeReader:
    return read_outcomes([path], now=NOW, **options)


def jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def without(*names: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name not in names} | more


@pytest.mark.parametrize(
    ("changes", "reason", "field", "said"),
    [
        ({"success": 1.01}, "success_out_of_range", "success", "0 to 1, or null"),
        ({"success": -0.1}, "success_out_of_range", "success", "found -0.1"),
        ({"success": "often"}, "unreadable_value", "success", "a finite number"),
        ({"success": float("inf")}, "unreadable_value", "success", "a finite number"),
        ({"success": [1]}, "unreadable_value", "success", "a finite number"),
        ({"propensity": 0}, "propensity_out_of_range", "propensity", "above 0 and at most 1"),
        ({"propensity": 1.5}, "propensity_out_of_range", "propensity", "above 0 and at most 1"),
        ({"input_tokens": -1}, "negative_value", "input_tokens", "0 or more"),
        ({"output_tokens": -5}, "negative_value", "output_tokens", "0 or more"),
        ({"cached_input_tokens": -5}, "negative_value", "cached_input_tokens", "0 or more"),
        ({"input_tokens": 1.5}, "unreadable_value", "input_tokens", "a whole number"),
        ({"output_tokens": 2**31}, "unreadable_value", "output_tokens", "a whole number below 2^31"),
        ({"output_tokens": 10**400}, "unreadable_value", "output_tokens", "a whole number"),
        ({"cost_usd": -0.01}, "negative_value", "cost_usd", "0 or more"),
        ({"cost_usd": float("-inf")}, "unreadable_value", "cost_usd", "a finite number"),
        ({"latency_ms": -1}, "negative_value", "latency_ms", "0 or more"),
        ({"ttft_ms": -1}, "negative_value", "ttft_ms", "0 or more"),
        ({"timestamp": "2026-11-21T00:00:01Z"}, "timestamp_in_future", "timestamp", "a time that has passed"),
        ({"timestamp": "yesterday"}, "unreadable_value", "timestamp", "a time such as"),
        ({"model": None}, "no_model", "model", "the name of the model"),
        ({"model": "  "}, "no_model", "model", "the name of the model"),
        ({"prompt": None}, "no_prompt", "prompt", "`prompt` that is not blank"),
        ({"prompt": " \n\t\u00a0"}, "no_prompt", "prompt", "`prompt` that is not blank"),
        ({"messages": "hello"}, "unreadable_value", "messages", "a JSON list of messages"),
        ({"messages": ["hello"]}, "unreadable_value", "messages", "a JSON list of messages"),
        ({"embedding": [1.0, None]}, "unreadable_value", "embedding", "a list of finite numbers"),
        ({"embedding": [1.0, float("nan")]}, "unreadable_value", "embedding", "a list of finite numbers"),
        ({"embedding": ["one"]}, "unreadable_value", "embedding", "a list of finite numbers"),
        ({"embedding": [1.0, 2.0, 3.0]}, "embedding_length", "embedding", "2 numbers as in the first row"),
        ({"success": 2, "model": None, "cost_usd": -1}, "no_model", "model", "the name of the model"),
        ({"request_id": "good"}, "duplicate_request", "request_id", "each `request_id` once per model"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_bad_row_costs_itself_and_is_told(
    changes: dict[str, Any], reason: str, field: str, said: str, tmp_path: Path
) -> None:
    first = GOOD | {"embedding": [0.5, 0.5]}
    path = jsonl(tmp_path / "log.jsonl", [first, GOOD | {"request_id": "bad"} | changes, without(request_id="last")])
    table = reader(path, rejects=tmp_path / "log.rejects.jsonl")
    assert table.table()["request_id"].to_pylist() == ["good", "last"]
    assert table.report.rejected_by_reason() == {reason: 1}
    (line,) = [line for line in table.report.lines() if line.startswith("  1 ")]
    assert f"`{field}`" in line and said in line and "log.jsonl row 2" in line
    written = json.loads((tmp_path / "log.rejects.jsonl").read_text())
    assert (written["reason"], written["field"], written["row"]) == (reason, field, 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a JSON object"),
        ('"text"', "found str"),
        ("[" * 100_000, "recursion"),
        ("\x00\x00", "not a JSON object"),
    ],
    ids=["cut", "a string", "deep", "null bytes"],
)
def test_a_line_that_is_no_object_costs_itself(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n{json.dumps(GOOD | {'request_id': 'last'})}")
    table = reader(path)
    assert table.table().num_rows == 2
    (count,) = table.report.rejected
    assert (count.reason, count.first_row) == ("unreadable_row", 3)
    assert said in " ".join(table.report.lines())


def nothing(path: Path) -> Path:
    return path / "missing.parquet"


def text(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


def parquet(**columns: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "log.parquet")
        return folder / "log.parquet"

    return make


def cut_parquet(folder: Path) -> Path:
    path = parquet(prompt=["p"] * 1000, model=["m"] * 1000, success=np.ones(1000))(folder)
    path.write_bytes(path.read_bytes()[:-40])
    return path


def cut_gzip(folder: Path) -> Path:
    lines = "".join(json.dumps(GOOD | {"request_id": str(i)}) + "\n" for i in range(5000)).encode()
    return text("log.jsonl.gz", gzip.compress(lines)[:-50])(folder)


def empty_folder(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no log")
    return folder


ONE = {"model": ["m"], "success": [1.0]}

FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (nothing, "no such file or folder"),
    "a folder without logs": (empty_folder, "the folder holds no file to read; expected names ending in .parquet"),
    "another format": (text("log.xlsx", "x"), "format not known by its name; expected one of .parquet"),
    "an empty JSONL": (text("log.jsonl", ""), "is empty or a header alone; expected a row"),
    "only blank lines": (text("log.jsonl", "\n\n"), "is empty or a header alone; expected a row"),
    "an empty Parquet": (text("log.parquet", ""), "is empty or a header alone; expected a row"),
    "an empty CSV": (text("log.csv", ""), "is empty or a header alone; expected a row"),
    "a header alone": (text("log.csv", "prompt,model,success\n"), "is empty or a header alone; expected a row"),
    "a Parquet of no rows": (parquet(prompt=pa.array([], pa.string()), model=[], success=[]), "is empty"),
    "no Parquet": (text("log.parquet", "prompt,model\n"), "cannot be read as Parquet"),
    "a cut Parquet": (cut_parquet, "cannot be read as Parquet"),
    "no gzip": (text("log.jsonl.gz", "{}"), "cannot be read as JSONL"),
    "a cut gzip": (cut_gzip, "cannot be read as JSONL"),
    "a JSON array": (text("log.json", '[{"prompt": "p"}]'), "expected one JSON object per line, found a JSON array"),
    "no line of JSON": (text("log.jsonl", "a\nb\n"), "none of the 2 rows is valid: 2 unreadable_row"),
    "a CSV in Latin-1": (text("log.csv", "prompt,model,success\ncaf\xe9,m,1\n".encode("latin-1")), "save it as UTF-8"),
    "a CSV header in Latin-1": (
        text("log.csv", "caf\xe9,model,success\np,m,1\n".encode("latin-1")),
        "save it as UTF-8",
    ),
    "a name twice": (text("log.csv", "prompt,model,model,success\np,m,m,1\n"), "['model'] more than once"),
    "an open quote": (text("log.csv", 'prompt,model,success\n"p,m,1\n'), "log.csv"),
    "a quote open for long": (
        text("log.csv", "prompt,model,success\np,m,1\n" + '"' + "p,m,1\n" * 4_000_000),
        "a row is longer than 8 MB: is a quote left open?",
    ),
    "no model": (text("log.csv", "prompt,modell,success\np,m,1\n"), "no column `model` (is it the column `modell`?)"),
    "no success": (text("log.csv", "prompt,model,sucess\np,m,1\n"), "no column `success` (is it the column `sucess`?)"),
    "nothing like it": (text("log.csv", "prompt,model,grade\np,m,1\n"), "no column `success`; found `prompt`, `model`"),
    "no prompt": (text("log.csv", "promt,model,success\np,m,1\n"), "(is it the column `promt`?)"),
    "no prompt in JSONL": (text("log.jsonl", json.dumps(without("prompt"))), "`prompt`, `messages` and `embedding`"),
    "only bad rows": (text("log.csv", "prompt,model,success\np,m,2\nq,m,3\n"), "2 success_out_of_range"),
    "success of a wrong type": (
        parquet(prompt=["p"], model=["m"], success=pa.array([[1.0]])),
        "column `success` is of type list<element: double>, which cannot be read as a finite number",
    ),
    "a prompt of a wrong type": (parquet(prompt=pa.array([["p"]]), **ONE), "cannot be read as text"),
    "tokens as a time": (parquet(prompt=["p"], input_tokens=pa.array([1], pa.timestamp("s")), **ONE), "a whole number"),
    "a timestamp as a number": (parquet(prompt=["p"], timestamp=[1_700_000_000], **ONE), "type int64"),
    "an embedding as a number": (parquet(prompt=["p"], embedding=[1.0], **ONE), "a list of finite numbers"),
    "messages as a number": (parquet(messages=[1.0], prompt=["p"], **ONE), "1.0"),
}


@pytest.mark.parametrize(("make", "said"), FILES.values(), ids=FILES)
def test_a_bad_file_is_named_with_what_is_wrong(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError) as caught:
        reader(path).table()
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_no_file_at_all_is_told() -> None:
    with pytest.raises(InputError, match="no file was given"):
        read_outcomes([])


def test_a_prompt_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", [GOOD | {"question": "?"}])
    with pytest.raises(InputError, match=r"no column `questoin`.*\(is it the column `question`\?\)"):
        reader(path, prompt_column="questoin").table()


def test_when_no_row_is_valid_the_rejects_file_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", [GOOD | {"success": 4}])
    with pytest.raises(InputError, match=r"all of them: .*r\.jsonl"):
        reader(path, rejects=tmp_path / "r.jsonl").table()


def test_rejects_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = jsonl(tmp_path / "log.jsonl", [GOOD | {"success": 4}])
    with pytest.raises(InputError, match="rejected rows cannot be written"):
        reader(path, rejects=tmp_path / "file" / "r.jsonl").table()


def test_a_table_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "out.parquet").mkdir()
    path = jsonl(tmp_path / "log.jsonl", [GOOD])
    with pytest.raises(InputError, match=r"out\.parquet: cannot be written"):
        write_outcomes(tmp_path / "out.parquet", reader(path).batches())
