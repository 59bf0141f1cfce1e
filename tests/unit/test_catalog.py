from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from router_ml.catalog import Catalog, Model, Offer
from router_ml.errors import CatalogError, InputError

SMALL = {"name": "small", "model": "small", "input_usd_per_mtok": 0.25, "output_usd_per_mtok": 2.0}
LARGE = {
    "name": "large-eu",
    "model": "large",
    "provider": "acme",
    "region": "eu",
    "input_usd_per_mtok": 2.5,
    "output_usd_per_mtok": 15,
    "cached_input_usd_per_mtok": 0.25,
    "batch_input_usd_per_mtok": 1.25,
    "batch_output_usd_per_mtok": 7.5,
    "request_usd": 0.0,
}
LARGE_MODEL = {
    "name": "large",
    "context_window": 272000,
    "max_output_tokens": 128000,
    "capabilities": ["tools", "vision"],
}


def data(**changes: Any) -> dict[str, Any]:
    return {"as_of": "2026-11-20", "models": [{"name": "small"}, LARGE_MODEL], "offers": [SMALL, LARGE], **changes}


def with_offer(**changes: Any) -> dict[str, Any]:
    return data(offers=[SMALL, LARGE | changes])


def with_model(**changes: Any) -> dict[str, Any]:
    return data(models=[{"name": "small"}, LARGE_MODEL | changes])


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


def error_of(content: Any) -> str:
    with pytest.raises(CatalogError) as caught:
        Catalog.from_dict(content, source="prices.yaml")
    return str(caught.value)


def saved(folder: Path, text: str, name: str = "prices.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load_error(path: Path) -> str:
    with pytest.raises(CatalogError) as caught:
        Catalog.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# -- what is read is what was written ---------------------------------------------------------------


def test_a_catalog_keeps_every_field_and_the_order_of_the_file() -> None:
    catalog = Catalog.from_dict(data(regions=["on-prem"]))
    assert catalog.model_names == ("small", "large")
    assert catalog.models == (Model("small"), Model("large", 272000, 128000, ("tools", "vision")))
    assert catalog.offers == (
        Offer("small", "small", input_usd_per_mtok=0.25, output_usd_per_mtok=2.0),
        Offer("large-eu", "large", "acme", "eu", 2.5, 15, 0.25, 1.25, 7.5, 0.0),
    )
    assert catalog.as_of == "2026-11-20"
    assert catalog.regions == ("on-prem",)


def test_a_dict_comes_back_equal_and_leaves_out_what_is_not_set() -> None:
    content = data(regions=["on-prem"])
    assert Catalog.from_dict(content).to_dict() == content
    assert set(Catalog.from_dict(without(data(), "as_of")).to_dict()) == {"models", "offers"}


@pytest.mark.parametrize("name", ["c.yaml", "c.yml", "c.json"])
def test_a_file_comes_back_equal(tmp_path: Path, name: str) -> None:
    catalog = Catalog.from_dict(data(regions=["on-prem"]))
    content = catalog.to_dict()
    path = saved(tmp_path, json.dumps(content) if name.endswith("json") else yaml.safe_dump(content), name)
    assert Catalog.load(path) == catalog
    assert Catalog.load(str(path)) == catalog


def test_a_price_of_zero_is_kept_apart_from_no_price() -> None:
    catalog = Catalog.from_dict(data(offers=[SMALL | {"request_usd": 0.0}, LARGE]))
    assert catalog.offers[0].request_usd == 0.0
    assert catalog.offers[0].cached_input_usd_per_mtok is None
    assert catalog.to_dict()["offers"][0]["request_usd"] == 0.0


def test_the_same_file_with_empty_entries_reads_as_not_set(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        "as_of:\nregions:\nmodels:\n  - {name: small, capabilities: , context_window: }\n"
        "offers:\n  - {name: small, model: small, region: , request_usd: 0.01}\n",
    )
    assert Catalog.load(path) == Catalog((Model("small"),), (Offer("small", "small", request_usd=0.01),))


@pytest.mark.parametrize("written", ["2026-11-20", "'2026-11-20'"])
def test_a_date_that_yaml_reads_as_a_date_is_the_same_as_text(tmp_path: Path, written: str) -> None:
    catalog = Catalog.load(saved(tmp_path, yaml.safe_dump(without(data(), "as_of")) + f"as_of: {written}\n"))
    assert catalog.as_of == "2026-11-20"
    assert json.loads(json.dumps(catalog.to_dict()))["as_of"] == "2026-11-20"


def test_blocks_shared_by_yaml_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        "models: [{name: small}]\n"
        "offers:\n"
        "  - &first {name: one, model: small, provider: acme, request_usd: 0.01}\n"
        "  - &second {<<: *first, name: two, request_usd: 0.02}\n"
        "  - {<<: *second, name: three}\n",
    )
    offers = Catalog.load(path).offers
    assert [(offer.name, offer.provider, offer.request_usd) for offer in offers] == [
        ("one", "acme", 0.01),
        ("two", "acme", 0.02),
        ("three", "acme", 0.02),
    ]


