from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.features import SIDE_FEATURES, Features, no_text_side, side_features, side_matrix


def side_of(text: str, n_tokens: float = 3.0) -> dict[str, float]:
    return dict(zip(SIDE_FEATURES, side_matrix([side_features(text, n_tokens)])[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("log_visible_chars", "abc dé\t\r\n", 5),
        ("log_visible_chars", "🙂", 1),
        ("log_lines", "a\n\nb\r\n", 1),
        ("log_lines", "\n\n  a\n b\n\nc", 2),
        ("log_question_marks", "why? why??", 3),
        ("log_digits", "0123456789 and 42", 12),
        ("log_digits", "٣ ² Ⅷ", 0),
        ("log_code_marks", "f(x) = {`a`; b};", 7),
        ("log_code_marks", "plain words, nothing else.", 0),
    ],
)
def test_each_count_enters_as_the_logarithm_of_one_more(name: str, text: str, count: int) -> None:
    assert side_of(text)[name] == pytest.approx(math.log(count + 1), rel=1e-6)


@given(text=st.text(), draw=st.randoms(use_true_random=False))
def test_white_space_alone_changes_nothing(text: str, draw: random.Random) -> None:
    def wider(match: re.Match[str]) -> str:
        return match.group() * draw.randint(1, 3)

    again = draw.choice(["", " ", "\n "]) + re.sub(r"[ \n]", wider, text) + draw.choice(["", "\n\n"])
    assert side_of(again) == side_of(text)


def test_the_tokens_are_those_given() -> None:
    assert side_of("abc", 1234.0)["log_tokens"] == pytest.approx(math.log(1235), rel=1e-6)


def test_an_empty_text_differs_from_no_text_by_the_flag_alone() -> None:
    empty, none = side_matrix([side_features("", 0.0)]), no_text_side(1)
    assert SIDE_FEATURES[-1] == "has_text"
    np.testing.assert_array_equal(empty[0, :-1], none[0, :-1])
    assert (empty[0, -1], none[0, -1]) == (1.0, 0.0)


@pytest.mark.parametrize("text", ["", "\x00", "\ud800", "مرحبا", "👩‍👩‍👧", " \t\n", "a" * 2_000_000])
def test_any_text_has_finite_features(text: str) -> None:
    side = side_matrix([side_features(text, float(len(text)))])
    assert np.isfinite(side).all()
    assert (side >= 0).all()


def test_a_batch_holds_the_rows_of_its_prompts_one_by_one() -> None:
    texts = ["", "why?", "f(x)\n" * 9, "1 2 3"]
    counts = [side_features(text, len(text) / 4) for text in texts]
    side = side_matrix(counts)
    assert side.dtype == np.float32
    assert side.shape == (4, len(SIDE_FEATURES))
    np.testing.assert_array_equal(side, np.concatenate([side_matrix([row]) for row in counts]))


@pytest.mark.parametrize("n", [0, 1, 5])
def test_requests_without_text_have_rows_of_zeros(n: int) -> None:
    side = no_text_side(n)
    assert side.dtype == np.float32
    assert side.shape == (n, len(SIDE_FEATURES))
    assert not side.any()


def test_no_prompts_make_no_rows() -> None:
    assert side_matrix([]).shape == (0, len(SIDE_FEATURES))


def test_the_order_of_the_side_features_is_frozen() -> None:
    """Bundles are refused by a program that orders them otherwise, so a change needs a new bundle format."""
    assert SIDE_FEATURES == (
        "log_visible_chars",
        "log_tokens",
        "log_lines",
        "log_question_marks",
        "log_digits",
        "log_code_marks",
        "has_text",
    )


def test_the_graph_is_fed_its_four_inputs_by_name_without_a_copy() -> None:
    ids, segment = np.zeros((2, 3), dtype=np.int64), np.array([0, 1])
    embedding, side, n_tokens = np.zeros((2, 4), dtype=np.float32), no_text_side(2), np.full(2, np.nan, np.float32)
    feed = Features(ids, embedding, side, segment, n_tokens).feed()
    assert list(feed) == ["ids", "embedding", "side", "segment"]
    assert all(given is taken for given, taken in zip((ids, embedding, side, segment), feed.values(), strict=True))
