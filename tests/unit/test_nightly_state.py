"""The folder of the nightly job: what a night is made of, when it is gone on with, what is left of it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from router_ml.errors import InputError, RouterMlError
from training.nightly.inputs import NightlySettings, closed_segments, find_inputs
from training.nightly.state import SAME_NIGHT, Night, Work

NOW = datetime(2026, 11, 21, 2, 15, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    folder = tmp_path / "journal"
    folder.mkdir()
    for day in ("19", "18"):
        (folder / f"202611{day}T000000.000000Z-a-000001.jsonl").write_text(f"{day}\n")
    (folder / "20261120T000000.000000Z-a-000001.jsonl.open").write_text("being written\n")
    return folder


@pytest.fixture
def settings(tmp_path: Path, journal: Path) -> NightlySettings:
    return NightlySettings(tmp_path / "work", journal)


def begun(settings: NightlySettings, now: datetime = NOW) -> tuple[Work, Night]:
    work = Work(settings.work)
    with work.locked():
        return work, work.begin(find_inputs(settings, None, now))


def test_only_closed_segments_are_taken_in_the_order_they_were_begun(journal: Path) -> None:
    assert [path.name[:8] for path in closed_segments(journal)] == ["20261118", "20261119"]


def test_equal_inputs_have_one_name_and_anything_else_another(settings: NightlySettings, journal: Path) -> None:
    first = find_inputs(settings, None, NOW)
    assert find_inputs(settings, 3, NOW + timedelta(days=1)).sha256 == first.sha256  # nor does the champion matter
    other = NightlySettings(settings.work, journal, days=7)
    assert find_inputs(other, None, NOW).sha256 != first.sha256
    (journal / "20261120T000000.000000Z-a-000002.jsonl").write_text("more\n")
    assert find_inputs(settings, None, NOW).sha256 != first.sha256


def test_imported_logs_count_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("1\n")
    settings = NightlySettings(tmp_path / "work", logs=(tmp_path / "a.jsonl",))
    first = find_inputs(settings, None, NOW)
    os.utime(tmp_path / "a.jsonl", (0, 0))
    assert find_inputs(settings, None, NOW).sha256 == first.sha256
    (tmp_path / "a.jsonl").write_text("2\n")
    assert find_inputs(settings, None, NOW).sha256 != first.sha256


def test_nothing_to_take_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --journal DIR, --logs FILE, or both"):
        NightlySettings(tmp_path / "work")
    with pytest.raises(InputError, match="no such folder"):
        find_inputs(NightlySettings(tmp_path / "work", tmp_path / "none"), None, NOW)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no closed segment yet"):
        find_inputs(NightlySettings(tmp_path / "work", tmp_path / "empty"), None, NOW)


def test_a_stage_is_done_once_and_leaves_all_or_nothing(settings: NightlySettings) -> None:
    _, night = begun(settings)
    calls = []

    def stage() -> dict[str, int]:
        calls.append(1)
        return {"rows": len(calls)}

    def killed() -> dict[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        night.once("gather", killed)
    assert night.find("gather") is None
    assert [night.once("gather", stage) for _ in range(2)] == [{"rows": 1}, {"rows": 1}]
    assert [path.name for path in night.folder.iterdir() if path.name.startswith(".")] == []


def test_a_night_is_gone_on_with_for_some_hours_under_the_same_settings(settings: NightlySettings) -> None:
    work, night = begun(settings)
    assert work.to_resume(settings.sha256, NOW + timedelta(hours=1)) == night
    assert work.to_resume("other settings", NOW + timedelta(hours=1)) is None
    assert work.to_resume(settings.sha256, NOW + SAME_NIGHT) is None
    assert work.unfinished() == [night]
    night.close({"accepted": True})
    assert work.to_resume(settings.sha256, NOW + timedelta(hours=1)) is None
    assert work.of(find_inputs(settings, None, NOW)) == night


def test_a_superseded_night_is_over_but_was_not_done(settings: NightlySettings) -> None:
    work, night = begun(settings)
    (night.folder / "outcomes.parquet").write_text("rows")
    night.close({"by": "the next"}, superseded=True)
    assert night.is_over and not night.is_done
    assert work.of(night.inputs) is None and work.unfinished() == []
    assert sorted(path.name for path in night.folder.iterdir()) == ["inputs.json", "superseded.json"]


def test_a_folder_that_never_got_its_inputs_is_no_night(settings: NightlySettings) -> None:
    work, night = begun(settings)
    (night.folder / "inputs.json").unlink()
    assert work.nights() == []


def test_a_damaged_file_is_named(settings: NightlySettings) -> None:
    _, night = begun(settings)
    (night.folder / "gather.json").write_text("{")
    with pytest.raises(InputError, match=r"gather\.json: damaged"):
        night.find("gather")


def test_two_at_once_do_not_collide(settings: NightlySettings) -> None:
    with (
        Work(settings.work).locked(),
        pytest.raises(RouterMlError, match=f"process {os.getpid()}\\) is at work here; nothing was done"),
        Work(settings.work).locked(),
    ):
        raise AssertionError
    with Work(settings.work).locked():
        pass
