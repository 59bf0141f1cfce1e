"""Logged rows as every estimator takes them: checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Float64Array


@dataclass(frozen=True, slots=True, eq=False)
class LoggedRows:
    """n requests with one reward each; InputError names the array that does not fit."""

    reward: Float64Array
    """[n], what was seen of the model that was called; NaN where it was not reported."""
    action: NDArray[np.int64]
    """[n], index of that model."""
    propensity: Float64Array
    """[n], in (0, 1]."""
    target: Float64Array
    """[n, m], probabilities of the judged policy; rows sum to 1."""
    q: Float64Array
    """[n, m], expected reward of every model, by estimates that did not see the row's own reward."""
    cluster: NDArray[np.int64]
    """[n], or [n, 2] for two overlapping ways to group: equal where rows depend on each other."""
    label_propensity: Float64Array | None = None
    """[n], in (0, 1], the probability that a row's reward was reported; None: the same for all rows."""

    def __post_init__(self) -> None:
        n, m = len(self.reward), self.target.shape[-1]
        shapes = {"action": (n,), "propensity": (n,), "target": (n, m), "q": (n, m)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise InputError(f"`{name}` must have shape {shape}; found {getattr(self, name).shape}")
        if not n or np.isnan(self.reward).all():
            raise InputError("there is no row with a known reward to judge a policy by")
        if len(self.cluster) != n or self.cluster.ndim > 2:
            raise InputError(f"`cluster` must have shape {(n,)} or {(n, 2)}; found {self.cluster.shape}")
        if self.action.min() < 0 or self.action.max() >= m:
            raise InputError(f"`action` must lie in 0 to {m - 1}; found {self.action.min()} to {self.action.max()}")
        for name in ("propensity", "label_propensity"):
            values = getattr(self, name)
            if values is not None and not ((values > 0) & (values <= 1)).all():
                raise InputError(f"`{name}` must lie above 0 and at most at 1; found {_outside(values):g}")
        if not np.isfinite(self.q).all():
            raise InputError("`q` must be known for every model; found NaN or infinity")
        total = self.target.sum(axis=1)
        if (self.target < 0).any() or np.abs(total - 1).max() > 1e-6:
            worst = int(np.abs(total - 1).argmax())
            raise InputError(
                f"each row of `target` must hold probabilities that sum to 1; row {worst}: {total[worst]:g}"
            )

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def weight(self) -> Float64Array:
        """[n], target probability over propensity of the logged action."""
        return np.asarray(self.target[np.arange(len(self)), self.action] / self.propensity)

    @property
    def known(self) -> NDArray[np.bool_]:
        """[n], rows whose reward was reported."""
        return ~np.isnan(self.reward)

    @property
    def label_weight(self) -> Float64Array:
        """[n], by which a reported row stands for others like it that were not reported; 0 where not, mean 1."""
        weight = self.known / (1.0 if self.label_propensity is None else self.label_propensity)
        return np.asarray(weight / weight.mean())

    @property
    def residual(self) -> Float64Array:
        """[n], reward minus its estimate; 0 where the reward was not reported."""
        return np.nan_to_num(self.reward - self.q[np.arange(len(self)), self.action])

    def toward(self, target: Float64Array) -> LoggedRows:
        """The same rows for another policy [n, m]."""
        return replace(self, target=target)


def _outside(values: Float64Array) -> float:
    return float(values[~((values > 0) & (values <= 1))][0])
