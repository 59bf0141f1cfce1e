"""What each segment's prompts are made of: topics, levels, contexts and their difficulty.

The four segments are data, one YAML file each beside this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

import yaml

from training.synthetic.grammar import Template, Words, compile_template, symbols

SEGMENT_NAMES = ("support", "extraction", "coding", "legal")
LEVELS = ("easy", "medium", "hard")
N_SKILLS = 3
"""Latent skills: reasoning, exactness of form, knowledge of the field."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Context:
    """What a session is about: an earlier conversation, a document, code."""

    template: Template
    difficulty: float
    sets: Mapping[str, str]
    """Sticky words that this context decides, e.g. the language of its code."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What a session asks for."""

    name: str
    difficulty: float
    skill: tuple[float, ...]
    """How much each latent skill helps."""
    output_tokens: float
    """Median of a plain answer at medium level."""
    words: Words
    contexts: tuple[Context, ...]
    tasks: tuple[tuple[Template, ...], ...]
    """Templates by level."""
    sets: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Repeats:
    """Texts that many users send word for word."""

    share: float
    texts: tuple[str, ...]
    difficulty: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Segment:
    """One application that sends prompts."""

    name: str
    share: float
    """Of all sessions."""
    difficulty: float
    chars_per_token: float
    context_share: float
    """Of single-turn sessions; longer ones always have a context."""
    openings: tuple[tuple[Template, Template], ...]
    """What stands before and after the task."""
    constraints: tuple[Template, ...]
    effects: Mapping[str, Mapping[str, float]]
    """Sticky word list -> word -> what it adds to the difficulty."""
    repeats: Repeats
    topics: tuple[Topic, ...]


def load_segments() -> tuple[Segment, ...]:
    """The four segments, in the order of `SEGMENT_NAMES`; ValueError where a file refers to an unknown word list."""
    return tuple(_segment(name, load_yaml(f"{name}.yaml")) for name in SEGMENT_NAMES)


def load_yaml(name: str) -> dict[str, Any]:
    """A data file of this package."""
    text = resources.files("training.synthetic").joinpath(name).read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return data


def _segment(name: str, data: dict[str, Any]) -> Segment:
    words = _words(data["words"])
    contexts = _contexts(data.get("context", []))
    segment = Segment(
        name=name,
        share=data["share"],
        difficulty=data["difficulty"],
        chars_per_token=data["chars_per_token"],
        context_share=data["context_share"],
        openings=tuple(_opening(text) for text in data["openings"]),
        constraints=tuple(map(compile_template, data["constraints"])),
        effects=data.get("effects", {}),
        repeats=Repeats(**(data["repeats"] | {"texts": tuple(data["repeats"]["texts"])})),
        topics=tuple(_topic(topic, words, contexts) for topic in data["topics"]),
    )
    for topic in segment.topics:
        _check_words(segment, topic)
    return segment


def _topic(data: dict[str, Any], words: Words, contexts: tuple[Context, ...]) -> Topic:
    return Topic(
        name=data["name"],
        difficulty=data["difficulty"],
        skill=tuple(data["skill"]),
        output_tokens=data["output_tokens"],
        words={**words, **_words(data.get("words", {}))},
        contexts=_contexts(data["context"]) if "context" in data else contexts,
        tasks=tuple(tuple(map(compile_template, data[level])) for level in LEVELS),
        sets=data.get("set", _NOTHING),
    )


def _words(data: Mapping[str, list[str]]) -> Words:
    return {name: tuple(map(compile_template, texts)) for name, texts in data.items()}


def _contexts(data: list[dict[str, Any]]) -> tuple[Context, ...]:
    return tuple(
        Context(compile_template(row["text"]), row.get("difficulty", 0.0), row.get("set", _NOTHING)) for row in data
    )


def _opening(text: str) -> tuple[Template, Template]:
    before, after = text.split("<task>")
    return compile_template(before), compile_template(after)


def _check_words(segment: Segment, topic: Topic) -> None:
    templates = [template for texts in topic.words.values() for template in texts]
    templates += [template for level in topic.tasks for template in level]
    templates += [context.template for context in topic.contexts] + list(segment.constraints)
    templates += [part for opening in segment.openings for part in opening]
    missing = set().union(*map(symbols, templates)) - set(topic.words)
    if missing:
        raise ValueError(f"segment `{segment.name}`, topic `{topic.name}`: unknown word lists {sorted(missing)}")
