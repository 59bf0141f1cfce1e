"""Text to token ids, the same in training and in serving: pure, no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from router_ml.errors import BundleError
from router_ml.types import Message

Int64Array = NDArray[np.int64]

DEFAULT_MAX_CHARS = 8192
"""About 2,000 tokens of English."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")
# What BERT's pre-tokenizer never splits (a run without ASCII white space and punctuation), or one mark.
# Control characters and all of non-ASCII belong to the runs: no rule of BERT reaches across an ASCII
# space or mark, so whatever it does to them can be asked of the tokenizer run by run.
_WORD = re.compile(r"[^\t\n\r -/:-@\[-`{-~]+|[!-/:-@\[-`{-~]")
_PLAIN_WORD = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")
_ODD_SPACES = "\x0b\x0c\x1c\x1d\x1e\x1f"
"""White space to `str.split`, but not to BERT, which drops it."""
_FEW_MISSING = 4
"""Where more than a quarter of the chunks are new (code, tables), one pass of the pattern is faster."""
_LEARNED_WORDS = 65_536
_LEARNED_WORD_CHARS = 64
_HF_BATCH = 1024


def clean(text: str) -> str:
    """The text as every tokenizer takes it: lone surrogates become U+FFFD, null characters go."""
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", text)
    return text.replace("\0", "")


def prompt_text(messages: Sequence[Message]) -> str:
    """The one text of a conversation: contents in order, a line break between them, roles left out.

    So one user message is the same prompt as its bare text, and a long conversation keeps, when it
    is cut, the start of its instructions and the end of its last message.
    """
    return "\n".join(message.content for message in messages if message.content)


