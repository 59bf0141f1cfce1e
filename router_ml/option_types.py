"""Numbers on the command line, each with an error that says what was expected."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import date
from math import inf
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def share(text: str) -> float:
    """Above 0, up to 1."""
    return _number(text, float, lambda value: 0 < value <= 1, "lie in (0, 1]")


def confidence(text: str) -> float:
    """Between 0 and 1, both excluded."""
    return _number(text, float, lambda value: 0 < value < 1, "lie between 0 and 1, both excluded")


def proportion(text: str) -> float:
    """Between 0 and 1, both excluded; also as a percentage."""
    return _percentage(text, lambda value: 0 < value < 1, "0.05 or 5%, above 0 and below 1")


def part(text: str) -> float:
    """Above 0, up to 1; also as a percentage."""
    return _percentage(text, lambda value: 0 < value <= 1, "0.1 or 10%, above 0 and up to 1")


def multiple(text: str) -> float:
    """1 or more, and finite."""
    return _number(text, float, lambda value: 1 <= value < inf, "be 1 or more, and finite")


def dollars(text: str) -> float:
    """US dollars, 0 or more."""
    return _number(text, float, lambda value: 0 <= value < inf, "be a number of US dollars, 0 or more")


def seconds(text: str) -> float:
    """Above 0."""
    return _number(text, float, lambda value: 0 < value < inf, "be a number of seconds above 0")


def hours(text: str) -> float:
    """0 or more."""
    return _number(text, float, lambda value: 0 <= value < inf, "be a number of hours, 0 or more")


def positive_int(text: str) -> int:
    """1 or more."""
    return _number(text, int, lambda value: value >= 1, "be 1 or more")


def ratio(text: str) -> float:
    """0 to 1, both included."""
    return _number(text, float, lambda value: 0 <= value <= 1, "lie in [0, 1]")


def positive(text: str) -> float:
    """Above 0 and finite."""
    return _number(text, float, lambda value: 0 < value < inf, "be above 0")


def day(text: str) -> str:
    """A date such as 2026-11-20."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a date such as 2026-11-20, found {text!r}") from None


def workers(text: str) -> int:
    """A number of processes, 1 or more; `auto`: one per core that this process may use."""
    if text == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        if (number := int(text)) >= 1:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number above 0, or auto; found {text!r}")


def _number(text: str, kind: type[_Number], fits: Callable[[_Number], bool], expected: str) -> _Number:
    value = _parsed(text, kind)
    if not fits(value):
        raise argparse.ArgumentTypeError(f"must {expected}, found {text}")
    return value


def _percentage(text: str, fits: Callable[[float], bool], expected: str) -> float:
    value = _parsed(text.removesuffix("%"), float) / (100 if text.endswith("%") else 1)
    if not fits(value):
        raise argparse.ArgumentTypeError(f"must be a share such as {expected}, found {text!r}")
    return value


def _parsed(text: str, kind: type[_Number]) -> _Number:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what}, found {text!r}") from None
