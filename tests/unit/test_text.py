from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from router_ml.errors import BundleError
from router_ml.text import Tokenizer, TokenizerSettings, _WordCache, clean, cut, prompt_text
from router_ml.types import Message

WORDS = "[PAD] [UNK] [CLS] [SEP] hello world a b c d ##a ##b ##c ##d . , ! é 你".split()
ID = {word: index for index, word in enumerate(WORDS)}


def library_tokenizer(**normalizer: Any) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ID, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ID["[CLS]"]), ("[SEP]", ID["[SEP]"])]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer


JSON = library_tokenizer().to_str().encode()


def make(tokenizer_json: bytes = JSON, **settings: Any) -> Tokenizer:
    return Tokenizer(tokenizer_json, TokenizerSettings(pad_id=0, **settings))


def test_lone_surrogates_become_replacement_characters_and_nulls_go() -> None:
    assert clean("a\ud800b\udfffc\0d") == "a\ufffdb\ufffdcd"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_clean_keeps_all_other_text(text: str) -> None:
    assert clean(text) == text


@given(st.text(st.characters()))
def test_clean_text_can_always_be_encoded(text: str) -> None:
    clean(text).encode()


def test_one_message_is_the_same_prompt_as_its_bare_text() -> None:
    assert prompt_text([Message("user", "how much?")]) == "how much?"


def test_messages_are_joined_in_order_without_empty_ones() -> None:
    messages = [Message("system", "be brief"), Message("assistant", ""), Message("user", "how much?")]
    assert prompt_text(messages) == "be brief\nhow much?"


def test_no_messages_are_an_empty_prompt() -> None:
    assert prompt_text([]) == ""


def test_a_long_text_keeps_its_head_and_its_tail() -> None:
    assert cut("head" + "x" * 100 + "tail", 9) == "head\ntail"


@given(st.text(), st.integers(4, 30))
def test_cut_never_exceeds_the_limit_and_leaves_short_texts_alone(text: str, max_chars: int) -> None:
    short = cut(text, max_chars)
    assert len(short) == min(len(text), max_chars)
    assert short == text or (text.startswith(short[0]) and text.endswith(short[-1]))


def test_settings_survive_json() -> None:
    settings = TokenizerSettings(pad_id=3, max_chars=100, max_tokens=8, add_special_tokens=True, drop_ids=(1, 2))
    assert TokenizerSettings.from_dict(json.loads(json.dumps(settings.to_dict())), source="x") == settings


