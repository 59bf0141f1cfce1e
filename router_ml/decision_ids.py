"""Ids of decisions: unique without asking anyone, and sorted by time."""

from __future__ import annotations

import os
import time

_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
"""Of a random digit, one whose two upper bits say that a UUID is of RFC 9562."""


def time_ordered_id() -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of unix milliseconds, then random ones, so that ids sort by time."""
    return time_ordered_ids(1)[0]


def time_ordered_ids(n: int) -> list[str]:
    """So many of them."""
    time_digits = f"{time.time_ns() // 1_000_000:012x}"
    head = f"{time_digits[:8]}-{time_digits[8:]}-7"
    random = os.urandom(10 * n).hex()
    return [
        f"{head}{random[at : at + 3]}-{_VARIANT[random[at + 3]]}{random[at + 4 : at + 7]}-{random[at + 8 : at + 20]}"
        for at in range(0, 20 * n, 20)
    ]
