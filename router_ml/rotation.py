"""Which of several addresses to call next."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

_SHUNNED_S = 0.1
_SHUNNED_MOST_S = 2.0


class Rotation:
    """Addresses by number, each first in its turn; one that failed lately comes last. Safe to share between threads.

    An address that fails is shunned for 0.1 s, and for twice as long each
    further time in a row, up to 2 s: a server that hangs would otherwise make
    every n-th call late.
    """

    def __init__(self, n: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = itertools.count()
        self._failures = [0] * n
        self._shunned_until = [0.0] * n

    def order(self) -> list[int]:
        """All addresses, the one to call first at the front."""
        n = len(self._failures)
        start = next(self._turn) % n
        places = [*range(start, n), *range(start)]
        if any(self._failures):
            now = self._clock()
            places.sort(key=lambda place: self._shunned_until[place] > now)
        return places

    def answered(self, place: int) -> None:
        """It is well."""
        self._failures[place] = 0

    def failed(self, place: int) -> None:
        """It was down, late or wrong."""
        failures = self._failures[place] = self._failures[place] + 1
        seconds = min(_SHUNNED_MOST_S, _SHUNNED_S * 2.0 ** min(failures - 1, 10))
        self._shunned_until[place] = self._clock() + seconds
