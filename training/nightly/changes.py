"""What is different about the new version, in words."""

from __future__ import annotations

from router_ml.bundle import Bundle
from router_ml.catalog import Catalog, Offer

_PRICES = ("input_usd_per_mtok", "output_usd_per_mtok", "request_usd")


def changes(new: Bundle, champion: Bundle | None, catalog: Catalog | None) -> list[str]:
    """Against the champion. `catalog` is the one given; None: prices follow from logged costs and move every night."""
    m = new.manifest
    told = [f"learned from {_day(m.training_start)} to {_day(m.training_end)}, {len(m.models)} models"]
    if champion is None:
        return told
    old = champion.manifest
    told[0] += f" (the champion: {_day(old.training_start)} to {_day(old.training_end)}, {len(old.models)} models)"
    for words, names in (
        ("models new to the router", set(m.models) - set(old.models)),
        ("models it no longer knows", set(old.models) - set(m.models)),
        ("new segments", set(m.segments) - set(old.segments)),
    ):
        if names:
            told.append(f"{words}: {', '.join(sorted(names))}")
    told += _prices(champion.catalog, catalog) if catalog else []
    for words, value, before in (
        ("quality target", new.points.default_target, champion.points.default_target),
        ("rule", new.points.rule, champion.points.rule),
        ("confidence of targets", new.points.confidence, champion.points.confidence),
        ("encoder", m.encoder.get("name"), old.encoder.get("name")),
    ):
        if value != before:
            told.append(f"{words} {value}, was {before}")
    return told


def _prices(before: Catalog, now: Catalog) -> list[str]:
    """Offers whose list prices differ."""
    old = {offer.name: offer for offer in before.offers}
    return [
        f"price of {offer.name}: {_listed(offer)}, was {_listed(old[offer.name])}"
        for offer in now.offers
        if offer.name in old and _listed(offer) != _listed(old[offer.name])
    ]


def _listed(offer: Offer) -> str:
    values = [getattr(offer, name) for name in _PRICES]
    return " / ".join("none" if value is None else f"${value:.3g}" for value in values[:2]) + (
        f" and ${values[2]:.3g} a request" if values[2] else ""
    )


def _day(time: str | None) -> str:
    return "an unknown day" if time is None else time[:10]