def test_a_region_of_ones_own_is_known_once_it_is_listed() -> None:
    content = with_offer(region="on-prem")
    assert "unknown region `on-prem`" in error_of(content)
    assert Catalog.from_dict(content | {"regions": ["on-prem"]}).offers[1].region == "on-prem"


def test_mean_costs_make_one_offer_per_model() -> None:
    catalog = Catalog.from_mean_costs({"a": 0.01, "b": 0.0})
    assert catalog.model_names == ("a", "b")
    assert catalog.offers == (Offer("a", "a", request_usd=0.01), Offer("b", "b", request_usd=0.0))
    assert Catalog.from_dict(catalog.to_dict()) == catalog


def test_mean_costs_that_numpy_computed_can_be_written_as_yaml() -> None:
    catalog = Catalog.from_mean_costs({"a": np.float64(0.5), "b": np.float32(0.25)})  # type: ignore[dict-item]
    assert yaml.safe_load(yaml.safe_dump(catalog.to_dict())) == catalog.to_dict()


@pytest.mark.parametrize("cost", [math.nan, -0.1, math.inf])
def test_a_mean_cost_that_is_no_price_is_refused(cost: float) -> None:
    with pytest.raises(CatalogError, match="offer `b`: `request_usd`"):
        Catalog.from_mean_costs({"a": 0.01, "b": cost})


def test_mean_costs_of_no_model_are_refused() -> None:
    with pytest.raises(CatalogError, match="at least one"):
        Catalog.from_mean_costs({})


def test_a_catalog_built_in_python_is_checked_too() -> None:
    with pytest.raises(CatalogError, match="offer `a`: has no price"):
        Catalog((Model("a"),), (Offer("a", "a"),))
    catalog = Catalog.from_dict(data())
    with pytest.raises(CatalogError, match="more than once"):
        dataclasses.replace(catalog, offers=catalog.offers * 2)


def test_a_catalog_error_is_an_input_error() -> None:
    assert issubclass(CatalogError, InputError)


# -- bad entries: the message names file, entry, field and what was found ----------------------------

PRICES = [
    "input_usd_per_mtok",
    "output_usd_per_mtok",
    "cached_input_usd_per_mtok",
    "batch_input_usd_per_mtok",
    "batch_output_usd_per_mtok",
    "request_usd",
]
NOT_PRICES = [-1, -0.001, math.nan, math.inf, -math.inf, True, [1.0], {"usd": 1}, "0.25", "free", 10**400]


@pytest.mark.parametrize("field", PRICES)
@pytest.mark.parametrize("price", NOT_PRICES, ids=lambda price: str(price)[:9])
def test_a_price_that_is_no_amount_is_refused(field: str, price: Any) -> None:
    message = error_of(with_offer(**{field: price}))
    assert message.startswith(f"prices.yaml: offer `large-eu`: `{field}` must be")
    assert repr(price) in message


