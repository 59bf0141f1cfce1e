from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from router_ml.errors import InputError
from router_ml.journal import Journal, OutcomeReport
from router_ml.privacy import NoText
from router_ml.records import decision_line, loss_line, outcome_line
from router_ml.types import Candidate, Decision, Digest, Message, Reason, Request
from training.ingest import IngestReport, ingest_journal
from training.outcomes import OUTCOME_SCHEMA, prompt_id_of, read_outcomes

MICROS = 1_763_674_435_123_456
REQUEST = Request(text="2 + 2?", segment="math", session_id="s", tenant="t")
CANDIDATES = (
    Candidate("small", "small", 0.7, 10.0, 0.001, None),
    Candidate("small-eu", "small", 0.7, 10.0, 0.002, None),
    Candidate("large", "large", 0.9, 12.0, 0.1, None),
)


def decision(decision_id: str = "d", **changes: Any) -> Decision:
    fields: dict[str, Any] = {
        "decision_id": decision_id,
        "offer": "small",
        "model": "small",
        "fallbacks": ("large",),
        "candidates": CANDIDATES,
        "reasons": (Reason.BEST_VALUE,),
        "propensity": 0.8,
        "quality_target": 0.99,
        "version": "3",
        "arm": "b",
        "bundle_sha256": "ab",
    }
    return Decision(**(fields | changes))


def decided(decision_id: str = "d", request: Request = REQUEST, **changes: Any) -> bytes:
    return decision_line(request, decision(decision_id, **changes), MICROS)


def reported(decision_id: str = "d", at: int = MICROS, **fields: Any) -> bytes:
    return outcome_line(OutcomeReport(decision_id, **fields), at)


def joined(folder: Path, *lines: bytes) -> tuple[IngestReport, list[dict[str, Any]]]:
    """Report and rows of a journal of one segment."""
    journal = folder / "journal"
    journal.mkdir(exist_ok=True)
    (journal / "1.jsonl").write_bytes(b"".join(lines))
    report = ingest_journal(journal, folder / "out")
    table = pq.read_table(report.table)
    assert table.schema.equals(OUTCOME_SCHEMA)
    return report, table.to_pylist()


def rejects(report: IngestReport) -> list[dict[str, Any]]:
    assert report.rejects is not None
    return [json.loads(line) for line in report.rejects.read_text(encoding="utf-8").splitlines()]


