"""What the bench asks with."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_ml.bench.prompts import Word, beyond_ascii, never_seen, prompts, usual
from router_ml.bundle import load


@pytest.mark.parametrize("word", [usual, never_seen, beyond_ascii])
@pytest.mark.parametrize("n_tokens", [16, 128, 512])
def test_prompts_have_about_as_many_tokens_as_asked(tiny_bundle: Path, word: Word, n_tokens: int) -> None:
    tokenizer = load(tiny_bundle).tokenizer
    assert tokenizer is not None
    texts = prompts(tokenizer, word, n_tokens, 50)
    if word is not beyond_ascii:  # of which the tokenizer of this bundle knows hardly a word
        mean = sum(len(tokenizer.ids(text)) for text in texts) / len(texts)
        assert mean == pytest.approx(n_tokens, rel=0.15)
    assert len(set(texts)) == len(texts)


def test_words_never_seen_are_new_in_every_round() -> None:
    rounds = [set(" ".join(prompts(None, never_seen, 100, 20, seed)).split()) for seed in range(3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(rounds[one] & rounds[other]) < 0.01 * len(rounds[one])


def test_what_is_beyond_ascii_is() -> None:
    assert all(not text.isascii() for text in prompts(None, beyond_ascii, 16, 50))


def test_the_same_seed_gives_the_same_prompts() -> None:
    assert prompts(None, usual, 16, 5, seed=3) == prompts(None, usual, 16, 5, seed=3) != prompts(None, usual, 16, 5)