@pytest.mark.parametrize("text", ["1e-3", "0,25", "$2.50"])
def test_a_price_that_yaml_reads_as_text_gets_a_hint(tmp_path: Path, text: str) -> None:
    content = yaml.safe_dump(data()).replace("request_usd: 0.0", f"request_usd: {text}")
    message = load_error(saved(tmp_path, content))
    assert f"found {text!r}, which is text" in message


@pytest.mark.parametrize("field", ["context_window", "max_output_tokens"])
@pytest.mark.parametrize("limit", [0, -1, 1.5, 128000.0, "128000", True, [1], 10**400], ids=lambda x: str(x)[:9])
def test_a_limit_that_is_no_count_of_tokens_is_refused(field: str, limit: Any) -> None:
    message = error_of(with_model(**{field: limit}))
    assert message.startswith(f"prices.yaml: model `large`: `{field}` must be a positive whole number")
    assert repr(limit) in message


@pytest.mark.parametrize("value", ["tools", "", 3, True, {"tools": True}, [1], [""], [None], [["tools"]], [True]])
def test_capabilities_that_are_no_list_of_names_are_refused(value: Any) -> None:
    message = error_of(with_model(capabilities=value))
    assert message.startswith("prices.yaml: model `large`: `capabilities` must be a list of names")
    assert repr(value) in message


@pytest.mark.parametrize("value", ["on-prem", "", 3, False, {"a": 1}, [False], [""], [["a"]]])
def test_regions_that_are_no_list_of_names_are_refused(value: Any) -> None:
    message = error_of(data(regions=value))
    assert message.startswith("prices.yaml: `regions` must be a list of names")
    assert repr(value) in message


@pytest.mark.parametrize("region", ["mars", "", "EU ", False, 3, ["eu"], {"eu": 1}])
def test_an_unknown_region_is_refused_and_the_known_are_listed(region: Any) -> None:
    message = error_of(with_offer(region=region))
    assert message.startswith(f"prices.yaml: offer `large-eu`: unknown region `{region}`")
    assert "eu-central" in message
    assert "under `regions`" in message


@pytest.mark.parametrize("provider", [3, "", ["acme"], False])
def test_a_provider_that_is_no_name_is_refused(provider: Any) -> None:
    assert error_of(with_offer(provider=provider)).startswith("prices.yaml: offer `large-eu`: `provider` must be")


@pytest.mark.parametrize("as_of", ["yesterday", "", "2026-13-01", 2026, ["2026-11-20"], True])
def test_an_as_of_that_is_no_date_is_refused(as_of: Any) -> None:
    message = error_of(data(as_of=as_of))
    assert message.startswith("prices.yaml: `as_of` must be an ISO date")


BAD_STRUCTURE = [
    (data(offers=[SMALL, SMALL]), "`offers` holds ['small'] more than once"),
    (data(models=[{"name": "small"}, {"name": "small"}]), "`models` holds ['small'] more than once"),
    (with_offer(model="huge"), "offer `large-eu`: its model `huge` is not among `models` ['large', 'small']"),
    (data(offers=[SMALL, without(LARGE, "model")]), "offers[1]: `model` must be a non-empty string"),
    (data(offers=[without(SMALL, "name"), LARGE]), "offers[0]: `name` must be a non-empty string"),
    (with_model(name=""), "models[1]: `name` must be a non-empty string"),
    (with_model(name=4), "models[1]: `name` must be a non-empty string"),
    (with_model(window=4), "models[1]: unknown keys ['window']; known are ['capabilities',"),
    (with_offer(price=4), "offers[1]: unknown keys ['price']; known are ['batch_input_usd_per_mtok',"),
    (data(offers=[SMALL | {1: 2, "x": 3}]), "offers[0]: unknown keys ['1', 'x']"),
    (data(currency="EUR"), "unknown keys ['currency']; known are as_of, regions, models, offers"),
    (data() | {True: 1, "x": 2}, "unknown keys ['True', 'x']"),
    (data(models=["small"]), "models[0]: expected a mapping, found str"),
    (data(offers=[None]), "offers[0]: expected a mapping, found NoneType"),
    (data(models=[]), "`models` must be a list with at least one entry, found []"),
    (data(models=None), "`models` must be a list with at least one entry, found None"),
    (data(offers={"small": SMALL}), "`offers` must be a list with at least one entry, found {"),
    (without(data(), "offers"), "`offers` must be a list with at least one entry"),
    (data(offers=[{"name": "small", "model": "small"}]), "offer `small`: has no price; give input and output"),
    (data(offers=[without(SMALL, "output_usd_per_mtok")]), "offer `small`: `input_usd_per_mtok` and `output_usd"),
    (data(offers=[without(SMALL, "input_usd_per_mtok")]), "offer `small`: `input_usd_per_mtok` and `output_usd"),
    ([], "expected a mapping with `models` and `offers`, found list"),
    ("models", "expected a mapping with `models` and `offers`, found str"),
    (None, "expected a mapping with `models` and `offers`, found nothing"),
]


