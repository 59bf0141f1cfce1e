"""Shadow decisions of a journal as rows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from router_ml.journal import Journal, OutcomeReport
from router_ml.records import shadow_line
from router_ml.types import ShadowDecision
from training.shadow_table import SHADOW_SCHEMA, read_shadows

CHOSEN = ShadowDecision("d1", "next", "v2", "ab" * 32, "a@eu", "a", 0.75, 0.5, True, 0.75, 0.5, 1.0, 120, "")
REFUSED = ShadowDecision("d2", "next", "v2", "ab" * 32, "", "", None, None, False, None, None, 0.0, 9, "no_eligible_offer")  # fmt: skip  # noqa: E501


def test_each_shadow_is_a_row_whatever_else_the_journal_holds(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append_shadow(CHOSEN)
        journal.append_outcomes([OutcomeReport("d1", success=1.0)])
        journal.append_shadow(REFUSED)
    first, second = read_shadows(tmp_path).to_pylist()
    given = CHOSEN._asdict() | {"request_id": "d1", "decision_us": 120, "error": None}
    assert {name: value for name, value in first.items() if name != "timestamp"} == {
        name: given[name] for name in SHADOW_SCHEMA.names if name != "timestamp"
    }
    assert abs((datetime.now(UTC) - first["timestamp"]).total_seconds()) < 60
    assert (second["model"], second["cost_usd"], second["error"]) == (None, None, "no_eligible_offer")


def test_a_segment_that_is_given_twice_counts_once_and_none_gives_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(shadow_line(CHOSEN, 1_700_000_000_000_000) * 2 + shadow_line(CHOSEN._replace(test="other"), 1))
    assert read_shadows([path, path]).column("test").to_pylist() == ["next", "other"]
    (tmp_path / "empty").mkdir()
    assert read_shadows(tmp_path / "empty").schema == SHADOW_SCHEMA