@pytest.mark.parametrize(
    ("change", "part"),
    [({"colour": 1}, "colour"), ({"max_chars": 3}, "max_chars"), ({"max_tokens": 0}, "max_tokens")],
)
def test_wrong_settings_are_refused_by_name(change: dict[str, int], part: str) -> None:
    with pytest.raises(BundleError, match=rf"manifest\.json.*{part}"):
        TokenizerSettings.from_dict(TokenizerSettings(pad_id=0).to_dict() | change, source="manifest.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"not json", JSON[:200]])
def test_a_damaged_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        make(content)


def test_words_and_word_pieces_get_the_vocabulary_ids() -> None:
    assert make().ids("Hello,  ABBA!").tolist() == [ID[w] for w in ("hello", ",", "a", "##b", "##b", "##a", "!")]


def test_text_without_tokens_has_no_ids() -> None:
    tokenizer = make()
    assert [row.tolist() for row in tokenizer.batch(["", " \t\n", "\0", "\u200b"])] == [[]] * 4


def test_a_literal_special_token_is_that_token_as_in_the_library() -> None:
    assert make().ids("hello [SEP] world").tolist() == [ID["hello"], ID["[SEP]"], ID["world"]]


def test_dropped_ids_are_left_out_on_both_paths() -> None:
    tokenizer = make(drop_ids=(ID["[UNK]"],))
    assert tokenizer.ids("hello zebra world").tolist() == [ID["hello"], ID["world"]]
    assert tokenizer.ids("hello zebra [CLS]").tolist() == [ID["hello"], ID["[CLS]"]]


def test_special_tokens_frame_each_text() -> None:
    tokenizer = make(add_special_tokens=True)
    assert tokenizer.ids("hello").tolist() == library_tokenizer().encode("hello").ids
    assert tokenizer.ids("").tolist() == [ID["[CLS]"], ID["[SEP]"]]


def test_a_long_row_keeps_head_and_tail_within_its_frame() -> None:
    tokenizer = make(add_special_tokens=True, max_tokens=6)
    expected = [ID[w] for w in ("[CLS]", "hello", "a", "b", "world", "[SEP]")]
    assert tokenizer.ids("hello a " + "c " * 50 + "b world").tolist() == expected


def test_the_true_length_is_counted_before_the_token_limit() -> None:
    assert make(max_tokens=4).tokens(["a " * 40])[0].n_whole == 40


def test_the_true_length_is_scaled_up_where_characters_were_cut() -> None:
    tokens = make(max_chars=100).tokens(["a " * 500])[0]
    assert len(tokens.ids) <= 51
    assert tokens.n_whole == pytest.approx(500, rel=0.05)


def test_a_text_of_two_megabytes_is_cut_before_any_work() -> None:
    assert len(make().ids("a b" * 700_000)) < 8192


def test_rows_are_padded_to_the_longest() -> None:
    tokenizer = make()
    padded = tokenizer.pad(tokenizer.batch(["hello", "", "a b c"]))
    assert padded.tolist() == [[ID["hello"], 0, 0], [0, 0, 0], [ID["a"], ID["b"], ID["c"]]]
    assert padded.dtype == np.int64


def test_padding_nothing_keeps_one_column() -> None:
    tokenizer = make()
    assert tokenizer.pad(tokenizer.batch([""])).tolist() == [[0]]
    assert tokenizer.pad([]).shape == (0, 1)


def _cased() -> tokenizers.Tokenizer:
    return library_tokenizer(lowercase=False)


def _uncleaned() -> tokenizers.Tokenizer:
    return library_tokenizer(clean_text=False)


def _with_normalised_token() -> tokenizers.Tokenizer:
    tokenizer = library_tokenizer()
    tokenizer.add_tokens([tokenizers.AddedToken("Hello World", normalized=True)])
    return tokenizer


def _split_on_white_space() -> tokenizers.Tokenizer:
    tokenizer = library_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _word_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


@pytest.mark.parametrize("other", [_cased, _uncleaned, _with_normalised_token, _split_on_white_space, _word_level])
def test_any_other_tokenizer_goes_through_the_library(other: Any) -> None:
    library = other()
    tokenizer = make(library.to_str().encode())
    assert not tokenizer.has_word_cache
    for text in ("Hello World, hello world!", "a\x01b ABBA", "[CLS] é 你 a.b"):
        assert tokenizer.ids(text).tolist() == library.encode(text, add_special_tokens=False).ids


def test_the_word_cache_applies_to_uncased_bert() -> None:
    assert make().has_word_cache


def test_the_word_cache_forgets_what_it_learned_when_full_and_stays_right() -> None:
    words = _WordCache({"known": b"known"}, str.encode, n_learned=5)
    for word in [f"w{i}" for i in range(12)] * 2 + ["known"]:
        assert words[word] == word.encode()
        assert len(words) <= 6


def test_very_long_words_are_not_kept() -> None:
    tokenizer = make()
    assert tokenizer._words is not None
    before = len(tokenizer._words)
    assert tokenizer.ids("ab" * 60).tolist() == [ID["[UNK]"]]
    assert len(tokenizer._words) == before


def test_threads_share_one_tokenizer() -> None:
    tokenizer, library = make(), library_tokenizer()
    texts = [f"{'abcd'[i % 4]}{'dcba'[i // 4 % 4]}{'badc'[i // 16 % 4]} hello" for i in range(400)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(tokenizer.ids, texts))
    expected = [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert [row.tolist() for row in found] == expected
