from __future__ import annotations

import re

import numpy as np
import pytest

from training.synthetic.grammar import Writer, compile_template, draw_integers, symbols
from training.synthetic.workload import LEVELS, N_SKILLS, SEGMENT_NAMES, load_segments

WORDS = {
    "law": tuple(map(compile_template, ("Swiss", "Dutch", "French", "Irish", "Spanish"))),
    "line": tuple(map(compile_template, ("pay <1..9>", "owe <1..9>"))),
}


def write(template: str, seed: int = 0, sticky: dict[str, str] | None = None) -> str:
    draws = draw_integers(np.random.default_rng(seed))
    return Writer(WORDS, draws, sticky or {}).write(compile_template(template))


def test_a_text_without_slots_stays_as_it_is() -> None:
    text = "List<T> x = {a: <b c>}; if (1 < 2 && 3 > 2) return <A>;"
    assert compile_template(text) == text


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        ("Under <law> law.", r"Under (Swiss|Dutch|French|Irish|Spanish) law\."),
        ("<3..5>0", r"[3-5]0"),
        ("<line*2..3>", r"(pay|owe) [1-9](\n(pay|owe) [1-9]){1,2}"),
        ("<line+4..4>", r"(pay|owe) [1-9]( (pay|owe) [1-9]){3}"),
        ("<line+0..0>!", "!"),
    ],
)
def test_slots_are_filled_as_the_template_says(template: str, pattern: str) -> None:
    for seed in range(30):
        assert re.fullmatch(pattern, write(template, seed))


def test_every_number_of_a_range_comes_up() -> None:
    assert {write("<3..6>", seed) for seed in range(100)} == {"3", "4", "5", "6"}


def test_a_sticky_word_stays_the_same_and_is_recorded() -> None:
    writer = Writer(WORDS, draw_integers(np.random.default_rng(1)), {})
    template = compile_template("<=law> and <=law>")
    first, second = writer.write(template).split(" and ")
    assert first == second == writer.used["law"]
    assert writer.write(template) == f"{first} and {first}"


def test_a_sticky_word_can_be_decided_beforehand() -> None:
    assert {write("<=law>", seed, {"law": "Roman"}) for seed in range(5)} == {"Roman"}


def test_symbols_are_the_word_lists_that_a_template_uses() -> None:
    assert symbols(compile_template("<=law> <line*1..2> <1..9> plain")) == {"law", "line"}


def test_each_segment_has_topics_with_tasks_at_each_level() -> None:
    segments = load_segments()
    assert tuple(segment.name for segment in segments) == SEGMENT_NAMES
    assert sum(segment.share for segment in segments) == pytest.approx(1.0)
    for segment in segments:
        assert len(segment.topics) >= 6
        for topic in segment.topics:
            assert len(topic.skill) == N_SKILLS
            assert len(topic.tasks) == len(LEVELS)
            assert all(len(templates) >= 2 for templates in topic.tasks)


def test_effects_are_on_words_that_exist() -> None:
    for segment in load_segments():
        for name, effects in segment.effects.items():
            assert all(set(effects) == set(topic.words[name]) for topic in segment.topics)
