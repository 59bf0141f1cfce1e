"""Texts from templates with slots.

In a template, `<name>` stands for one of the texts of the word list `name`,
which may hold slots themselves; `<3..40>` for a whole number from 3 to 40;
`<=law>` for one text of `law` that stays the same throughout a session;
`<line*2..5>` for two to five lines and `<sentence+2..5>` for as many sentences,
each drawn anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_SLOT = re.compile(r"<(=?)([a-z_]+|\d+\.\.\d+)(?:([*+])(\d+)\.\.(\d+))?>")
_DRAWS_AT_ONCE = 1 << 14


class Slot(NamedTuple):
    """A place in a template that is filled anew in each text."""

    symbol: str
    """Name of a word list; empty for a number."""
    sticky: bool
    low: int
    """Least number, or least repetitions."""
    high: int
    joint: str | None
    """What stands between repetitions; None: no repetition."""


Template = str | tuple[str | Slot, ...]
Words = Mapping[str, Sequence[Template]]


def compile_template(text: str) -> Template:
    """A text without slots stays a text, which is what most words are."""
    parts: list[str | Slot] = []
    end = 0
    for match in _SLOT.finditer(text):
        if match.start() > end:
            parts.append(text[end : match.start()])
        parts.append(_slot(match))
        end = match.end()
    if not parts:
        return text
    return (*parts, text[end:]) if end < len(text) else tuple(parts)


def _slot(match: re.Match[str]) -> Slot:
    sticky, symbol, joint, low, high = match.groups()
    if symbol[0].isdigit():
        low, high = symbol.split("..")
        return Slot("", False, int(low), int(high), None)
    if joint is None:
        return Slot(symbol, bool(sticky), 1, 1, None)
    return Slot(symbol, False, int(low), int(high), "\n" if joint == "*" else " ")


def symbols(template: Template) -> set[str]:
    """Names of the word lists that a template uses."""
    if isinstance(template, str):
        return set()
    return {part.symbol for part in template if isinstance(part, Slot) and part.symbol}


def draw_integers(rng: np.random.Generator) -> Iterator[int]:
    """An endless supply of whole numbers below 2**32: far cheaper one by one than calls of `rng`."""
    while True:
        yield from rng.integers(0, 1 << 32, size=_DRAWS_AT_ONCE).tolist()


class Writer:
    """Writes the texts of one session; what sticks, sticks until the next."""

    def __init__(self, words: Words, draws: Iterator[int], sticky: Mapping[str, str]) -> None:
        self.words = words
        self.draws = draws
        self._sticky = dict(sticky)
        self.used: dict[str, str] = {}
        """Sticky choices that were written since the caller last cleared this."""

    def write(self, template: Template) -> str:
        """Fill the slots of one template."""
        if isinstance(template, str):
            return template
        return "".join([part if isinstance(part, str) else self._fill(part) for part in template])

    def _fill(self, slot: Slot) -> str:
        if not slot.symbol:
            return str(self._between(slot))
        if slot.sticky:
            return self._stick(slot.symbol)
        alternatives = self.words[slot.symbol]
        if slot.joint is None:
            return self.write(alternatives[next(self.draws) % len(alternatives)])
        times = self._between(slot)
        return slot.joint.join(self.write(alternatives[next(self.draws) % len(alternatives)]) for _ in range(times))

    def _between(self, slot: Slot) -> int:
        return slot.low + next(self.draws) % (slot.high - slot.low + 1)

    def _stick(self, symbol: str) -> str:
        if symbol not in self._sticky:
            alternatives = self.words[symbol]
            self._sticky[symbol] = self.write(alternatives[next(self.draws) % len(alternatives)])
        self.used[symbol] = self._sticky[symbol]
        return self.used[symbol]
