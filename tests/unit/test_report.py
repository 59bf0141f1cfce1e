"""What a training prints of its promise."""

from __future__ import annotations

from router_ml.types import Rule
from training.promise import Promise
from training.report import promise_lines

TARGETS = (0.9, 0.97, 0.99, 1.0)


def promise(reason: str | None = None) -> Promise:
    needed = (60, 350, 1234, None)
    return Promise(0.95, 400, "outcomes", reason, (5.0, None, None, None), (0.7, 0.8, None, None), needed)


def test_what_cannot_be_promised_is_named_with_the_data_that_it_would_take() -> None:
    [line] = promise_lines(promise(), TARGETS, Rule.PROMISE)
    assert line == (
        "not promised with 95 % confidence by 400 prompts to tune on; prompts like these that it would take, about: "
        "97% (somewhat more), 99% (1,200), 100% (no number would do, the safest setting itself falls short)"
    )


def test_the_rule_in_force_decides_which_promises_are_shown() -> None:
    [line] = promise_lines(promise(), TARGETS, Rule.THRESHOLD)
    assert "97%" not in line and "99% (1,200)" in line


def test_without_a_test_the_reason_is_given_and_complete_outcomes_are_asked_for() -> None:
    first, second = promise_lines(promise("of holes"), TARGETS, Rule.PROMISE)
    assert "prompts with outcomes of every model that it would take, about: 97% (350), 99% (1,200)" in first
    assert second == "  since of holes"


def test_nothing_is_said_where_every_target_shown_is_promised() -> None:
    kept = Promise(0.95, 400, "outcomes", None, (5.0, 1.0), (0.7, 0.8), (60, 90))
    assert promise_lines(kept, (0.9, 0.97), Rule.PROMISE) == []


def test_without_any_outcome_no_number_is_named() -> None:
    nothing = Promise(0.95, 0, "", "no prompt to tune on has a known outcome", (None,), (None,), (None,))
    assert promise_lines(nothing, (0.97,), Rule.PROMISE) == [
        "nothing can be promised with 95 % confidence, since no prompt to tune on has a known outcome"
    ]
