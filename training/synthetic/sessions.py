"""Draws sessions of prompts.

The truth of a prompt is a function of its text and the world's seed, so equal
texts are equally hard: the hidden part of the difficulty comes from a keyed
hash of the text, the rest from templates and words that stand in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from router_ml.types import Float64Array
from training.synthetic.grammar import Writer, draw_integers
from training.synthetic.prompts import IntArray, Prompts, standard_length
from training.synthetic.workload import LEVELS, Context, Segment, Topic

LEVEL_SHARES = (0.42, 0.36, 0.22)
LEVEL_DIFFICULTY = (-1.3, 0.3, 2.4)
LEVEL_LOG_OUTPUT = (-0.5, 0.0, 0.7)
LEVEL_SKILL = (1.1, 1.2, 0.7)
"""How much a topic's skills matter at each level: hard tasks ask for all-round ability."""
CONSTRAINT_SHARES = (0.45, 0.25, 0.15, 0.10, 0.05)
CONSTRAINT_DIFFICULTY = 0.25
CONSTRAINT_LOG_OUTPUT = 0.08
LENGTH_DIFFICULTY = 0.3
LENGTH_LOG_OUTPUT = 0.12
LONGEST_SESSION = 60
SESSION_TAIL = 1.5
"""A session has at least k turns with probability k to the power of minus this."""
CONTEXT_SHARE_OF_HIDDEN = 0.5
"""Of the variance of the hidden difficulty, which the turns of a session have in common."""


@dataclass(frozen=True, slots=True)
class _Sessions:
    """The plan of a block: k sessions with n turns in all."""

    n_turns: IntArray
    segment: IntArray
    topic: IntArray
    """Within its segment."""
    tenant: IntArray
    has_context: NDArray[np.bool_]
    is_repeat: NDArray[np.bool_]


@dataclass(slots=True)
class _Turn:
    """One prompt as it was written."""

    text: str
    context: str
    difficulty: float
    level: int
    n_constraints: int


class PromptSource:
    """Draws prompts of the given segments; blocks of one generator state are always equal."""

    def __init__(self, segments: Sequence[Segment], seed: int, n_tenants: int) -> None:
        self.segments = tuple(segments)
        self.topics: tuple[Topic, ...] = tuple(topic for segment in segments for topic in segment.topics)
        self._first_topic = np.cumsum([0] + [len(segment.topics) for segment in segments])[:-1]
        self._key = seed.to_bytes(8, "little")
        weights = 1.0 / np.arange(1, n_tenants + 1)
        self._tenant_shares = weights / weights.sum()
        # A text that is not made for a topic needs no skill in particular: the row that -1 selects.
        self._skill = np.array([topic.skill for topic in self.topics] + [(0.0,) * len(self.topics[0].skill)])

    def draw(self, rng: np.random.Generator, n: int, shares: Float64Array, last_topic: float = 0.0) -> Prompts:
        """n prompts of as many sessions as that takes, the last one cut short; `shares` of the segments, [4].

        A share `last_topic` of the sessions is about the last topic of their segment, the rest about any.
        """
        sessions = self._plan(rng, n, shares, last_topic)
        repeated = np.repeat(np.arange(len(sessions.n_turns)), sessions.n_turns)
        levels = rng.choice(len(LEVELS), size=n, p=LEVEL_SHARES)
        n_constraints = rng.choice(len(CONSTRAINT_SHARES), size=n, p=CONSTRAINT_SHARES)
        turns = list(self._write(sessions, levels.tolist(), n_constraints.tolist(), draw_integers(rng)))
        return self._assemble(sessions, repeated, turns)

    def _plan(self, rng: np.random.Generator, n: int, shares: Float64Array, last_topic: float) -> _Sessions:
        uniform = 1.0 - rng.random(n)
        n_turns = np.minimum(np.floor(uniform ** (-1.0 / SESSION_TAIL)), LONGEST_SESSION).astype(np.int64)
        ends = np.cumsum(n_turns)
        k = int(np.searchsorted(ends, n)) + 1
        n_turns = n_turns[:k].copy()
        n_turns[-1] -= ends[k - 1] - n
        segment = rng.choice(len(self.segments), size=k, p=shares)
        n_topics = np.array([len(one.topics) for one in self.segments])
        single = n_turns == 1
        wanted = np.array([one.context_share for one in self.segments])[segment]
        repeats = np.array([one.repeats.share for one in self.segments])[segment]
        has_texts = np.array([bool(one.repeats.texts) for one in self.segments])[segment]
        topic = rng.integers(0, n_topics[segment])
        if last_topic:
            topic = np.where(rng.random(k) < last_topic, n_topics[segment] - 1, topic)
        return _Sessions(
            n_turns=n_turns,
            segment=segment,
            topic=topic,
            tenant=rng.choice(len(self._tenant_shares), size=k, p=self._tenant_shares),
            has_context=~single | (rng.random(k) < wanted),
            is_repeat=single & has_texts & (rng.random(k) < repeats),
        )

    def _write(
        self, sessions: _Sessions, levels: list[int], n_constraints: list[int], draws: Iterator[int]
    ) -> Iterator[_Turn]:
        row = 0
        for s, n_turns in enumerate(sessions.n_turns.tolist()):
            segment = self.segments[sessions.segment[s]]
            if sessions.is_repeat[s]:
                yield _repeat(segment, draws)
                row += 1
                continue
            topic = segment.topics[sessions.topic[s]]
            context = topic.contexts[next(draws) % len(topic.contexts)] if sessions.has_context[s] else None
            session = _Session(segment, topic, context, draws)
            for _ in range(n_turns):
                yield session.turn(levels[row], n_constraints[row])
                row += 1

    def _assemble(self, sessions: _Sessions, repeated: IntArray, turns: list[_Turn]) -> Prompts:
        segment = sessions.segment[repeated]
        is_repeat = sessions.is_repeat[repeated]
        first = np.concatenate([[0], np.cumsum(sessions.n_turns)[:-1]])
        turn = np.arange(len(turns)) - first[repeated]
        n_words = np.array([len(one.text.split()) for one in turns])
        length = standard_length(n_words)
        topic = np.where(is_repeat, -1, self._first_topic[segment] + sessions.topic[repeated])
        level = np.array([one.level for one in turns])
        n_constraints = np.array([one.n_constraints for one in turns])
        difficulty = np.array([one.difficulty for one in turns]) + LENGTH_DIFFICULTY * length
        log_output = self._log_output(segment, topic, level) + CONSTRAINT_LOG_OUTPUT * n_constraints
        chars = np.array([one.chars_per_token for one in self.segments])[segment]
        return Prompts(
            texts=tuple(one.text for one in turns),
            segment=segment,
            topic=topic,
            level=level,
            session=repeated,
            turn=turn,
            tenant=sessions.tenant[repeated],
            difficulty=difficulty,
            hidden_difficulty=self._hidden(turns),
            skill=self._skill[topic] * np.array(LEVEL_SKILL)[level, None],
            n_words=n_words,
            tokens=np.array([len(one.text) for one in turns]) / chars,
            prefix_tokens=np.where(turn > 0, [len(one.context) for one in turns], 0) / chars,
            log_output_tokens=log_output + LENGTH_LOG_OUTPUT * length,
        )

    def _log_output(self, segment: IntArray, topic: IntArray, level: IntArray) -> Float64Array:
        by_topic = np.log([one.output_tokens for one in self.topics])
        by_segment = np.log([one.repeats.output_tokens for one in self.segments])
        return np.where(topic < 0, by_segment[segment], by_topic[topic] + np.array(LEVEL_LOG_OUTPUT)[level])

    def _hidden(self, turns: list[_Turn]) -> Float64Array:
        whole = self._normals([one.text for one in turns])
        shared = self._normals([one.context or one.text for one in turns])
        mixed = np.sqrt(CONTEXT_SHARE_OF_HIDDEN) * shared + np.sqrt(1.0 - CONTEXT_SHARE_OF_HIDDEN) * whole
        return np.where([bool(one.context) for one in turns], mixed, whole)

    def _normals(self, texts: list[str]) -> Float64Array:
        """A standard normal number per text, always the same one for the same text and seed."""
        digests = [hashlib.blake2b(text.encode(), digest_size=8, key=self._key).digest() for text in texts]
        uniform = (np.frombuffer(b"".join(digests), dtype="<u8") >> 11) * 2.0**-53
        return np.asarray(ndtri(uniform + 2.0**-54))


