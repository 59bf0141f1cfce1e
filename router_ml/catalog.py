"""Models, offers and prices: the data a decision is priced with, edited without retraining.

A catalog is a YAML or JSON file::

    as_of: 2026-11-20            # date of the prices
    regions: [on-prem]           # own region names besides the known ones; optional
    models:
      - name: gpt-5-mini         # as it stands in the outcome table
        context_window: 272000   # tokens; optional
        max_output_tokens: 128000
        capabilities: [tools, vision]
    offers:
      - name: gpt-5-mini         # unique
        model: gpt-5-mini
        provider: openai
        region: global
        input_usd_per_mtok: 0.25
        output_usd_per_mtok: 2.0
        cached_input_usd_per_mtok: 0.025   # optional, as are the following
        batch_input_usd_per_mtok: 0.125
        batch_output_usd_per_mtok: 1.0
        request_usd: 0.0

An offer is priced either by tokens, or by `request_usd` alone (what a catalog
derived from logged mean costs uses), or by both together.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from router_ml.errors import CatalogError

KNOWN_REGIONS = frozenset(
    "global us us-east us-west ca eu eu-west eu-central eu-north uk ch jp kr in sg au br me za il cn ap".split()
)

_DISCOUNT_FIELDS = ("cached_input_usd_per_mtok", "batch_input_usd_per_mtok", "batch_output_usd_per_mtok")
_PRICE_FIELDS = ("input_usd_per_mtok", "output_usd_per_mtok", *_DISCOUNT_FIELDS, "request_usd")


@dataclass(frozen=True, slots=True)
class Model:
    """What can answer a prompt."""

    name: str
    context_window: int | None = None
    """Input plus output tokens; None: not known, then not enforced."""
    max_output_tokens: int | None = None
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """One place to buy a model. Prices in US dollars, per million tokens; None: not offered."""

    name: str
    model: str
    provider: str | None = None
    region: str | None = None
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    cached_input_usd_per_mtok: float | None = None
    batch_input_usd_per_mtok: float | None = None
    batch_output_usd_per_mtok: float | None = None
    request_usd: float | None = None
    """Added to every call whatever its length."""


_Entry = TypeVar("_Entry", Model, Offer)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models and offers that may be chosen, in file order."""

    models: tuple[Model, ...]
    offers: tuple[Offer, ...]
    as_of: str | None = None
    """ISO date of the prices."""
    regions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(model.name for model in self.models)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; fields that are not set are left out."""
        top: dict[str, Any] = {"as_of": self.as_of} if self.as_of else {}
        if self.regions:
            top["regions"] = list(self.regions)
        return top | {"models": _rows(self.models), "offers": _rows(self.offers)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "catalog") -> Catalog:
        """Build and check; CatalogError names `source` and the entry at fault."""
        if not isinstance(data, Mapping):
            found = "nothing" if data is None else type(data).__name__
            raise CatalogError(f"{source}: expected a mapping with `models` and `offers`, found {found}")
        unknown = sorted(map(str, set(data) - {"as_of", "regions", "models", "offers"}))
        if unknown:
            raise CatalogError(f"{source}: unknown keys {unknown}; known are as_of, regions, models, offers")
        try:
            return cls(
                models=tuple(_build(Model, row, "models", i) for i, row in enumerate(_list(data, "models"))),
                offers=tuple(_build(Offer, row, "offers", i) for i, row in enumerate(_list(data, "offers"))),
                as_of=str(data["as_of"]) if data.get("as_of") is not None else None,
                regions=_tuple(data.get("regions")),
            )
        except CatalogError as error:
            raise CatalogError(f"{source}: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Catalog:
        """Read a .yaml, .yml or .json file; CatalogError when it is missing or wrong."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CatalogError(f"{path}: cannot be read as a catalog ({error})") from None
        try:
            is_json = path.suffix == ".json"
            data = json.loads(text, object_pairs_hook=_object) if is_json else yaml.load(text, _Loader)
        # ValueError: also a date such as 2026-02-30; RecursionError: brackets nested without end.
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise CatalogError(f"{path}: not valid {'JSON' if is_json else 'YAML'} ({error})") from None
        return cls.from_dict(data, source=str(path))

    def only(self, models: Collection[str]) -> Catalog:
        """The part that is about these models."""
        return Catalog(
            tuple(model for model in self.models if model.name in models),
            tuple(offer for offer in self.offers if offer.model in models),
            self.as_of,
            self.regions,
        )

    @classmethod
    def from_mean_costs(cls, mean_cost_usd: Mapping[str, float]) -> Catalog:
        """A catalog of one offer per model at its mean logged cost, for users who have none yet."""
        return cls(
            models=tuple(Model(name) for name in mean_cost_usd),
            offers=tuple(Offer(name, name, request_usd=float(cost)) for name, cost in mean_cost_usd.items()),
        )


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would keep the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked here, before merge keys add the keys of other mappings, which may be overridden.
        node = super().compose_mapping_node(anchor)
        _check_keys([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return node


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_keys([key for key, _ in pairs])
    return dict(pairs)


def _check_keys(keys: Sequence[str]) -> None:
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"a mapping holds {', '.join(f'`{key}`' for key in twice)} more than once")


def _rows(items: Sequence[Model] | Sequence[Offer]) -> list[dict[str, Any]]:
    return [
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in row.items()
            if value not in (None, ())
        }
        for row in (dataclasses.asdict(item) for item in items)
    ]


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    if not isinstance(value, list) or not value:
        raise CatalogError(f"`{key}` must be a list with at least one entry, found {value!r}")
    return value


