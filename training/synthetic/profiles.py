"""What each model of the world is like: its own profile where it has one, drawn by price otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from router_ml.catalog import Catalog
from router_ml.types import Float64Array
from training.synthetic.prices import cheapest_offers, typical_cost_usd
from training.synthetic.workload import N_SKILLS, SEGMENT_NAMES, load_yaml


@dataclass(frozen=True, slots=True)
class Profiles:
    """Truth about m models, in catalog order."""

    ability: Float64Array
    """[m, 4], log-odds of success at difficulty 0, by segment."""
    skill: Float64Array
    """[m, N_SKILLS], gain per latent skill of a topic."""
    length: Float64Array
    """[m], gain per standard deviation of prompt length."""
    verbosity: Float64Array
    """[m], logarithm of the answer's length against the average."""
    token_factor: Float64Array
    """[m], input tokens against the average tokenizer."""
    ttft_ms: Float64Array
    """[m], median time to first token of a short prompt."""
    tokens_per_second: Float64Array
    """[m]"""

    def with_ability_change(self, model: int, change: float) -> Profiles:
        """The same models, one of them better or worse in every segment."""
        ability = self.ability.copy()
        ability[model] += change
        return replace(self, ability=ability)

    def with_answers_longer(self, model: int, factor: float) -> Profiles:
        """The same models, the answers of one of them `factor` times as long."""
        verbosity = self.verbosity.copy()
        verbosity[model] += np.log(factor)
        return replace(self, verbosity=verbosity)


def make_profiles(catalog: Catalog, seed: int) -> Profiles:
    """Profiles of all models of a catalog; drawn ones depend on seed, name and rank by price."""
    known = load_yaml("models.yaml")
    costs = [typical_cost_usd(offer) for offer in cheapest_offers(catalog)]
    ranks = np.argsort(np.argsort(costs, kind="stable")) / max(1, len(costs) - 1)
    rows = [
        known[name] if name in known else _drawn(name, float(rank), seed)
        for name, rank in zip(catalog.model_names, ranks, strict=True)
    ]
    return Profiles(
        ability=np.array([[row["ability"][segment] for segment in SEGMENT_NAMES] for row in rows], dtype=np.float64),
        skill=np.array([row["skill"] for row in rows], dtype=np.float64),
        **{name: _column(rows, name) for name in ("length", "verbosity", "token_factor", "ttft_ms")},
        tokens_per_second=_column(rows, "tokens_per_second"),
    )


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Float64Array:
    return np.array([row[name] for row in rows], dtype=np.float64)


def _drawn(name: str, rank: float, seed: int) -> dict[str, Any]:
    """A model of that rank by price (0 the cheapest, 1 the dearest): dearer is abler, with exceptions."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
    # Cheap models fall back most on code and law, as the known ones do.
    slopes = dict(zip(SEGMENT_NAMES, (2.0, 2.0, 2.8, 3.3), strict=True))
    own = rng.normal(0.0, 0.25)
    return {
        "ability": {
            segment: 3.5 - (1.0 - rank) * slope + own + rng.normal(0.0, 0.2) for segment, slope in slopes.items()
        },
        "skill": rng.normal(0.0, 0.4, size=N_SKILLS) + (rank - 0.5) * 0.8,
        "length": rng.normal(0.4 * (rank - 0.5), 0.1),
        "verbosity": rng.normal(0.0, 0.15),
        "token_factor": rng.uniform(0.92, 1.15),
        "ttft_ms": 300.0 + 600.0 * rank * rng.uniform(0.6, 1.4),
        "tokens_per_second": (190.0 - 120.0 * rank) * rng.uniform(0.7, 1.3),
    }
