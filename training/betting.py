"""Whether a bounded mean is above zero, decided by betting on it.

A capital starts at `alpha` and stakes a share of itself on each value in turn. Where the mean is
zero or less the game is unfavourable whatever the bets, so the capital reaches 1 in at most a
share `alpha` of repetitions (Ville's inequality). That holds at any number of values and for any
distribution above the bound `reach` that is given; no variance and no shape is assumed.

The bets decide only how often a true mean above zero is recognised. They are those of STaR-Bets
(Voracek & Orabona 2025): what takes the capital to 1 over the values that remain, at the second
moment seen so far. That adapts to small variance, where Hoeffding's and Bentkus's bounds do not.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array

_GUESSES = 20
"""So many values' worth of a guessed second moment: the first bets have little else to go by."""
_GUESSED_MOMENT = 0.2
"""Of the squared size of values, as a share of `reach`; a third of prompts told apart is a common case."""
_LARGEST_BET = 0.9
"""Of what could be staked: the worst value never takes all of the capital."""
_MOST_STEPS = 1000
"""Bounds the time, not the validity: beyond it the bet changes only every few values."""

Draw = Callable[[int, int], Float64Array]
"""Values from the first index up to the second, shape (*shape, number of values)."""


def mean_above_zero(draw: Draw, shape: tuple[int, ...], n: int, *, reach: float, alpha: float) -> NDArray[np.bool_]:
    """For each cell of `shape`, whether its n values show a mean above zero; wrong at most `alpha` of the time.

    The values of a cell are independent draws in an order that does not depend on them, each at
    least ``-reach`` (`reach` > 0); there is no bound from above. Cells may depend on each other.
    """
    capital = np.full(shape, alpha)
    moment = np.full(shape, _GUESSES * _GUESSED_MOMENT * reach)
    edges = np.linspace(0, n, min(n, _MOST_STEPS) + 1).astype(np.int64).tolist()
    for start, stop in pairwise(edges):
        missing = -np.log(np.clip(capital, 1e-300, 1.0))
        # Nothing is missing once the capital has reached 1, so the bet is zero from there on.
        bet = np.sqrt(2 * missing * (_GUESSES + start) / (moment * (n - start)))
        np.minimum(bet, _LARGEST_BET / reach, out=bet)
        for value in np.moveaxis(draw(start, stop), -1, 0):
            capital *= 1 + bet * value
            moment += value * value
        if (capital >= 1).all():
            break
    return capital >= 1