class _Session:
    """Writes the turns of one session: the same context, topic and sticky words in each."""

    def __init__(self, segment: Segment, topic: Topic, context: Context | None, draws: Iterator[int]) -> None:
        sets = {**(context.sets if context else {}), **topic.sets}
        self._writer = Writer(topic.words, draws, sets)
        self._segment = segment
        self._topic = topic
        self._context = self._writer.write(context.template).rstrip() + "\n\n" if context else ""
        # What the context shows (a document of one law, code of one language) counts in each turn.
        self._shown = {**self._writer.used, **sets}
        self._difficulty = segment.difficulty + topic.difficulty + (context.difficulty if context else 0.0)

    def turn(self, level: int, n_constraints: int) -> _Turn:
        writer, draws = self._writer, self._writer.draws
        writer.used = dict(self._shown)
        openings, tasks = self._segment.openings, self._topic.tasks[level]
        before, after = openings[next(draws) % len(openings)]
        task = tasks[next(draws) % len(tasks)]
        parts = [writer.write(before) + writer.write(task) + writer.write(after)]
        constraints = self._segment.constraints
        start = next(draws)
        # The stride shares no factor with the 10 or 12 constraints of a segment, so none comes twice.
        parts += [writer.write(constraints[(start + 7 * k) % len(constraints)]) for k in range(n_constraints)]
        effects = sum(self._segment.effects.get(name, {}).get(word, 0.0) for name, word in writer.used.items())
        return _Turn(
            text=self._context + " ".join(parts).strip(),
            context=self._context,
            difficulty=self._difficulty + LEVEL_DIFFICULTY[level] + CONSTRAINT_DIFFICULTY * n_constraints + effects,
            level=level,
            n_constraints=n_constraints,
        )


def _repeat(segment: Segment, draws: Iterator[int]) -> _Turn:
    """The text at rank r comes up in proportion to about 1 / r."""
    texts = segment.repeats.texts
    rank = int((len(texts) + 1) ** (next(draws) / 2.0**32)) - 1
    return _Turn(texts[rank], "", segment.repeats.difficulty, -1, 0)