def cut(text: str, max_chars: int) -> str:
    """At most `max_chars` characters: a longer text keeps its head and tail halves, a line break between.

    The tail matters: a prompt of worked examples has its question at the end.
    """
    if len(text) <= max_chars:
        return text
    tail = (max_chars - 1) // 2
    head = max_chars - 1 - tail
    return f"{text[:head]}\n{text[len(text) - tail :]}"


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """How a bundle's text becomes ids; stored beside its tokenizer.json."""

    pad_id: int
    """Fills rows of a batch; the graph gives it no weight."""
    max_chars: int = DEFAULT_MAX_CHARS
    """Longer texts are cut in the middle before they are tokenized."""
    max_tokens: int | None = None
    """Longer rows are cut in the middle, special tokens included; None: no limit but `max_chars`."""
    add_special_tokens: bool = False
    """Frame each text as the tokenizer's own post-processor does, e.g. with [CLS] and [SEP]."""
    drop_ids: tuple[int, ...] = ()
    """Ids left out of every row, e.g. the unknown token of a static encoder."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for a manifest."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"drop_ids": list(self.drop_ids)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str) -> TokenizerSettings:
        """The reverse; BundleError names `source` and the key that is unknown, missing or wrong."""
        known = {field.name for field in fields(cls)}
        if set(data) != known:
            raise BundleError(
                f"{source}: the tokenizer settings must have exactly the keys {sorted(known)}, found {sorted(data)}"
            )
        settings = cls(**{**data, "drop_ids": tuple(data["drop_ids"])})
        least = 4  # a head and a tail, each beside a special token
        if settings.max_chars < least or (settings.max_tokens is not None and settings.max_tokens < least):
            raise BundleError(
                f"{source}: `max_chars` and `max_tokens` must be at least {least}, "
                f"found {settings.max_chars} and {settings.max_tokens}"
            )
        return settings


class Tokens(NamedTuple):
    """The ids of one text, and how long the text really was."""

    ids: Int64Array
    """[t], not padded; may be read-only."""
    n_whole: float
    """Tokens of the whole text: counted before `max_tokens` cut, scaled up where `max_chars` cut;
    without special and dropped tokens."""


class Tokenizer:
    """Text to ids by a tokenizer.json, many times faster where it is uncased BERT WordPiece.

    There a word's ids do not depend on its neighbours, so they are looked up in a bounded cache that
    starts with the vocabulary's whole words; the ids are those of the `tokenizers` library, always.
    Safe to share between threads. Raises BundleError when `tokenizer_json` cannot be read.
    """

    def __init__(self, tokenizer_json: bytes, settings: TokenizerSettings) -> None:
        self.settings = settings
        try:
            config = json.loads(tokenizer_json)
            self._hf = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # `tokenizers` raises bare Exception
            raise BundleError(f"tokenizer.json: cannot be read as a tokenizer ({error})") from None
        self._hf.no_truncation()
        self._hf.no_padding()
        self._dropped = frozenset(settings.drop_ids)
        self._prefix, self._suffix = self._frame() if settings.add_special_tokens else (_array(()), _array(()))
        self._reserved = tuple(token["content"] for token in config.get("added_tokens", ()))
        self._words = _WordCache(self._whole_words(config), self._ask) if _is_uncased_bert(config) else None

    @property
    def has_word_cache(self) -> bool:
        """Whether the fast path applies to this tokenizer."""
        return self._words is not None

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id that can occur, padding included."""
        return max(int(self._hf.get_vocab_size(with_added_tokens=True)), self.settings.pad_id + 1)

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """The ids of each text, with its true length; see `Tokens`."""
        limit = self.settings.max_chars
        kept = [clean(cut(text, limit)) for text in texts]
        rows = self._by_library(kept) if self._words is None else [self._by_words(text, self._words) for text in kept]
        return [
            Tokens(self._limited(row), len(row) * max(1.0, len(text) / limit))
            for text, row in zip(texts, rows, strict=True)
        ]

    def ids(self, text: str) -> Int64Array:
        """Ids [t] of one text."""
        return self.tokens((text,))[0].ids

    def batch(self, texts: Sequence[str]) -> list[Int64Array]:
        """Ids [t] of each text; `pad` makes them a matrix."""
        return [row.ids for row in self.tokens(texts)]

    def sample(self, rng: np.random.Generator, length: int) -> str:
        """A text of `length` random tokens of the vocabulary; tokenized again it need not give the very same ones."""
        ids = rng.integers(0, self._hf.get_vocab_size(), length).tolist()
        return str(self._hf.decode(ids, skip_special_tokens=True)) or "a"

    def pad(self, rows: Sequence[Int64Array]) -> Int64Array:
        """Rows of ids as one matrix [n, L], filled up with `pad_id`; L is at least 1."""
        length = max((len(row) for row in rows), default=0)
        matrix = np.full((len(rows), max(1, length)), self.settings.pad_id, dtype=np.int64)
        for target, row in zip(matrix, rows, strict=True):
            target[: len(row)] = row
        return matrix

    def _by_words(self, text: str, words: _WordCache) -> Int64Array:
        for reserved in self._reserved:
            if reserved in text:
                return self._by_library((text,))[0]
        # Only ASCII is lowered here: beyond it Python and the library differ (final sigma, dotted I).
        if not text.isascii():
            return _joined(map(words.__getitem__, _WORD.findall(text)))
        text = text.lower()
        if not any(mark in text for mark in _ODD_SPACES):
            # Between white space nothing reaches across, so whole chunks ("end,") are looked up as well:
            # splitting at white space takes a fifth of the time of the pattern.
            chunks = text.split()
            found = list(map(words.get, chunks))
            missing = found.count(None)
            if missing * _FEW_MISSING <= len(found):
                if missing:
                    pairs = zip(chunks, found, strict=True)
                    found = [words.chunk(chunk) if ids is None else ids for chunk, ids in pairs]
                return _joined(found)
        return _joined(map(words.__getitem__, _WORD.findall(text)))

    def _by_library(self, texts: Sequence[str]) -> list[Int64Array]:
        rows: list[Int64Array] = []
        for start in range(0, len(texts), _HF_BATCH):
            encodings = self._hf.encode_batch_fast(list(texts[start : start + _HF_BATCH]), add_special_tokens=False)
            rows += [self._kept(encoding.ids) for encoding in encodings]
        return rows

    def _ask(self, word: str) -> bytes:
        return self._kept(self._hf.encode(word, add_special_tokens=False).ids).tobytes()

    def _kept(self, ids: Sequence[int]) -> Int64Array:
        return _array([i for i in ids if i not in self._dropped] if self._dropped else ids)

    def _limited(self, row: Int64Array) -> Int64Array:
        frame = len(self._prefix) + len(self._suffix)
        if self.settings.max_tokens is not None and len(row) + frame > self.settings.max_tokens:
            room = self.settings.max_tokens - frame
            row = np.concatenate((row[: room - room // 2], row[len(row) - room // 2 :]))
        return np.concatenate((self._prefix, row, self._suffix)) if frame else row

    def _frame(self) -> tuple[Int64Array, Int64Array]:
        """Ids that the post-processor puts before and after a text."""
        bare = self._hf.encode("a", add_special_tokens=False).ids
        framed = self._hf.encode("a", add_special_tokens=True).ids
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return _array(framed[:start]), _array(framed[start + len(bare) :])
        raise BundleError(
            "tokenizer.json: its post-processor changes the ids of the text itself, which is not supported"
        )

    def _whole_words(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        model = config["model"]
        longest = model["max_input_chars_per_word"]
        return {
            word: self._kept((index,)).tobytes()
            for word, index in model["vocab"].items()
            if len(word) <= longest and _PLAIN_WORD.fullmatch(word)
        }


class _WordCache(dict[str, bytes]):
    """Word, or chunk of words and marks -> its ids as bytes; when full, all but the first words are forgotten.

    A word that is missing is asked of the tokenizer.

    Bytes, because joining them and reading the result as an array is one pass in C.
    """

    def __init__(
        self, known: Mapping[str, bytes], ask: Callable[[str], bytes], n_learned: int = _LEARNED_WORDS
    ) -> None:
        super().__init__(known)
        self._known = known
        self._ask = ask
        self._limit = len(known) + n_learned

    def __missing__(self, word: str) -> bytes:
        return self._learned(word, self._ask(word))

    def chunk(self, chunk: str) -> bytes:
        """The ids of what stands between white space, words and marks."""
        return self._learned(chunk, b"".join(map(self.__getitem__, _WORD.findall(chunk))))

    def _learned(self, word: str, ids: bytes) -> bytes:
        if len(word) <= _LEARNED_WORD_CHARS:
            if len(self) >= self._limit:
                self.clear()
                self.update(self._known)
            self[word] = ids
        return ids


def _is_uncased_bert(config: Mapping[str, Any]) -> bool:
    """Whether the word cache gives this tokenizer's ids: BERT's rules, lower case, literal special tokens."""
    normalizer, pre_tokenizer = config.get("normalizer") or {}, config.get("pre_tokenizer") or {}
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text") is True
        and normalizer.get("lowercase") is True
        and pre_tokenizer.get("type") == "BertPreTokenizer"
        and config["model"].get("type") == "WordPiece"
        and all(token["normalized"] is False for token in config.get("added_tokens", ()))
    )


def _joined(parts: Iterable[bytes | None]) -> Int64Array:
    return np.frombuffer(b"".join(parts), dtype=np.int64)  # type: ignore[arg-type]


def _array(ids: Sequence[int]) -> Int64Array:
    return np.array(ids, dtype=np.int64)
