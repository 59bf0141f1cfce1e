"""Rewrites keep the meaning, and change what they say they change."""

from __future__ import annotations

import random

import pytest

from training.benchmark.stability import REWRITES, politeness, typos, upper_case, white_space

TEXT = "Write a function that returns the sum of two numbers.\n\nUse Python, and explain each step in one line. " * 5


@pytest.mark.parametrize("name", REWRITES)
def test_the_same_draw_gives_the_same_text(name: str) -> None:
    assert REWRITES[name](TEXT, random.Random(3)) == REWRITES[name](TEXT, random.Random(3)) != TEXT


def test_case_and_white_space_keep_every_word() -> None:
    draw = random.Random(0)
    assert upper_case(TEXT, draw).lower() == TEXT.lower()
    assert white_space(TEXT, draw).split() == TEXT.split()


def test_politeness_keeps_the_prompt_whole() -> None:
    assert politeness(TEXT, random.Random(0)).endswith(TEXT)


def test_typos_touch_two_letters_in_a_hundred_and_no_mark() -> None:
    changed = typos(TEXT, random.Random(1))
    assert changed != TEXT
    assert abs(len(changed) - len(TEXT)) <= 0.02 * len(TEXT)
    kept = sum(a == b for a, b in zip(sorted(changed), sorted(TEXT), strict=False))
    assert kept > 0.5 * len(TEXT)
    assert [c for c in changed if not c.isalpha()] == [c for c in TEXT if not c.isalpha()]


@pytest.mark.parametrize("text", ["", "42 + 1 = ?", "a"])
def test_texts_without_letters_to_spare_pass(text: str) -> None:
    assert isinstance(typos(text, random.Random(0)), str)