def _tuple(value: Any) -> Any:
    """A list as a tuple; whatever else is left for `_check` to name."""
    return () if value is None else tuple(value) if isinstance(value, list) else value


def _build(kind: type[_Entry], row: Any, key: str, index: int) -> _Entry:
    where = f"{key}[{index}]"
    if not isinstance(row, Mapping):
        raise CatalogError(f"{where}: expected a mapping, found {type(row).__name__}")
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(map(str, set(row) - known))
    if unknown:
        raise CatalogError(f"{where}: unknown keys {unknown}; known are {sorted(known)}")
    for name in ("name", "model") if kind is Offer else ("name",):
        if not isinstance(row.get(name), str) or not row[name]:
            raise CatalogError(f"{where}: `{name}` must be a non-empty string")
    values = dict(row)
    if "capabilities" in values:
        values["capabilities"] = _tuple(values["capabilities"])
    return kind(**values)


def _check(catalog: Catalog) -> None:
    _check_date(catalog.as_of)
    _check_names(catalog.regions, "`regions`")
    _check_unique([model.name for model in catalog.models], "models")
    _check_unique([offer.name for offer in catalog.offers], "offers")
    for model in catalog.models:
        _check_model(model)
    names = set(catalog.model_names)
    regions = KNOWN_REGIONS | set(catalog.regions)
    for offer in catalog.offers:
        _check_offer(offer, names, regions)
        _check_prices(offer)


def _check_date(as_of: str | None) -> None:
    try:
        if as_of is not None:
            datetime.fromisoformat(as_of)
    except ValueError:
        raise CatalogError(f"`as_of` must be an ISO date such as 2026-11-20, found {as_of!r}") from None


def _check_names(names: Any, where: str) -> None:
    # A plain string would otherwise pass as a sequence of letters.
    if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
        found = list(names) if isinstance(names, tuple) else names
        raise CatalogError(f"{where} must be a list of names such as [a, b], found {found!r}")


def _check_unique(names: Sequence[str], key: str) -> None:
    if not names:
        raise CatalogError(f"`{key}` must hold at least one entry")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CatalogError(f"`{key}` holds {twice} more than once; names must be unique")


def _check_model(model: Model) -> None:
    where = f"model `{model.name}`"
    _check_names(model.capabilities, f"{where}: `capabilities`")
    for field in ("context_window", "max_output_tokens"):
        limit = getattr(model, field)
        if limit is None:
            continue
        if not isinstance(limit, int) or isinstance(limit, bool) or not 0 < limit <= sys.maxsize:
            raise CatalogError(
                f"{where}: `{field}` must be a positive whole number, found {limit!r}{_text_hint(limit)}"
            )


def _check_offer(offer: Offer, models: set[str], regions: frozenset[str] | set[str]) -> None:
    where = f"offer `{offer.name}`"
    if offer.model not in models:
        raise CatalogError(f"{where}: its model `{offer.model}` is not among `models` {sorted(models)}")
    if offer.provider is not None and (not isinstance(offer.provider, str) or not offer.provider):
        raise CatalogError(f"{where}: `provider` must be a non-empty string, found {offer.provider!r}")
    if offer.region is not None and (not isinstance(offer.region, str) or offer.region not in regions):
        raise CatalogError(
            f"{where}: unknown region `{offer.region}`; known are {sorted(regions)}; "
            "list a region of your own under `regions`"
        )


def _check_prices(offer: Offer) -> None:
    where = f"offer `{offer.name}`"
    for field in _PRICE_FIELDS:
        price = getattr(offer, field)
        if price is not None and not _is_price(price):
            raise CatalogError(
                f"{where}: `{field}` must be a finite number of US dollars, 0 or more, "
                f"found {price!r}{_text_hint(price)}"
            )
    if (offer.input_usd_per_mtok is None) != (offer.output_usd_per_mtok is None):
        raise CatalogError(f"{where}: `input_usd_per_mtok` and `output_usd_per_mtok` belong together; one is missing")
    if offer.input_usd_per_mtok is not None:
        return
    for field in _DISCOUNT_FIELDS:
        if getattr(offer, field) is not None:
            raise CatalogError(f"{where}: `{field}` needs `input_usd_per_mtok` and `output_usd_per_mtok` beside it")
    if offer.request_usd is None:
        raise CatalogError(f"{where}: has no price; give input and output prices, or `request_usd`")


def _is_price(value: Any) -> bool:
    # The upper bound refuses infinity, and whole numbers too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _text_hint(value: Any) -> str:
    return ", which is text; write digits without quotes, such as 0.001 (not 1e-3)" if isinstance(value, str) else ""