def test_a_journal_written_by_the_router_becomes_a_table(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.append_decision(REQUEST, decision())
        journal.append_outcomes([OutcomeReport("d", success=1.0, output_tokens=7, cost_usd=0.0)])
    report = ingest_journal(tmp_path / "journal", tmp_path / "out")
    (row,) = pq.read_table(report.table).to_pylist()
    for moment in ("timestamp", "reported_at"):
        assert abs(row.pop(moment) - datetime.now(UTC)).total_seconds() < 600
    known = {
        "request_id": "d",
        "prompt_id": prompt_id_of("2 + 2?"),
        "prompt": "2 + 2?",
        "segment": "math",
        "session_id": "s",
        "tenant": "t",
        "model": "small",
        "offer": "small",
        "propensity": 0.8,
        "version": "3",
        "arm": "b",
        "success": 1.0,
        "output_tokens": 7,
        "cost_usd": 0.0,
    }
    assert {name: value for name, value in row.items() if value is not None} == known
    assert (report.n_files, report.n_decisions, report.n_rows, report.rejected, report.rejects) == (1, 1, 1, {}, None)


def test_a_decision_without_outcome_is_a_row_of_unknown_success(tmp_path: Path) -> None:
    report, (row,) = joined(tmp_path, decided())
    assert (row["success"], row["cost_usd"], row["model"], row["propensity"]) == (None, None, "small", 0.8)
    assert report.n_without_outcome == 1


def test_parts_of_an_outcome_are_merged_and_the_last_that_tells_wins(tmp_path: Path) -> None:
    _, (row,) = joined(
        tmp_path,
        decided(),
        reported(at=MICROS + 3, success=0.25, offer="small"),
        reported(at=MICROS + 1, output_tokens=7, success=0.5, latency_ms=0.0),
        reported(at=MICROS + 2, cost_usd=0.01, model="small"),
    )
    assert (row["success"], row["output_tokens"], row["cost_usd"], row["latency_ms"]) == (0.25, 7, 0.01, 0.0)


def test_each_offer_that_answered_is_a_row_and_only_the_decided_model_has_a_propensity(tmp_path: Path) -> None:
    report, rows = joined(
        tmp_path,
        decided(),
        reported(error="timeout"),
        reported(offer="large", success=1.0),
        reported(model="elsewhere", success=0.0),
    )
    answered = [(row["offer"], row["model"], row["propensity"], row["success"], row["error"]) for row in rows]
    assert answered == [
        ("small", "small", 0.8, None, "timeout"),
        ("large", "large", None, 1.0, None),
        (None, "elsewhere", None, 0.0, None),
    ]
    assert (report.n_decisions, report.n_rows) == (1, 3)
    assert {row["request_id"] for row in rows} == {"d"}


def test_another_offer_of_the_decided_model_keeps_the_propensity(tmp_path: Path) -> None:
    _, (row,) = joined(tmp_path, decided(), reported(offer="small-eu", success=1.0))
    assert (row["offer"], row["model"], row["propensity"]) == ("small-eu", "small", 0.8)


def test_a_model_told_with_its_offer_is_believed(tmp_path: Path) -> None:
    _, (row,) = joined(tmp_path, decided(), reported(offer="new-offer", model="new-model", success=1.0))
    assert (row["offer"], row["model"], row["propensity"]) == ("new-offer", "new-model", None)


def test_an_outcome_is_found_in_another_segment_than_its_decision_whatever_their_order(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(reported("b", success=1.0) + decided("a"))
    (tmp_path / "2.jsonl.open").write_bytes(decided("b") + reported("a", success=0.0))
    report = ingest_journal([tmp_path / "1.jsonl", tmp_path / "2.jsonl.open"], tmp_path / "out")
    rows = pq.read_table(report.table).to_pylist()
    assert [(row["request_id"], row["success"]) for row in rows] == [("a", 0.0), ("b", 1.0)]


def test_messages_and_their_bare_text_are_one_prompt(tmp_path: Path) -> None:
    turns = Request(messages=(Message("user", "2 + 2?"),))
    _, rows = joined(tmp_path, decided("a"), decided("b", turns))
    assert rows[0]["prompt_id"] == rows[1]["prompt_id"]
    assert (rows[1]["prompt"], json.loads(rows[1]["messages"])) == (None, [{"role": "user", "content": "2 + 2?"}])


def test_an_embedding_comes_through_and_tells_prompts_apart(tmp_path: Path) -> None:
    one, two = (Request(embedding=np.array([0.1, value], dtype=np.float32)) for value in (1.0, 2.0))
    _, rows = joined(tmp_path, decided("a", one), decided("b", two), decided("c", one))
    assert rows[0]["embedding"] == [np.float32(0.1), 1.0] and rows[0]["prompt"] is None
    assert rows[0]["prompt_id"] == rows[2]["prompt_id"] != rows[1]["prompt_id"]


def test_a_segment_given_twice_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "1.jsonl"
    file.write_bytes(decided() + reported(success=1.0))
    report = ingest_journal([file, file], tmp_path / "out")
    assert (report.n_rows, report.n_repeated) == (1, 1)
    assert pq.read_table(report.table).num_rows == 1


def test_what_cannot_be_a_row_is_kept_aside_with_its_reason(tmp_path: Path) -> None:
    report, rows = joined(
        tmp_path,
        decided("good"),
        reported("nobody", success=1.0),
        reported("good", offer="gone", success=1.0),
        b'{"outcome":{"decision_id":"good","success":1.5}}\n',
        b'{"outcome":{"success":1}}\n',
        decided("zero", propensity=0.0),
        decided("mute", model=""),
        b'{"decision":{"decision_id":"x","model":"m","offer":"o","propensity":1,"time_unix_micros":"1"}}\n',
        b"junk\n",
        b'{"decision":broken\n',
        decided("torn")[:-1],
    )
    assert [row["request_id"] for row in rows] == ["good"]
    assert report.rejected == {
        "an outcome without its decision": 1,
        "an outcome of an unknown offer": 1,
        "an outcome out of range": 2,
        "a decision out of range": 3,
        "a line that is no record": 2,
    }
    assert (report.n_torn, report.n_without_outcome) == (1, 1)
    told = rejects(report)
    assert len(told) == 9
    assert {"reason", "file", "line", "detail"} == set(next(entry for entry in told if "file" in entry))
    (orphan,) = (entry for entry in told if entry["reason"] == "an outcome without its decision")
    assert orphan["outcome"]["decision_id"] == "nobody"
    assert any("`propensity` must be above 0" in entry.get("detail", "") for entry in told)


@pytest.mark.parametrize(
    "request_json",
    [
        '{"messages":"[1]"}',
        '{"messages":"{"}',
        '{"messages":"[{\\"role\\":\\"user\\"}]"}',
        '{"embedding_f32":"AAAAAAA="}',
        "{}",
    ],
)
def test_a_prompt_of_another_writer_that_cannot_be_read_is_kept_aside(tmp_path: Path, request_json: str) -> None:
    known = '"decision_id":"x","model":"m","offer":"o","propensity":1,"time_unix_micros":"5"'
    line = f'{{"decision":{{{known},"request":{request_json}}}}}\n'
    report, rows = joined(tmp_path, decided(), line.encode())
    assert (len(rows), report.rejected) == (1, {"a decision out of range": 1})


def test_the_report_is_told_in_plain_words_and_as_json(tmp_path: Path) -> None:
    report, _ = joined(tmp_path, decided(), decided(), reported("nobody"), b"{")
    lines = report.lines()
    assert lines[0].endswith("1 rows of 1 decisions in 1 segments; of 1 decisions no outcome was reported")
    assert "1 left out: an outcome without its decision" in lines
    assert any("more than once" in line for line in lines) and any("cut off" in line for line in lines)
    told = json.loads(json.dumps(report.to_dict()))
    assert told["n_torn"] == 1 and told["rejected"] == {"an outcome without its decision": 1}
    assert told["rejects"].endswith("journal.rejects.jsonl")


def test_a_second_call_replaces_the_table_and_a_rejects_file_that_is_no_longer_true(tmp_path: Path) -> None:
    first, _ = joined(tmp_path, decided("a"), reported("nobody"))
    second, rows = joined(tmp_path, decided("b"))
    assert first.table == second.table and [row["request_id"] for row in rows] == ["b"]
    assert os.listdir(tmp_path / "out") == ["journal.parquet"]


@pytest.mark.parametrize("lines", [b"", reported(), b"junk\n"])
def test_a_journal_without_a_decision_is_refused_and_the_old_table_stays(tmp_path: Path, lines: bytes) -> None:
    joined(tmp_path, decided("old"))
    with pytest.raises(InputError, match=r"no decision was found in .*1\.jsonl"):
        joined(tmp_path, lines)
    assert pq.read_table(tmp_path / "out" / "journal.parquet")["request_id"].to_pylist() == ["old"]
    assert os.listdir(tmp_path / "out") == ["journal.parquet"]


def test_a_folder_without_segments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder holds no segment of a journal"):
        ingest_journal(tmp_path, tmp_path / "out")


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(decided())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: the table cannot be written there"):
        ingest_journal(tmp_path / "1.jsonl", tmp_path / "file")


def test_the_table_it_writes_is_read_without_a_reject(tmp_path: Path) -> None:
    embedding = Request(embedding=np.array([0.5, -1.0], dtype=np.float32))
    lines = (decided("a"), decided("b", embedding), decided("c", Request(messages=(Message("user", "hi"),))))
    report, rows = joined(
        tmp_path, *lines, reported("a", error="timeout"), reported("a", offer="small-eu"), reported("a", offer="large")
    )
    reader = read_outcomes([tmp_path / "out"])
    assert reader.table().to_pylist() == rows and len(rows) == report.n_rows == 4
    without_ids = pq.read_table(report.table).drop_columns(["prompt_id"])
    pq.write_table(without_ids, tmp_path / "without.parquet")
    again = read_outcomes([tmp_path / "without.parquet"]).table()
    assert again["prompt_id"].to_pylist() == [row["prompt_id"] for row in rows]


def test_the_journal_folder_itself_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(decided())
    with pytest.raises(InputError, match="is the journal itself"):
        ingest_journal(str(tmp_path), tmp_path)


# -- what the journal tells of itself -------------------------------------------------------------


def test_losses_are_added_up_and_one_read_twice_counts_once(tmp_path: Path) -> None:
    lines = [loss_line("7-ab", 10, 3, "queue full", MICROS), loss_line("7-ab", 20, 2, "process ended", MICROS)]
    report, _ = joined(tmp_path, decided(), *lines, *lines, loss_line("8-cd", 0, None, "process ended", MICROS))
    assert (report.n_lost, report.n_unknown_losses, report.rejected) == (5, 1, {})
    told = "\n".join(report.lines())
    assert "5 decisions were made but lost" in told and "1 processes died without telling" in told


def test_a_decision_whose_prompt_was_withheld_is_left_out_and_counted(tmp_path: Path) -> None:
    withheld = decision_line(REQUEST, decision("w"), MICROS, prompt={"withheld": True})
    report, rows = joined(tmp_path, decided("d"), withheld, withheld, reported("w", success=1.0))
    assert [row["request_id"] for row in rows] == ["d"]
    assert (report.n_withheld, report.rejected) == (1, {})
    assert any("1 decisions left out: their prompts could not be redacted" in line for line in report.lines())


# -- a journal without text -----------------------------------------------------------------------


def digested(decision_id: str, request: Request = REQUEST, **changes: Any) -> bytes:
    digest = Digest(np.float32([0.6, 0.8]), np.float32([1, 2, 3, 4, 5, 6, 1]), 5.0, "e" * 64)._replace(**changes)
    made = decision(decision_id, digest=digest)
    return decision_line(request, made, MICROS, prompt=NoText(b"k" * 16).prompt(request, made))


def test_a_journal_without_text_becomes_a_table_of_embeddings(tmp_path: Path) -> None:
    other = Request(text="2 + 2?", tenant="other")
    report, rows = joined(
        tmp_path, digested("d1"), digested("d2"), digested("d3", other), reported("d1", success=1.0, input_tokens=9)
    )
    one, same, of_other = rows
    assert one["prompt"] is None and one["messages"] is None
    assert one["embedding"] == pytest.approx([0.6, 0.8]) and one["side_features"] == [1, 2, 3, 4, 5, 6, 1]
    assert (one["prompt_tokens"], one["encoder_sha256"], one["input_tokens"]) == (5.0, "e" * 64, 9)
    assert one["prompt_id"] == same["prompt_id"] != of_other["prompt_id"]
    (batch,) = read_outcomes([report.table]).batches()
    assert batch.column("side_features").to_pylist()[0] == [1, 2, 3, 4, 5, 6, 1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("side_f32", "AAA=", "`side_f32` must hold 32-bit floats; found 2 bytes"),
        ("embedding_f32", None, "`embedding_f32` must hold 32-bit floats; found 0 bytes"),
        ("prompt_hmac", None, "`digest` must hold `prompt_hmac`"),
        ("encoder_sha256", "", "`digest` must hold `prompt_hmac` and `encoder_sha256`"),
    ],
)
def test_a_digest_of_another_writer_that_is_not_whole_is_left_out(
    tmp_path: Path, field: str, value: str | None, message: str
) -> None:
    line = json.loads(digested("broken"))
    line["decision"]["request"]["digest"].pop(field)
    if value is not None:
        line["decision"]["request"]["digest"][field] = value
    report, rows = joined(tmp_path, decided("d"), json.dumps(line).encode() + b"\n")
    assert [row["request_id"] for row in rows] == ["d"]
    assert message in rejects(report)[0]["detail"]


def test_side_features_of_another_number_are_refused_by_row(tmp_path: Path) -> None:
    report, _ = joined(tmp_path, digested("d1"), digested("d2", side=np.float32([1, 2])))
    reader = read_outcomes([report.table])
    assert sum(batch.num_rows for batch in reader.batches()) == 1
    assert reader.report.to_dict()["rejected"]
