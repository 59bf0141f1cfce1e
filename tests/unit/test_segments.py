from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from router_ml.errors import InputError
from router_ml.records import OutcomeReport, RecordKind, outcome_line
from router_ml.segments import BadLine, Segment, journal_files, read_records, remove_old

DECISION = b'{"decision":{"decision_id":"d0"}}\n'


def line(decision_id: str) -> bytes:
    return outcome_line(OutcomeReport(decision_id, success=1.0), 1)


def ids(source: Path | list[Path]) -> list[str]:
    return [record.outcome.decision_id for record in read_records(source)]


def test_an_open_segment_is_told_by_its_name_and_a_closed_one_never_changes(tmp_path: Path) -> None:
    segment = Segment(tmp_path, "1-ab", 1)
    segment.append(line("a") + line("b"))
    (open_file,) = tmp_path.iterdir()
    assert open_file.name.endswith(".jsonl.open") and ids(tmp_path) == ["a", "b"]
    segment.close()
    (closed_file,) = tmp_path.iterdir()
    assert closed_file.name == open_file.name.removesuffix(".open") and ids(tmp_path) == ["a", "b"]
    assert closed_file.stat().st_mode & 0o007 == 0


def test_segments_are_read_in_the_order_they_were_begun(tmp_path: Path) -> None:
    for number, decision_id in enumerate("abc"):
        segment = Segment(tmp_path, "1-ab", number)
        segment.append(line(decision_id))
        segment.close()
    assert ids(tmp_path) == ["a", "b", "c"]


def test_a_segment_without_a_line_leaves_no_file(tmp_path: Path) -> None:
    Segment(tmp_path, "1-ab", 1).close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_known_to_be_on_disk_is_cut_off_at_close(tmp_path: Path) -> None:
    segment = Segment(tmp_path, "1-ab", 1)
    segment.append(line("a"))
    (file,) = tmp_path.iterdir()
    with file.open("ab") as stream:
        stream.write(line("b")[:20])
    segment.close()
    (closed,) = tmp_path.iterdir()
    assert closed.read_bytes() == line("a")


def test_a_torn_last_line_is_skipped_and_told(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl.open").write_bytes(line("a") + line("b")[:-1])
    bad: list[BadLine] = []
    found = [record.outcome.decision_id for record in read_records(tmp_path, on_bad_line=bad.append)]
    assert found == ["a"]
    assert [(entry.path.name, entry.line, entry.torn) for entry in bad] == [("1.jsonl.open", 2, True)]


def test_a_bad_line_is_told_by_file_and_number_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.jsonl").write_bytes(line("a") + b'{"outcome":{"error": secret}}\n' + line("b"))
    with caplog.at_level(logging.WARNING):
        assert ids(tmp_path) == ["a", "b"]
    assert "1.jsonl:2: skipped" in caplog.text and "secret" not in caplog.text


def test_lines_of_the_other_kind_are_passed_over_and_unknown_ones_are_told(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(b'{"decision":broken\n' + line("a") + b"junk\n" + DECISION)
    bad: list[BadLine] = []
    outcomes = list(read_records(tmp_path, only=(RecordKind.OUTCOME,), on_bad_line=bad.append))
    assert [record.outcome.decision_id for record in outcomes] == ["a"]
    assert [(entry.line, entry.kind) for entry in bad] == [(3, None)]
    decisions = list(read_records(tmp_path, only=(RecordKind.DECISION,), on_bad_line=bad.append))
    assert [record.decision.decision_id for record in decisions] == ["d0"]
    assert [(entry.line, entry.kind) for entry in bad[1:]] == [(1, RecordKind.DECISION), (3, None)]


def test_a_segment_that_is_closed_after_it_was_listed_is_still_found(tmp_path: Path) -> None:
    segment = Segment(tmp_path, "1-ab", 1)
    segment.append(line("a"))
    listed = journal_files(tmp_path)
    segment.close()
    assert ids(listed) == ["a"]


def test_a_segment_that_is_closed_between_a_look_and_its_opening_is_still_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segment(tmp_path, "1-ab", 1)
    segment.append(line("a"))
    listed = journal_files(tmp_path)
    segment.close()
    # A look always comes too early: no other way to have a writer act between two lines of ours.
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    assert ids(listed) == ["a"]


def test_a_segment_listed_under_both_names_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(line("a"))
    (tmp_path / "1.jsonl.open").write_bytes(line("a"))
    assert ids(tmp_path) == ["a"]


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a segment")
    assert journal_files(tmp_path) == []


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file or folder"):
        journal_files(tmp_path / "nowhere.jsonl")


# -- retention -------------------------------------------------------------------------------------

DAY = 86_400.0


def closed(folder: Path, name: str, *, days_old: float = 0.0, n_bytes: int = 10) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"x" * (n_bytes - 1) + b"\n")
    written = time.time() - days_old * DAY
    os.utime(path, (written, written))
    return path


def test_segments_are_removed_by_age_of_their_last_write(tmp_path: Path) -> None:
    old, older, young = (closed(tmp_path, name, days_old=days) for name, days in (("2", 8.0), ("1", 9.0), ("3", 6.9)))
    assert remove_old(tmp_path, keep_seconds=7 * DAY, keep_bytes=None) == [old, older]
    assert list(tmp_path.iterdir()) == [young]


def test_the_oldest_segments_beyond_the_bytes_are_removed(tmp_path: Path) -> None:
    for name in "1234":
        closed(tmp_path, name, n_bytes=40)
    assert [path.name for path in remove_old(tmp_path, keep_seconds=None, keep_bytes=100)] == ["2.jsonl", "1.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.jsonl", "4.jsonl"]


def test_open_segments_and_other_files_are_never_removed(tmp_path: Path) -> None:
    long_ago = time.time() - 99 * DAY
    for name in ("1.jsonl.open", "1-ab.writer", "notes.txt"):
        (tmp_path / name).write_bytes(b"x" * 1000)
        os.utime(tmp_path / name, (long_ago, long_ago))
    assert remove_old(tmp_path, keep_seconds=DAY, keep_bytes=1) == []
    assert len(list(tmp_path.iterdir())) == 3


def test_a_segment_removed_after_it_was_listed_is_passed_over_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(line(name))
    listed = read_records(tmp_path)
    assert next(listed).outcome.decision_id == "a"
    (tmp_path / "b.jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        assert list(listed) == []
    assert "b.jsonl: removed since it was listed" in caplog.text
