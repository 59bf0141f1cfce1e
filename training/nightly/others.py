"""The simplest that one could do instead of the new version, and the champion: what each would have called."""

from __future__ import annotations

import numpy as np

from router_ml.types import Float64Array
from training.nightly.choices import Models, chosen
from training.nightly.judges import Judges


def others_of(judges: Judges) -> dict[str, Models]:
    others = {"segment means": _by_segment(judges), "single model": _single(judges), "best model": best_model(judges)}
    if judges.champion is not None:
        others["champion"] = chosen(judges.champion, judges.requests.models)
    return others


def means_by_segment(judges: Judges) -> Float64Array:
    """Mean success per segment and model of the rows fitted on, [s + 1, own models]; -inf where nothing is offered."""
    table = np.array(judges.new.bundle.manifest.baseline["success"], dtype=np.float64)
    offered = np.isin(np.arange(table.shape[1]), judges.new.policy.column)
    return np.asarray(np.where(offered, table, -np.inf))


def _own_price(judges: Judges) -> Float64Array:
    """[r, own models], expected; infinite where unknown, so never chosen."""
    price = judges.new.policy.cheapest(judges.new.price)[judges.new.data.rows.prompt]
    return np.asarray(np.where(np.isnan(price), np.inf, price))


def _at_names(judges: Judges, columns: Models) -> Models:
    place = np.array([judges.requests.models.index(name) for name in judges.new.policy.models])
    return np.asarray(place[columns])


def _by_segment(judges: Judges) -> Models:
    """The table of mean success per segment, at the same willingness to pay."""
    segment = judges.new.data.prompts.segment[judges.new.data.rows.prompt]
    return _at_names(judges, _best_value(means_by_segment(judges)[segment], judges))


def _single(judges: Judges) -> Models:
    """The one model of the highest value."""
    table = np.broadcast_to(means_by_segment(judges)[0], _own_price(judges).shape)
    counts = np.bincount(_best_value(table, judges), minlength=table.shape[1])
    return _at_names(judges, np.full(len(table), counts.argmax()))


def _best_value(success: Float64Array, judges: Judges) -> Models:
    price = _own_price(judges)
    with np.errstate(invalid="ignore"):
        value = success - (judges.willingness * price if judges.willingness else np.where(np.isinf(price), np.inf, 0))
    return np.asarray(value.argmax(axis=1))


def best_model(judges: Judges) -> Models:
    """The model of the highest success, whatever it costs."""
    return _at_names(judges, np.full(len(judges.requests.data.rows), means_by_segment(judges)[0].argmax()))
