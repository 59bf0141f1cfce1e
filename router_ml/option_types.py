"""Numbers on the command line, each with an error that says what was expected."""

from __future__ import annotations

import argparse
import os
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def share(text: str) -> float:
    """Above 0, up to 1."""
    value = _number(text, float)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in (0, 1], found {text}")
    return value


def confidence(text: str) -> float:
    """Between 0 and 1, both excluded."""
    value = _number(text, float)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, both excluded, found {text}")
    return value


def proportion(text: str) -> float:
    """Between 0 and 1, both excluded; also as a percentage."""
    value = _number(text.removesuffix("%"), float) / (100 if text.endswith("%") else 1)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a share such as 0.05 or 5%, above 0 and below 1, found {text!r}")
    return value


def multiple(text: str) -> float:
    """1 or more, and finite."""
    value = _number(text, float)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 1 or more, and finite, found {text!r}")
    return value


def dollars(text: str) -> float:
    """US dollars, 0 or more."""
    value = _number(text, float)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of US dollars, 0 or more, found {text}")
    return value


def seconds(text: str) -> float:
    """Above 0."""
    value = _number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, found {text}")
    return value


def positive_int(text: str) -> int:
    """1 or more."""
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, found {text}")
    return value


def _number(text: str, kind: type[_Number]) -> _Number:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what}, found {text!r}") from None


def ratio(text: str) -> float:
    """0 to 1, both included."""
    value = _number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], found {text}")
    return value


def positive(text: str) -> float:
    """Above 0 and finite."""
    value = _number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, found {text}")
    return value


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
