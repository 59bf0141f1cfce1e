"""Prompts to measure with: of so many tokens, of usual words, of words never seen before, beyond ASCII."""

from __future__ import annotations

import random
import string
from collections.abc import Callable

from router_ml.text import Tokenizer

_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so what up said
its about than into them can only other time new some could these two may first then do any like my now over
such our man even most made after also did many before must through years where much your way well down should
because each just those people mister how too little state good very make world still see own work men day get
here old between both life being under three never know same last another while us off might great go come
since against right came take used himself few house refactor function kubernetes tokenizer asynchronous
invoice contractual obligations indemnification summarize extract database migration subscription
cancellation, please explain why; does (x + y) = 42? write a test: customer's order
""".split()

_BEYOND_ASCII = """
für über können größe straße möchte naïve français être où déjà leçon señor mañana corazón está não coração
příliš žluťoučký kůň zażółć gęślą jaźń привет договор обязательства сколько почему ответственность γειά σύμβαση
γιατί ευθύνη שלום חוזה مرحبا عقد المسؤولية नमस्ते अनुबंध क्यों สัญญา ความรับผิด hợp đồng trách nhiệm “quoted” — 25 € ½
""".split()
_IDEOGRAPHS = "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后"

Word = Callable[[random.Random], str]


def usual(draw: random.Random) -> str:
    """A word that the tokenizer's cache holds after a few prompts, as in service."""
    return draw.choice(_WORDS)


def never_seen(draw: random.Random) -> str:
    """A word of random letters, which no cache holds."""
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 10)))


def beyond_ascii(draw: random.Random) -> str:
    """One of some words of many scripts or, one time in four, a run of ideographs that was hardly seen before."""
    if draw.random() < 0.25:
        return "".join(draw.choices(_IDEOGRAPHS, k=draw.randint(2, 8)))
    return draw.choice(_BEYOND_ASCII)


def prompts(tokenizer: Tokenizer | None, word: Word, n_tokens: int, n: int, seed: int = 0) -> list[str]:
    """`n` different texts of about `n_tokens` tokens each; without a tokenizer a word is taken for one token."""
    draw = random.Random(f"{word.__name__} {seed}")
    per_word = 1.0
    if tokenizer is not None:
        sample = " ".join(word(draw) for _ in range(2000))[: tokenizer.settings.max_chars]
        per_word = len(tokenizer.ids(sample)) / len(sample.split())
    n_words = max(1, round(n_tokens / per_word))
    return [" ".join(word(draw) for _ in range(n_words)) for _ in range(n)]
