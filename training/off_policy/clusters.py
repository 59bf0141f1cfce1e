"""Which rows depend on each other: those of one prompt or one session, and of whatever these join."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from router_ml.types import Float64Array

_LARGEST_SHARE = 0.1
"""A prompt that everyone sends ("hi") joins all sessions; a component beyond this share is no independent unit."""

Ints = NDArray[np.int64]


def clusters_of(prompt: Ints, session: Ints) -> Ints:
    """Cluster of each of n rows, [n]; `session` is -1 where unknown, then a row is joined by its prompt alone.

    Rows are joined by prompt and by session: connected components of the two. Where one component would hold more
    than a tenth of the rows, [n, 2]: by prompt, and by session, of which the wider interval counts.
    """
    _, prompt = np.unique(prompt, return_inverse=True)
    _, own = np.unique(session_or_prompt(prompt, session), return_inverse=True)
    size = prompt.max(initial=0) + own.max(initial=0) + 2
    edges = (np.ones(len(prompt), dtype=np.int8), (prompt, prompt.max(initial=0) + 1 + own))
    component = connected_components(coo_array(edges, shape=(size, size)), directed=False)[1][prompt]
    _, cluster = np.unique(component, return_inverse=True)
    if np.bincount(cluster).max() <= max(_LARGEST_SHARE * len(cluster), 1):
        return np.asarray(cluster, dtype=np.int64)
    return np.column_stack([prompt, own]).astype(np.int64)


def session_or_prompt(prompt: Ints, session: Ints) -> Ints:
    """[n], a session of its own for each prompt whose `session` is not known (-1)."""
    return np.where(session < 0, session.max(initial=0) + 1 + prompt, session)


def sums_by(cluster: Ints, values: Float64Array) -> Float64Array:
    """Sums [k, ...] over the rows of each cluster; `cluster` is [n] and `values` [n] or [n, columns]."""
    _, place = np.unique(cluster, return_inverse=True)
    columns = values.reshape(len(values), -1).T
    sums = np.column_stack([np.bincount(place, column) for column in columns]).astype(np.float64)
    return np.asarray(sums.reshape(-1, *values.shape[1:]))