@pytest.mark.parametrize(("content", "part"), BAD_STRUCTURE, ids=[part[:40] for _, part in BAD_STRUCTURE])
def test_a_wrong_structure_is_refused(content: Any, part: str) -> None:
    assert error_of(content).startswith(f"prices.yaml: {part}")


@pytest.mark.parametrize(
    "field", ["cached_input_usd_per_mtok", "batch_input_usd_per_mtok", "batch_output_usd_per_mtok"]
)
def test_a_price_per_token_that_would_never_be_used_is_refused(field: str) -> None:
    message = error_of(data(offers=[{"name": "small", "model": "small", "request_usd": 0.1, field: 1.0}]))
    assert message.startswith(f"prices.yaml: offer `small`: `{field}` needs `input_usd_per_mtok`")


# -- bad files --------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "cannot be read as a catalog" in load_error(tmp_path / "none.yaml")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read as a catalog" in load_error(tmp_path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_bytes(b"\xff\xfe\x00models")
    assert "cannot be read as a catalog" in load_error(path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "null", "~"])
def test_a_file_that_holds_nothing_is_refused(tmp_path: Path, text: str) -> None:
    assert "found nothing" in load_error(saved(tmp_path, text))


NOT_YAML = ["models: [", "a: b: c", "\tmodels:", "models: !!python/name:os.system", "a\x00b", "as_of: 2026-02-30"]


@pytest.mark.parametrize("text", [*NOT_YAML, "a: " + "9" * 5000, "[" * 5000], ids=lambda text: ascii(text)[:20])
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, text: str) -> None:
    assert "not valid YAML" in load_error(saved(tmp_path, text))


@pytest.mark.parametrize("text", ["", "{", "models: []", "{'a': 1}", "9" * 5000, "[" * 200_000], ids=lambda t: t[:12])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    assert "not valid JSON" in load_error(saved(tmp_path, text, "prices.json"))


def test_a_price_of_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    content = with_offer(request_usd=math.nan)
    assert "offer `large-eu`: `request_usd`" in load_error(saved(tmp_path, json.dumps(content), "prices.json"))
    assert "offer `large-eu`: `request_usd`" in load_error(saved(tmp_path, yaml.safe_dump(content)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "models: [{name: a}]\noffers: [{name: a, model: a, request_usd: 1, request_usd: 2}]\n"),
        ("c.yaml", "models: [{name: a}]\nrequest_usd: 1\nmodels: [{name: b}]\nrequest_usd: 1\n"),
        ("c.json", '{"models": [], "offers": [{"request_usd": 1, "request_usd": 2}]}'),
    ],
)
def test_a_key_given_twice_is_refused_rather_than_the_first_dropped(tmp_path: Path, name: str, text: str) -> None:
    message = load_error(saved(tmp_path, text, name))
    assert "more than once" in message
    assert "`models`" in message or "`request_usd`" in message


def test_a_region_that_yaml_reads_as_a_truth_value_is_refused(tmp_path: Path) -> None:
    text = yaml.safe_dump(with_offer(region="PLACE")).replace("PLACE", "no")
    assert "unknown region `False`" in load_error(saved(tmp_path, text))
