from __future__ import annotations

import csv
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_ml.errors import InputError
from training.outcomes import OUTCOME_SCHEMA, OutcomeReader, prompt_id_of, read_outcomes, write_outcomes
from training.validation import SeenKeys

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def row(**values: Any) -> dict[str, Any]:
    return {"request_id": "r1", "prompt": "2 + 2?", "model": "small", "success": 1.0} | values


def rows(n: int, **values: Any) -> list[dict[str, Any]]:
    return [row(request_id=f"r{i}", prompt=f"question {i}", **values) for i in range(n)]


def jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def reader(*paths: Path, **options: Any) -> OutcomeReader:
    return read_outcomes(list(paths), now=NOW, **options)


def read(*paths: Path, **options: Any) -> list[dict[str, Any]]:
    return reader(*paths, **options).table().to_pylist()


def save(path: Path, lines: list[dict[str, Any]]) -> Path:
    """The same rows in the format of the name."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
    elif ".csv" in path.suffixes:
        opened = gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="")
        with opened as stream:
            writer = csv.DictWriter(stream, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    else:
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


NAMES = ["log.parquet", "log.jsonl", "log.jsonl.gz", "log.csv", "log.csv.gz", "log.ndjson", "LOG.JSONL"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_table(name: str, tmp_path: Path) -> None:
    lines = [
        row(
            request_id="r1",
            prompt='a "quoted"\nprompt, with כתב and 🙂',
            input_tokens=12,
            cost_usd=0.5,
            latency_ms=None,
        ),
        row(request_id="r2", success=None, input_tokens=None, cost_usd=None, latency_ms=7.25),
    ]
    path = save(tmp_path / name, lines)
    table = reader(path).table()
    assert table.schema.equals(OUTCOME_SCHEMA)
    assert [{name: found[name] for name in lines[0]} for found in table.to_pylist()] == lines


def test_a_folder_is_read_to_any_depth_without_what_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    jsonl(tmp_path / "b.jsonl", [row(request_id="b")])
    jsonl(tmp_path / "day" / "a.jsonl", [row(request_id="a")])
    jsonl(tmp_path / "b.rejects.jsonl", [row(request_id="rejected")])
    jsonl(tmp_path / ".b.jsonl", [row(request_id="hidden")])
    (tmp_path / "README.md").write_text("notes")
    assert [found["request_id"] for found in read(tmp_path)] == ["b", "a"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(3))
    table = reader(path, tmp_path)
    assert table.table().num_rows == table.report.rows_read == 3


def test_dataset_is_the_segment_unless_there_is_one(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "a.jsonl", [row(dataset="law")]))[0]["segment"] == "law"
    assert read(jsonl(tmp_path / "b.jsonl", [row(dataset="law", segment="app")]))[0]["segment"] == "app"


def test_another_column_can_be_the_prompt(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [row(question="What is 2 + 2?")])
    table = reader(path, prompt_column="question")
    assert next(table.batches())["prompt"].to_pylist() == ["What is 2 + 2?"]
    assert table.report.unknown_columns == ("prompt",)


def test_equal_prompts_get_one_made_id_in_whatever_form(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}]
    path = jsonl(
        tmp_path / "a.jsonl",
        [
            row(request_id="1"),
            row(request_id="2", prompt=None, messages=turns),
            row(request_id="3", prompt=None, messages=json.dumps(turns)),
            row(request_id="4", prompt="3 + 3?"),
            row(request_id="5", prompt_id="mine"),
        ],
    )
    ids = [found["prompt_id"] for found in read(path)]
    assert ids == [prompt_id_of("2 + 2?")] * 3 + [prompt_id_of("3 + 3?"), "mine"]


def test_the_made_prompt_id_is_the_same_for_ever() -> None:
    assert prompt_id_of("2 + 2?") == "70b499c547e0a11f"
    assert prompt_id_of("\ud800\x00") == prompt_id_of("\ufffd")


def test_equal_embeddings_get_one_made_id(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        [
            row(request_id=str(i), prompt=None, embedding=vector)
            for i, vector in enumerate([[1, 2.5], [1.0, 2.5], [0, 1]])
        ],
    )
    found = read(path)
    assert found[0]["prompt_id"] == found[1]["prompt_id"] != found[2]["prompt_id"]
    assert found[0]["embedding"] == [1.0, 2.5]


def test_made_request_ids_differ_by_row_and_show_a_copied_file(tmp_path: Path) -> None:
    lines = [{"prompt": "hi", "model": "small", "success": 1}] * 3
    first, copy = jsonl(tmp_path / "a.jsonl", lines), jsonl(tmp_path / "b.jsonl", lines)
    assert len({found["request_id"] for found in read(first)}) == 3
    both = reader(first, copy)
    assert both.table().num_rows == 3
    assert both.report.rejected_by_reason() == {"duplicate_request": 3}


def test_two_models_on_one_request_are_not_duplicates(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [row(model="small"), row(model="large"), row(model="small", success=0)])
    table = reader(path)
    assert [(found["model"], found["success"]) for found in table.table().to_pylist()] == [("small", 1), ("large", 1)]
    assert table.report.rejected_by_reason() == {"duplicate_request": 1}


def test_a_rejected_row_does_not_make_a_later_one_a_duplicate(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [row(success=7), row(success=1)])
    assert [found["success"] for found in read(path)] == [1]


@given(st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=12))
@settings(max_examples=40, deadline=None)
def test_duplicates_are_found_across_batches(batches: list[list[int]]) -> None:
    keys, before = SeenKeys(), set()
    for batch in batches:
        names = pa.array([str(number) for number in batch], pa.string())
        expected = []
        for number in batch:
            expected.append(number in before)
            before.add(number)
        assert keys.add(names, names).tolist() == expected


def test_rejected_rows_are_written_with_reason_and_values(tmp_path: Path) -> None:
    rejects = tmp_path / "out" / "log.rejects.jsonl"
    path = jsonl(
        tmp_path / "log.jsonl", [row(), row(request_id="r2", success=1.5, note="kept as it was"), row(request_id="r3")]
    )
    table = reader(path, rejects=rejects)
    assert table.table().num_rows == 2
    (line,) = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert (line["file"], line["row"], line["reason"], line["field"]) == (
        str(path),
        2,
        "success_out_of_range",
        "success",
    )
    assert line["values"] == {"request_id": "r2", "prompt": "2 + 2?", "model": "small", "success": 1.5}
    assert table.report.rejects_file == str(rejects)
    assert (table.report.rows_read, table.report.rows_kept, table.report.rows_rejected) == (3, 2, 1)


def test_without_rejected_rows_the_file_of_an_earlier_run_goes(tmp_path: Path) -> None:
    rejects = tmp_path / "log.rejects.jsonl"
    rejects.write_text("{}\n")
    table = reader(jsonl(tmp_path / "log.jsonl", rows(2)), rejects=rejects)
    table.table()
    assert not rejects.exists()
    assert table.report.rejects_file is None


def test_row_numbers_are_those_of_the_file_whatever_was_skipped(tmp_path: Path) -> None:
    good, bad = "p,m,1\n", "p,m,7\n"
    broken = "p,m,1,surplus\n"
    path = tmp_path / "log.csv"
    path.write_text("prompt,model,success\n" + good + broken + bad + good * 3 + broken + bad + good)
    rejects = tmp_path / "r.jsonl"
    table = reader(path, rejects=rejects)
    assert table.table().num_rows == 5
    found = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert sorted((line["row"], line["reason"]) for line in found) == [
        (2, "unreadable_row"),
        (3, "success_out_of_range"),
        (7, "unreadable_row"),
        (8, "success_out_of_range"),
    ]


def test_unknown_success_is_kept_and_counted(tmp_path: Path) -> None:
    table = reader(jsonl(tmp_path / "a.jsonl", [*rows(3), row(request_id="r9", success=None)]))
    assert table.table()["success"].to_pylist() == [1, 1, 1, None]
    assert table.report.success_unknown == 1
    assert table.report.models[0].mean_success == 1.0


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl", "log.csv"])
def test_nan_is_read_as_unknown_and_told(name: str, tmp_path: Path) -> None:
    nan = float("nan")
    lines = [row(cost_usd=1.0, output_tokens=3.0), row(request_id="r2", success=nan, cost_usd=nan, output_tokens=nan)]
    table = reader(save(tmp_path / name, lines))
    found = table.table().to_pylist()[1]
    assert (found["success"], found["cost_usd"], found["output_tokens"]) == (None, None, None)
    assert table.report.nan_read_as_null == {"success": 1, "output_tokens": 1, "cost_usd": 1}
    assert "NaN was read as unknown: success 1, output_tokens 1, cost_usd 1" in table.report.lines()


def test_truth_values_and_whole_floats_are_numbers(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        [row(success=True, input_tokens=4.0), row(request_id="2", success=0.5), row(request_id="3", success="0.25")],
    )
    found = read(path)
    assert [line["success"] for line in found] == [1, 0.5, 0.25]
    assert found[0]["input_tokens"] == 4


@pytest.mark.parametrize(
    "text",
    ["2026-11-01T12:00:00Z", "2026-11-01 13:00:00+01:00", "2026-11-01 12:00:00", "2026-11-01T12:00:00.000000123Z"],
)
def test_times_are_utc(text: str, tmp_path: Path) -> None:
    found = read(jsonl(tmp_path / "a.jsonl", [row(timestamp=text), row(request_id="2", timestamp="2026-11-01")]))
    assert [line["timestamp"] for line in found] == [
        datetime(2026, 11, 1, 12, tzinfo=UTC),
        datetime(2026, 11, 1, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    "kind", [pa.timestamp("ns"), pa.timestamp("ms", "Europe/Berlin"), pa.timestamp("s", "UTC"), pa.date32()]
)
def test_any_arrow_time_will_do(kind: pa.DataType, tmp_path: Path) -> None:
    days = (
        pa.array([20_000 * 86_400_000_000], pa.int64())
        .cast(pa.timestamp("us"))
        .cast(pa.timestamp("us", "UTC"))
        .cast(kind)
    )
    table = pa.table({"prompt": ["p"], "model": ["m"], "success": [1.0], "timestamp": days})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0]["timestamp"] == datetime(2024, 10, 4, tzinfo=UTC)


def test_odd_arrow_types_are_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "request_id": pa.array([1, 2]),
            "prompt": pa.array([b"bytes \xff", b"two"], pa.binary()),
            "model": pa.array(["m", "n"]).dictionary_encode(),
            "success": pa.array([True, False]),
            "cost_usd": pa.array(["0.5", None], pa.large_string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0], pa.float64()), 2),
            "messages": pa.array([[{"role": "user", "content": "hi"}], []]),
            "tenant": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet")
    assert (first["request_id"], first["prompt"], first["model"], first["success"]) == ("1", "bytes \ufffd", "m", 1.0)
    assert (first["cost_usd"], second["cost_usd"]) == (0.5, None)
    assert (first["embedding"], second["embedding"]) == ([1.0, 2.0], [3.0, 4.0])
    assert (json.loads(first["messages"]), second["messages"]) == ([{"role": "user", "content": "hi"}], None)


def test_blank_is_unknown(tmp_path: Path) -> None:
    blank = row(segment=" ", session_id="", tenant="\t", prompt="\u3000 \n", messages="[]", embedding=[1.0])
    found = read(jsonl(tmp_path / "a.jsonl", [blank]))[0]
    assert [found[name] for name in ("segment", "session_id", "tenant", "prompt", "messages")] == [None] * 5


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl", "log.csv"])
@pytest.mark.parametrize(
    "prompt", ["x" * 2_000_000, "a\x00b", "مرحبا بالعالم", "🙂👩‍👩‍👧", "NA", "null", "-", "\u200b", "a\r\nb"]
)
def test_unusual_prompts_are_kept_as_they_are(name: str, prompt: str, tmp_path: Path) -> None:
    path = save(tmp_path / name, [row(prompt=prompt), row(request_id="2")])
    assert [found["prompt"] for found in read(path)] == [prompt, "2 + 2?"]


@pytest.mark.parametrize(
    ("written", "kept"),
    [(r"\ud800", "\ufffd"), (r"a\udc00b", "a\ufffdb"), (r"\ud83d\ude42", "🙂"), (r"\ud800 \ud83d\ude42", "\ufffd 🙂")],
)
def test_lone_surrogates_become_replacement_characters(written: str, kept: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "{written}", "model": "m", "success": 1}}\n')
    assert read(path)[0]["prompt"] == kept


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "caf\xe9", "model": "m", "success": 1}\n')
    assert read(path)[0]["prompt"] == "caf\ufffd"


def test_a_parquet_string_that_is_not_utf8_is_replaced_and_can_be_rejected(tmp_path: Path) -> None:
    odd = _unchecked([b"caf\xe9", b"caf\xe9"])
    pq.write_table(pa.table({"prompt": odd, "model": ["m", "m"], "success": [1.0, 9.0]}), tmp_path / "a.parquet")
    rejects = tmp_path / "r.jsonl"
    assert [found["prompt"] for found in read(tmp_path / "a.parquet", rejects=rejects)] == ["caf\ufffd"]
    assert json.loads(rejects.read_text())["values"]["prompt"] == "caf\ufffd"


def _unchecked(values: list[bytes]) -> pa.Array:
    data = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(data), data.buffers())


def test_own_split_is_kept_and_other_values_are_told(tmp_path: Path) -> None:
    lines = [row(request_id=str(i), split=value) for i, value in enumerate(["train", "TEST ", "dev", None])]
    table = reader(jsonl(tmp_path / "a.jsonl", lines))
    assert table.table()["split"].to_pylist() == ["train", "test", None, None]
    assert any("`dev`" in line for line in table.report.lines())


def test_columns_that_are_not_used_are_told_with_the_name_they_may_have_meant(tmp_path: Path) -> None:
    table = reader(jsonl(tmp_path / "a.jsonl", [row(latency=7, cost=1, colour="red")]))
    table.table()
    assert table.report.unknown_columns == ("latency", "cost", "colour")
    hints = " ".join(table.report.hints)
    assert "`latency` is not used; did you mean `latency_ms`?" in hints
    assert "`cost` is not used; did you mean `cost_usd`?" in hints
    assert "colour" not in hints


def test_an_empty_file_among_others_is_told_and_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    jsonl(tmp_path / "b.jsonl", rows(1))
    table = reader(tmp_path)
    assert table.table().num_rows == 1
    assert table.report.empty_files == (str(tmp_path / "a.jsonl"),)


def test_the_report_reads_for_a_person_and_a_program(tmp_path: Path) -> None:
    lines = [
        *rows(4, timestamp="2026-11-01T00:00:00Z", segment="law"),
        row(request_id="x", model="large", timestamp="2026-11-03T00:00:00Z"),
        row(request_id="y", propensity=0),
    ]
    table = reader(jsonl(tmp_path / "a.jsonl", lines))
    table.table()
    assert table.report.lines() == [
        "6 rows read from 1 file, 5 kept, 1 rejected",
        f"  1 propensity_out_of_range: `propensity` must be above 0 and at most 1, or null where it is not known; "
        f"first: {tmp_path / 'a.jsonl'} row 6, found 0",
        "from 2026-11-01T00:00:00+00:00 to 2026-11-03T00:00:00+00:00",
        "2 models: small (4), large (1)",
        "1 segments: law (4)",
    ]
    told = json.loads(json.dumps(table.report.to_dict()))
    assert told["rejected_by_reason"] == {"propensity_out_of_range": 1}
    assert told["rows_rejected"] == 1


def test_many_batches_are_one_table(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(40_000))
    pq.write_table(pa.Table.from_pylist(rows(40_000)), tmp_path / "b.parquet")
    batches = list(reader(path).batches())
    assert len(batches) > 1
    whole = pa.Table.from_batches(batches)
    assert whole["request_id"].to_pylist() == [f"r{i}" for i in range(40_000)]
    assert whole.drop_columns("request_id").equals(reader(tmp_path / "b.parquet").table().drop_columns("request_id"))


def test_a_written_table_reads_back_the_same(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", [row(embedding=[1, 2]), row(request_id="2", timestamp="2026-11-01", split="test")]
    )
    table = reader(path).table()
    assert write_outcomes(tmp_path / "out" / "table.parquet", table.to_batches()) == 2
    assert reader(tmp_path / "out" / "table.parquet").table().equals(table)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["table.parquet"]


def test_a_table_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "table.parquet"
    write_outcomes(out, reader(jsonl(tmp_path / "a.jsonl", rows(1))).batches())
    before = out.read_bytes()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("[]\n")
    with pytest.raises(InputError):
        write_outcomes(out, reader(bad).batches())
    assert out.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "bad.jsonl", "table.parquet"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(OUTCOME_SCHEMA.names), json_values, max_size=8), min_size=1, max_size=8)
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_line_holds_the_outcome_is_a_table_or_a_clear_error(
    tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    path = jsonl(tmp_path / "a.jsonl", [row(request_id="first"), *lines])
    table = reader(path, rejects=tmp_path / "r.jsonl")
    try:
        found = table.table()
    except InputError as error:
        assert "a.jsonl" in str(error)
        return
    found.validate(full=True)
    success = [value for value in found["success"].to_pylist() if value is not None]
    assert all(0 <= value <= 1 for value in success)
    assert found["model"].null_count == found["request_id"].null_count == found["prompt_id"].null_count == 0
    rejected = (tmp_path / "r.jsonl").read_text().splitlines() if (tmp_path / "r.jsonl").exists() else []
    assert found.num_rows + len(rejected) == len(lines) + 1


def test_real_outcomes_are_valid_to_the_last_row(data_dir: Path) -> None:
    for name, column, n_rows, n_models in (
        ("routerbench_subset", "question", 34_804, 11),
        ("zeroeval", "prompt", 132_392, 55),
        ("routellm_mmlu", "prompt", 28_030, 2),
    ):
        source = data_dir / f"{name}.parquet"
        table = reader(source, prompt_column=column)
        found = table.table()
        raw = pq.read_table(source)
        assert (found.num_rows, len(table.report.models)) == (n_rows, n_models)
        assert np.array_equal(found["success"].to_numpy(), raw["success"].to_numpy(), equal_nan=True)
        assert found["prompt"].to_pylist() == raw[column].to_pylist()
        assert found["segment"].to_pylist() == raw["dataset"].to_pylist()
        assert found["cost_usd"].null_count == raw["cost_usd"].null_count
        assert found["latency_ms"].null_count == n_rows
