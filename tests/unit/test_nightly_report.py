"""The page of a night: whole in itself, told in words, and safe with whatever names the logs hold."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from training.nightly.gates import Gate
from training.nightly.inputs import Inputs, NightlySettings
from training.nightly.page import write_page
from training.nightly.report import headline, night_lines, report_of

DIFFERENCE = {
    "estimator": "doubly robust",
    "new": 0.9,
    "new_low": 0.88,
    "new_high": 0.92,
    "old": 0.88,
    "difference": -0.002,
    "low": -0.003,
    "high": -0.001,
    "effective_sample_size": 900.0,
    "verdict": "better",
    "reason": "",
    "more_requests": None,
}
EVIL = "<script>alert('model')</script>"


def told(*, judged: bool = True, accepted: bool = True) -> dict[str, dict[str, Any] | None]:
    versus = {name: dict.fromkeys(("success", "cost_usd", "value"), DIFFERENCE) for name in ("champion", "best model")}
    return {
        "gather": {
            "rows": 1000,
            "left_out": {"without a timestamp": 3},
            "by_day": [{"day": "2026-11-20", "rows": 10, "known": 0, "success": None}],
        },
        "check": {"new_rows": 100, "new_labels": 0.9, "days": 20.9},
        "train": {"version": "abc", "bundle_sha256": "f" * 64, "notes": [EVIL], "evaluation": None} if judged else None,
        "judge": {
            "from": "2026-11-15T00:00:00+00:00",
            "requests": 200,
            "known": 200,
            "basis": "all of them",
            "willingness": 12.5,
            "changes": [f"models new to the router: {EVIL}"],
            "versus": versus,
            "requests_per_month": 1e5,
            "best_model": EVIL,
            "calibration": {"n": 200, "ece": 0.01, "chance": 0.01, "brier": 0.1, "champion_ece": 0.02},
            "latency": {"new_us": 100.0, "champion_us": None},
            "traffic": {"new": {EVIL: 0.75, "b": 0.25}, "champion": {"b": 1.0}},
            "drift": {
                "alarms": 1,
                "false_alarms": 0.01,
                "n_tests": {"last night": 9},
                "notes": [],
                "findings": [
                    {"alarm": True, "beyond_noise": True, "kind": "success", "subject": EVIL, "since": "training"}
                    | {"words": "it fell by 0.1"}
                ],
                "state": {"kept": "for the next night"},
            },
        }
        if judged
        else None,
        "decide": {"accepted": accepted, "refused_by": "" if accepted else "enough data"},
        "register": {"name": "router", "number": 3 if judged else None, "run_id": "run"},
    }


def made(**changes: Any) -> dict[str, Any]:
    settings = NightlySettings(Path("work"), Path("journal"))
    inputs = Inputs(datetime(2026, 11, 21, tzinfo=UTC), "s", (), (), "a" * 64, 2)
    passed = changes.get("accepted", True)
    gates = [Gate("enough data", passed, 1.0, 2.0, "1 outcome", "Wait for more").to_dict()]
    return report_of("20261121-night", settings, inputs, told(**changes), gates)


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    (tmp_path / "cost_quality.svg").write_text("<svg/>")
    write_page(tmp_path / "report.html", made(), tmp_path)
    return Page(tmp_path / "report.html")


def test_the_page_needs_nothing_else_and_runs_nothing(page: Page) -> None:
    assert page.open == []
    assert "script" not in page.tags and "link" not in page.tags
    assert page.addresses and all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)


def test_names_from_the_logs_are_words_and_not_markup(page: Page) -> None:
    assert "".join(page.words).count(EVIL) >= 5


def test_colour_is_never_alone(page: Page) -> None:
    words = " ".join(page.words)
    for mark in ("✔ Promoted.", "✔ passed", "▲ drift", "75.0 % new version", "100.0 % champion", "← new version worse"):
        assert mark in words, mark


def test_figures_stand_on_the_page(page: Page) -> None:
    words = re.sub(r"\s+", " ", " ".join(page.words))
    assert "saves $200 a month [$100, $300]" in words
    assert "-0.20 [-0.30, -0.10]" in words  # points of success
    assert "2026-11-20 10 0 % unknown" in words


def test_a_night_refused_early_tells_why_and_leaves_the_rest_out(tmp_path: Path) -> None:
    report = made(judged=False, accepted=False)
    assert headline(report) == "Version 2 stays the champion: refused by enough data."
    write_page(tmp_path / "report.html", report, tmp_path)
    words = " ".join(Page(tmp_path / "report.html").words)
    assert "✖ Refused." in words and "Wait for more." in words and "Pictures" not in words


def test_the_same_stands_in_the_json_and_on_the_terminal() -> None:
    report = made()
    assert json.loads(json.dumps(report)) == report
    assert "state" not in report["drift"]
    lines = night_lines(report, "report.html")
    assert lines[0] == "Version 3 is the champion now, in place of version 2."
    assert any("saves $200 a month" in line for line in lines)
