"""What each policy would have done with the requests of the newest days, by the very objects that serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from router_ml.bundle import Bundle
from router_ml.catalog import Catalog
from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array
from training.appraise import text_of
from training.dataset import Dataset, build_dataset
from training.export import estimates_of
from training.labels import LabelSettings
from training.nightly.rows import rows_between
from training.off_policy.clusters import session_or_prompt

Models = NDArray[np.int64]
"""[r], index into `Requests.models`; -1: no offer fits."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Rows of the newest days; r rows, m models of the logs and of the versions."""

    data: Dataset
    """As the new version reads it."""
    models: tuple[str, ...]
    cluster: NDArray[np.int64]
    """[r], rows of one session, or of one prompt outside of sessions, share a number."""
    text: tuple[str, ...]
    """Some texts, to time decisions on; empty where the log holds none."""

    @property
    def action(self) -> Models:
        """[r], the model that was called."""
        place = np.array([self.models.index(name) for name in self.data.models])
        return np.asarray(place[self.data.rows.model])


@dataclass(frozen=True, slots=True)
class Version:
    """A bundle on these requests."""

    bundle: Bundle
    policy: Policy
    data: Dataset
    """The requests as this version reads them: the same rows."""
    estimates: Estimates
    """Of the prompts of `data`."""
    price: Float64Array
    """[prompts, offers]"""


_TEXTS = 400


def read_requests(outcomes: Path, from_us: int, new: Bundle, champion: Bundle | None) -> Requests:
    """The rows from `from_us` on."""
    table = rows_between(outcomes, from_us, None, labels_of(new))
    data = build_dataset(table.to_batches(), text_of(new))
    known = champion.manifest.models if champion else ()
    models = tuple(dict.fromkeys((*data.models, *new.manifest.models, *known)))
    texts = pc.unique(table["prompt"]).drop_null()[:_TEXTS].to_pylist()
    return Requests(data, models, session_or_prompt(data.rows.prompt, data.rows.session), tuple(texts))


def open_version(outcomes: Path, from_us: int, opened: Bundle, catalog: Catalog) -> Version:
    """Estimates of a version for the same rows. InputError or BundleError where it cannot read or serve them."""
    data = build_dataset(rows_between(outcomes, from_us, None, labels_of(opened)).to_batches(), text_of(opened))
    data = data.keep_segments(opened.manifest.segments)
    index = np.arange(len(data.prompts))
    pad_id = opened.tokenizer.settings.pad_id if opened.tokenizer else 0
    estimates = estimates_of(opened.session, data, index, pad_id, opened.manifest.input_token_ratio)
    policy = Policy(catalog, opened.manifest.models, opened.points)
    return Version(opened, policy, data, estimates, policy.price(estimates))


def chosen(version: Version, models: Sequence[str]) -> Models:
    """[r], what the version calls at its own quality target."""
    choice = version.policy.choose(version.estimates).chosen
    place = np.array([models.index(name) for name in version.policy.models])
    by_prompt = np.where(choice >= 0, place[version.policy.column[choice]], -1)
    return np.asarray(by_prompt[version.data.rows.prompt])


def spread(version: Version, values: Float64Array, models: Sequence[str]) -> Float64Array:
    """[prompts, own models] -> [r, m]; NaN for a model that the version does not know."""
    found = np.full((len(version.data.rows), len(models)), np.nan)
    place = [models.index(name) for name in version.policy.models]
    found[:, place] = values[version.data.rows.prompt]
    return found


def labels_of(opened: Bundle) -> LabelSettings:
    """What the version was told of unreported and late outcomes."""
    return LabelSettings.from_dict(opened.manifest.split.get("labels"))
