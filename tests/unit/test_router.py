from __future__ import annotations

import json
import math
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers.processors import TemplateProcessing

from router_ml.bundle import FORMAT
from router_ml.catalog import Catalog
from router_ml.decision_ids import time_ordered_id
from router_ml.errors import BundleError, NoEligibleOfferError, RequestError
from router_ml.exploration import Exploration, ExplorationRule
from router_ml.request import make_request
from router_ml.router import Router
from router_ml.text import Tokenizer
from router_ml.types import Decision, Message, Reason, Rejection, Request

EASY = "bab deb fib gol lum map neg pif sok tus"
HARD = "xrob xvac xzed xquf xkyg xroh xvaj"
OFFERS = ("tiny@us", "tiny@eu", "small@eu", "mid@us", "large@us", "large@eu")


@pytest.fixture(scope="module")
def router(tiny_bundle: Path) -> Router:
    return Router.load(tiny_bundle)


@pytest.fixture(scope="module")
def vector_router(embedding_bundle: Path) -> Router:
    return Router.load(embedding_bundle)


def estimates_of(decision: Decision) -> list[tuple[float | None, ...]]:
    return [(c.p_success, c.output_tokens, c.cost_usd, c.latency_ms) for c in decision.candidates]


def rejected(decision: Decision) -> dict[str, str]:
    return {c.offer: str(c.rejected) for c in decision.candidates if c.rejected is not None}


def cost(decision: Decision, offer: str) -> float:
    found = decision.candidate(offer).cost_usd
    assert found is not None
    return found


def with_catalog(path: Path, **changes: Any) -> Catalog:
    """The bundle's catalog with other prices of the offer `small@eu`."""
    data = json.loads((path / "catalog.json").read_text())
    data["offers"] = [offer | (changes if offer["name"] == "small@eu" else {}) for offer in data["offers"]]
    return Catalog.from_dict(data)


# -- what a decision holds ------------------------------------------------------------------------


def test_a_decision_tells_all_there_is_to_know(router: Router) -> None:
    decision = router.route(EASY, segment="chat")
    assert decision.offer in OFFERS
    assert tuple(c.offer for c in decision.candidates) == OFFERS
    assert decision.model == decision.candidate(decision.offer).model
    assert sorted((decision.offer, *decision.fallbacks)) == sorted(OFFERS)
    assert decision.propensity == 1.0
    assert decision.quality_target == 0.97
    assert decision.arm == ""
    assert decision.version == router.bundle.manifest.version
    assert decision.bundle_sha256 == router.bundle.sha256
    for candidate in decision.candidates:
        assert 0 < candidate.p_success < 1
        assert candidate.cost_usd is not None and candidate.cost_usd > 0
        assert candidate.output_tokens is not None and candidate.output_tokens > 0
        assert candidate.latency_ms is not None and candidate.latency_ms > 0
        assert all(isinstance(value, float | str | None) for value in candidate)


def test_easy_prompts_go_to_cheaper_models_than_hard_ones(router: Router) -> None:
    easy, hard = router.route(EASY), router.route(HARD)
    assert hard.model == "large"
    assert cost(easy, easy.offer) < cost(hard, hard.offer) / 5
    assert easy.candidate("tiny@us").p_success > hard.candidate("tiny@us").p_success + 0.3


def test_offers_of_one_model_share_its_estimates(router: Router) -> None:
    decision = router.route(EASY)
    one, other = decision.candidate("large@us"), decision.candidate("large@eu")
    assert (one.p_success, one.output_tokens, one.latency_ms) == (
        other.p_success,
        other.output_tokens,
        other.latency_ms,
    )
    assert one.cost_usd != other.cost_usd


def test_the_cost_is_the_price_of_the_expected_tokens(router: Router) -> None:
    decision = router.route(EASY, input_tokens=1000)
    large = decision.candidate("large@eu")
    assert large.output_tokens is not None
    assert large.cost_usd == pytest.approx(1000 * 6e-6 + large.output_tokens * 24e-6 + 0.001)


def test_a_stricter_target_never_costs_less(router: Router) -> None:
    costs = [
        cost(decision, decision.offer)
        for decision in (router.route(EASY, quality_target=target) for target in (0.8, 0.9, 0.95, 0.99, 1.0))
    ]
    assert costs == sorted(costs)


def test_a_probability_of_ones_own_is_a_threshold(router: Router) -> None:
    low, high = (router.route(EASY, min_success_probability=p) for p in (0.0, 1.0))
    assert (low.offer, low.reasons) == ("tiny@us", (Reason.CHEAPEST_CLEARING,))
    assert (high.model, high.reasons) == ("large", (Reason.NONE_CLEARS,))
    assert low.quality_target is high.quality_target is None


def test_the_same_request_gets_the_same_answer(router: Router) -> None:
    one, other = router.route(EASY), router.route(EASY)
    assert one._replace(decision_id="") == other._replace(decision_id="")
    assert one.decision_id != other.decision_id


# -- prompts of every kind ------------------------------------------------------------------------


def test_a_single_message_is_the_same_prompt_as_its_text(router: Router) -> None:
    text = router.route(EASY)
    for message in (Message("user", EASY), {"role": "user", "content": EASY}):
        assert estimates_of(router.route(messages=[message])) == estimates_of(text)


def test_all_messages_count(router: Router) -> None:
    short = router.route(messages=[Message("user", EASY)])
    long = router.route(messages=[Message("system", HARD), Message("user", EASY)])
    assert cost(long, "large@us") > cost(short, "large@us")
    assert long.candidate("tiny@us").p_success < short.candidate("tiny@us").p_success


def test_an_embedding_takes_the_place_of_text(router: Router) -> None:
    vector = np.random.default_rng(0).normal(size=router.bundle.manifest.embedding_size)
    decision = router.route(embedding=vector, input_tokens=100)
    assert decision.offer in OFFERS
    assert estimates_of(decision) == estimates_of(router.route(embedding=vector.tolist(), input_tokens=100))


def test_special_tokens_are_no_part_of_an_embedding(router: Router, tiny_bundle: Path) -> None:
    """A tokenizer may frame even the empty text that stands beside an embedding."""
    library = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    library.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    assert router.bundle.tokenizer is not None
    framing = replace(router.bundle.tokenizer.settings, add_special_tokens=True)
    framed = Router(replace(router.bundle, tokenizer=Tokenizer(library.to_str().encode(), framing)))
    assert estimates_of(framed.route(EASY)) != estimates_of(router.route(EASY))
    request = make_request(embedding=np.eye(32)[3], input_tokens=10)
    assert estimates_of(framed.decide(request)) == estimates_of(router.decide(request))


def test_the_length_of_an_embedding_says_nothing(vector_router: Router) -> None:
    vector = np.random.default_rng(0).normal(size=16).astype(np.float32)
    one, other = vector_router.route(embedding=vector), vector_router.route(embedding=1000 * vector)
    assert np.allclose([c.p_success for c in one.candidates], [c.p_success for c in other.candidates], atol=1e-6)


def test_an_embedding_bundle_learned_from_its_vectors(vector_router: Router) -> None:
    easy = vector_router.route(embedding=-np.eye(16)[0]).candidate("tiny").p_success
    assert easy > vector_router.route(embedding=np.eye(16)[0]).candidate("tiny").p_success + 0.1


def test_an_embedding_without_its_length_cannot_be_priced_by_token(router: Router) -> None:
    with pytest.raises(NoEligibleOfferError) as caught:
        router.route(embedding=np.ones(router.bundle.manifest.embedding_size))
    assert set(caught.value.rejected.values()) == {"price_unknown"}


def test_an_embedding_of_another_size_is_refused(router: Router) -> None:
    with pytest.raises(RequestError, match="`embedding` must have 32 numbers for this bundle; found 31"):
        router.route(embedding=np.ones(31))


def test_text_for_a_bundle_of_embeddings_is_refused(vector_router: Router) -> None:
    for prompt in ({"text": EASY}, {"messages": [Message("user", EASY)]}):
        with pytest.raises(RequestError, match="`embedding` is required"):
            vector_router.route(**prompt)


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000", None])
def test_a_prompt_of_nothing_is_refused(router: Router, text: str | None) -> None:
    with pytest.raises(RequestError, match="`text`"):
        router.route(text)


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "\0\0bab\0",
        "\ud800",
        "bab \udfff deb",
        "שלום עולם مرحبا بالعالم",
        "\u202ebab deb",
        "🤷🏽‍♀️🏳️‍🌈",
        "漢字かな交じり文",
        "a" * 5000,
        "\x01\x7f\x80",
        "Ⅷ ﬁ ß İ ς",
        "?",
        "[PAD] [UNK] [SEP]",
    ],
    ids=lambda text: repr(text)[:16],
)
def test_any_text_gets_an_answer(router: Router, text: str) -> None:
    decision = router.route(text)
    for candidate in decision.candidates:
        assert 0 < candidate.p_success < 1
        assert candidate.cost_usd is not None and math.isfinite(candidate.cost_usd)


def test_a_prompt_of_two_megabytes_is_cut_but_billed_whole(tiny_bundle: Path) -> None:
    data = json.loads((tiny_bundle / "catalog.json").read_text())
    unlimited = Catalog.from_dict(data | {"models": [{"name": model["name"]} for model in data["models"]]})
    router = Router.load(tiny_bundle, catalog=unlimited)
    one = EASY + " "
    n = 2 * 2**20 // len(one)
    short, long = (router.route(one * times, max_output_tokens=1) for times in (10, n))
    input_cost = [cost(decision, "tiny@us") - 0.2e-6 for decision in (short, long)]
    assert input_cost[1] / input_cost[0] == pytest.approx(n / 10, rel=0.02)


def test_a_prompt_of_two_megabytes_fits_no_context_window(router: Router) -> None:
    with pytest.raises(NoEligibleOfferError) as caught:
        router.route("bab deb " * 2**18)
    assert set(caught.value.rejected.values()) == {"context_window"}


# -- segments -------------------------------------------------------------------------------------


def test_an_unknown_segment_is_as_none(router: Router) -> None:
    none = estimates_of(router.route(EASY))
    assert estimates_of(router.route(EASY, segment="never seen")) == none
    assert estimates_of(router.route(EASY, segment="")) == none


def test_a_known_segment_is_taken_into_account(router: Router) -> None:
    assert router.bundle.manifest.segments == ("chat", "code")
    found = {tuple(estimates_of(router.route(EASY, segment=name))) for name in ("chat", "code", None)}
    assert len(found) == 3


# -- constraints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "left", "why"),
    [
        ({"allowed_models": ["small", "mid"]}, {"small@eu", "mid@us"}, Rejection.MODEL_NOT_ALLOWED),
        ({"denied_models": ["large"]}, set(OFFERS) - {"large@us", "large@eu"}, Rejection.MODEL_DENIED),
        ({"allowed_regions": ["eu"]}, {"tiny@eu", "small@eu", "large@eu"}, Rejection.REGION),
        ({"required_capabilities": ["tools", "vision"]}, {"mid@us", "large@us", "large@eu"}, Rejection.CAPABILITY),
        ({"input_tokens": 50_000}, {"mid@us", "large@us", "large@eu"}, Rejection.CONTEXT_WINDOW),
        ({"max_output_tokens": 2000}, set(OFFERS) - {"tiny@us", "tiny@eu"}, Rejection.OUTPUT_LIMIT),
        ({"max_cost_usd": 0.0001}, {"tiny@us", "tiny@eu", "small@eu"}, Rejection.MAX_COST),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("prompt", [EASY, HARD], ids=["easy", "hard"])
def test_every_constraint_is_kept(
    router: Router, prompt: str, constraint: dict[str, Any], left: set[str], why: Rejection
) -> None:
    decision = router.route(prompt, **constraint)
    assert {decision.offer, *decision.fallbacks} == left
    assert rejected(decision) == {name: str(why) for name in OFFERS if name not in left}


def test_constraints_hold_together(router: Router) -> None:
    decision = router.route(HARD, allowed_regions=["eu"], denied_models=["large"], required_capabilities=["tools"])
    assert (decision.offer, decision.fallbacks) == ("small@eu", ())
    assert Reason.ONLY_ELIGIBLE in decision.reasons


def test_what_nothing_can_serve_is_an_error_that_lists_why(router: Router) -> None:
    with pytest.raises(NoEligibleOfferError) as caught:
        router.route(EASY, allowed_models=["small", "large"], allowed_regions=["us"], max_cost_usd=1e-9)
    assert caught.value.rejected == {
        "tiny@us": "model_not_allowed",
        "tiny@eu": "model_not_allowed",
        "small@eu": "region",
        "mid@us": "model_not_allowed",
        "large@us": "max_cost",
        "large@eu": "region",
    }
    assert "large@us: max_cost" in str(caught.value)
    assert "relax a constraint" in str(caught.value)


def test_a_wrong_field_is_named(router: Router) -> None:
    with pytest.raises(RequestError, match="`quality_target`"):
        router.route(EASY, quality_target=1.5)
    with pytest.raises(RequestError, match="`batch`"):
        router.decide(Request(text=EASY, batch="yes"))  # type: ignore[arg-type]


# -- prices ---------------------------------------------------------------------------------------


def test_told_input_tokens_replace_the_estimate(router: Router) -> None:
    estimated = cost(router.route(EASY), "large@us")
    told = router.route(EASY, input_tokens=10_000)
    assert cost(told, "large@us") > estimated
    more = router.route(EASY, input_tokens=20_000)
    assert cost(more, "large@us") - cost(told, "large@us") == pytest.approx(10_000 * 5e-6)
    assert cost(router.route(EASY, input_tokens=0), "large@us") < estimated


def test_the_estimate_of_input_tokens_follows_the_logs(router: Router) -> None:
    """The logs bill three tokens more than there are words."""
    decision = router.route(" ".join([EASY] * 4))
    large = decision.candidate("large@us")
    assert large.cost_usd is not None and large.output_tokens is not None
    assert (large.cost_usd - large.output_tokens * 20e-6) / 5e-6 == pytest.approx(43, rel=0.05)


def test_cached_tokens_are_cheaper_where_the_offer_says_so(router: Router) -> None:
    cached = dict.fromkeys(("small@eu", "tiny@us", "unknown offer"), 8000)
    plain, warm = (router.route(EASY, input_tokens=10_000, cached_input_tokens=c) for c in ({}, cached))
    saved = {c.offer: cost(plain, c.offer) - cost(warm, c.offer) for c in warm.candidates}
    assert saved.pop("small@eu") == pytest.approx(8000 * (0.25 - 0.025) * 1e-6)
    assert set(saved.values()) == {0.0}  # tiny has no price for cached input


def test_no_more_tokens_are_cached_than_the_prompt_has(router: Router) -> None:
    all_cached = router.route(EASY, input_tokens=1000, cached_input_tokens={"large@us": 1000})
    more = router.route(EASY, input_tokens=1000, cached_input_tokens={"large@us": 10**6})
    assert cost(more, "large@us") == cost(all_cached, "large@us") > 0


def test_batch_prices_hold_where_the_offer_has_them(router: Router) -> None:
    now, later = router.route(EASY), router.route(EASY, batch=True)
    ratio = {c.offer: cost(later, c.offer) / cost(now, c.offer) for c in now.candidates}
    assert ratio == pytest.approx({name: 0.5 if name in ("small@eu", "large@us") else 1.0 for name in OFFERS})


def test_a_limit_on_the_answer_limits_its_price(router: Router) -> None:
    short = router.route(EASY, input_tokens=100, max_output_tokens=10)
    assert cost(short, "large@us") == pytest.approx(100 * 5e-6 + 10 * 20e-6)


def test_another_catalog_changes_prices_and_no_estimate(router: Router, tiny_bundle: Path) -> None:
    dear = Router.load(tiny_bundle, catalog=with_catalog(tiny_bundle, input_usd_per_mtok=50, output_usd_per_mtok=200))
    before, after = (each.route(EASY, denied_models=["tiny"]) for each in (router, dear))
    assert [c.p_success for c in before.candidates] == [c.p_success for c in after.candidates]
    assert cost(after, "small@eu") == pytest.approx(200 * cost(before, "small@eu"))
    assert cost(after, "mid@us") == cost(before, "mid@us")
    assert before.model == "small"
    assert after.model != "small"


def test_a_catalog_of_other_models_is_refused(tiny_bundle: Path) -> None:
    other = Catalog.from_mean_costs({"gpt-9": 0.1})
    with pytest.raises(BundleError, match=r"no offer of the catalog.*gpt-9"):
        Router.load(tiny_bundle, catalog=other)


def test_offers_that_the_bundle_cannot_judge_are_left_out(tiny_bundle: Path) -> None:
    router = Router.load(tiny_bundle, catalog=Catalog.from_mean_costs({"gpt-9": 0.1, "mid": 0.2, "tiny": 0.1}))
    assert router.describe().offers == ("mid", "tiny")
    assert router.policy.unjudged_offers == ("gpt-9",)
    assert [c.offer for c in router.route(EASY).candidates] == ["mid", "tiny"]


# -- batches --------------------------------------------------------------------------------------


def varied_requests(n: int, size: int) -> list[Request]:
    """Requests of every kind, some of them wrong or impossible."""
    rng = np.random.default_rng(5)
    words = [*EASY.split(), *HARD.split(), "漢字", "🙂", "\ud800", "\n", "42", "{x=1}"]
    requests = []
    for i in range(n):
        text = " ".join(rng.choice(words, int(rng.integers(1, 200))))
        options: dict[str, Any] = {
            "segment": str(rng.choice(["chat", "code", "other"])) if i % 3 else None,
            "quality_target": float(rng.choice([0.8, 0.95, 1.0])) if i % 4 else None,
            "min_success_probability": 0.6 if i % 11 == 0 else None,
            "allowed_regions": ["eu"] if i % 5 == 0 else [],
            "max_cost_usd": 0.001 if i % 7 == 0 else None,
            "batch": bool(i % 2),
            "input_tokens": int(rng.integers(0, 5000)) if i % 6 == 0 else None,
        }
        kind = i % 8
        if kind == 1:
            requests.append(make_request(messages=[Message("system", "bab"), Message("user", text)], **options))
        elif kind == 2:
            requests.append(make_request(embedding=rng.normal(size=size), **options | {"input_tokens": 100}))
        else:
            requests.append(make_request(text, **options))
    requests[3] = Request(text="  ")
    requests[4] = make_request(EASY, allowed_models=["nothing of that name"])
    requests[5] = make_request(embedding=np.ones(3), input_tokens=3)
    return requests


def test_a_batch_answers_as_one_by_one(router: Router) -> None:
    requests = varied_requests(300, 32)
    together = router.decide_batch(requests)
    assert len(together) == len(requests)
    assert [isinstance(result, Decision) for result in together].count(False) >= 3
    for request, result in zip(requests, together, strict=True):
        try:
            alone: Decision | Exception = router.decide(request)
        except (RequestError, NoEligibleOfferError) as error:
            alone = error
        assert type(result) is type(alone)
        if isinstance(result, Decision) and isinstance(alone, Decision):
            check_close(result, alone)
        else:
            assert str(result) == str(alone)


def check_close(one: Decision, other: Decision) -> None:
    """The same choice; estimates as close as sums in another order are."""
    assert (one.offer, one.fallbacks, one.reasons) == (other.offer, other.fallbacks, other.reasons)
    assert (rejected(one), one.quality_target) == (rejected(other), other.quality_target)
    p, q = (np.array([c.p_success for c in decision.candidates]) for decision in (one, other))
    np.testing.assert_allclose(p, q, rtol=0, atol=1e-6)
    a, b = (np.array(estimates_of(decision), dtype=float) for decision in (one, other))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_what_is_wrong_spoils_no_neighbour(router: Router) -> None:
    good = make_request(EASY)
    wrong = Request(text="")
    impossible = make_request(EASY, max_cost_usd=0.0)
    first, blank, second, none, third = router.decide_batch([good, wrong, good, impossible, good])
    assert isinstance(blank, RequestError)
    assert isinstance(none, NoEligibleOfferError)
    for result in (first, second, third):
        assert isinstance(result, Decision)
        assert estimates_of(result) == estimates_of(router.decide(good))


def test_batches_of_none_and_of_nothing_good(router: Router) -> None:
    assert router.decide_batch([]) == []
    (only,) = router.decide_batch([Request(text="")])
    assert isinstance(only, RequestError)


def test_a_batch_of_embeddings(vector_router: Router) -> None:
    vectors = np.random.default_rng(3).normal(size=(20, 16))
    results = vector_router.decide_batch([make_request(embedding=vector) for vector in vectors])
    for vector, result in zip(vectors, results, strict=True):
        assert isinstance(result, Decision)
        assert result.offer == vector_router.route(embedding=vector).offer


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_long_prompts_of_a_batch_do_not_share_one_run_of_the_graph(router: Router, kind: str) -> None:
    """Else 256 long prompts would take gigabytes."""
    resource = pytest.importorskip("resource")
    long = " ".join([EASY] * 200)
    request = make_request(long) if kind == "text" else make_request(messages=[Message("user", long)])
    router.decide_batch([request] * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(router.decide_batch([request] * 256)) == 256
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 40, "256 prompts of 2,000 tokens in one run take 60 MB of 32-dimensional vectors and more"


# -- ids, threads, description --------------------------------------------------------------------


def test_ids_are_uuids_of_version_7_that_sort_by_time() -> None:
    ids = []
    for _ in range(20):
        before = time.time_ns() // 1_000_000
        ids.append(time_ordered_id())
        value = uuid.UUID(ids[-1])
        assert (value.version, value.variant) == (7, uuid.RFC_4122)
        assert str(value) == ids[-1]
        assert before <= value.int >> 80 <= time.time_ns() // 1_000_000
        time.sleep(0.002)
    assert ids == sorted(ids)


def test_ids_do_not_repeat() -> None:
    assert len({time_ordered_id() for _ in range(20_000)}) == 20_000


def test_threads_get_the_answers_that_one_thread_gets(router: Router, tiny_bundle: Path) -> None:
    requests = [request for request in varied_requests(120, 32) if request.text != "  "]
    fresh = Router.load(tiny_bundle)  # its caches are still empty
    start = threading.Barrier(8)

    def work(seed: int) -> list[Any]:
        order = np.random.default_rng(seed).permutation(len(requests))
        start.wait()
        found: list[Any] = [None] * len(requests)
        for i in order:
            try:
                found[i] = fresh.decide(requests[i])._replace(decision_id="")
            except (RequestError, NoEligibleOfferError) as error:
                found[i] = str(error)
        return found

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    expected: list[Decision | str] = []
    for request in requests:
        try:
            expected.append(router.decide(request)._replace(decision_id=""))
        except (RequestError, NoEligibleOfferError) as error:
            expected.append(str(error))
    for result in results:
        assert result == expected


def test_the_description_names_what_is_in_force(router: Router, tiny_bundle: Path) -> None:
    about = router.describe()
    assert about.version == router.bundle.manifest.version
    assert about.bundle_sha256 == json.loads((tiny_bundle / "manifest.json").read_text())["manifest_sha256"]
    assert about.bundle_format == FORMAT
    assert about.encoder == "static random-teacher"
    assert about.embedding_size == 32
    assert about.models == ("tiny", "small", "mid", "large")
    assert about.offers == OFFERS
    assert about.segments == ("chat", "code")
    assert about.catalog_as_of == "2026-11-01"
    assert about.default_quality_target == 0.97 in about.quality_targets
    assert about.training_start is not None and about.training_end is not None
    assert "2026-10-01" < about.training_start < about.training_end < about.created
    assert about.max_text_chars == 8192


def test_the_description_follows_the_catalog_in_force(tiny_bundle: Path) -> None:
    other = replace(Catalog.from_mean_costs({"mid": 0.2}), as_of="2026-12-01")
    about = Router.load(tiny_bundle, catalog=other).describe()
    assert (about.offers, about.catalog_as_of) == (("mid",), "2026-12-01")


def test_a_bundle_of_embeddings_takes_no_text(vector_router: Router) -> None:
    assert vector_router.describe().max_text_chars == 0
    assert vector_router.describe().catalog_as_of is None


# -- exploration ------------------------------------------------------------------------------------


@pytest.mark.parametrize("digests", [False, True], ids=["plain", "digests"])
def test_a_router_that_explores_by_its_uncertainty_tells_it_with_the_decision(tiny_bundle: Path, digests: bool) -> None:
    thompson = Exploration(0.5, ExplorationRule.THOMPSON, cost_multiple=1000, floor=0)
    router = Router.load(tiny_bundle, exploration=thompson, digests=digests)
    texts = ["bab deb", "xrob xvac bab", "fib " * 40]
    alone = [router.route(text, segment="chat") for text in texts]
    together = router.decide_batch([make_request(text, segment="chat") for text in texts])
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Decision) and one.exploration and other.exploration
        assert one.exploration.settings == thompson
        assert one.exploration.deviation is not None and min(one.exploration.deviation) > 0
        assert other.exploration.deviation == pytest.approx(one.exploration.deviation, rel=1e-5)
        assert (one.digest is not None) == (other.digest is not None) == digests
    unknown = router.route(texts[0], segment="never seen").exploration
    assert alone[0].exploration and unknown and unknown.deviation and alone[0].exploration.deviation
    assert sum(unknown.deviation) > sum(alone[0].exploration.deviation)


def test_a_bundle_of_embeddings_explores_by_its_uncertainty_too(embedding_bundle: Path) -> None:
    thompson = Exploration(0.5, ExplorationRule.THOMPSON, cost_multiple=1000, floor=0)
    router = Router.load(embedding_bundle, exploration=thompson)
    found = [router.route(embedding=np.linspace(-1, 1, 16)) for _ in range(100)]
    assert len({decision.propensity for decision in found}) > 1
    assert any(decision.reasons == (Reason.EXPLORED,) for decision in found)


def test_exploring_leaves_the_estimates_and_an_unexplored_decision_as_they_were(tiny_bundle: Path) -> None:
    plain = Router.load(tiny_bundle)
    assert plain.route("bab xrob").exploration is None
    assert plain.describe().exploration is None
    explores = Router.load(tiny_bundle, exploration=Exploration(0.5, cost_multiple=1000, floor=0))
    usual = plain.route("bab xrob")
    for decision in (explores.route("bab xrob") for _ in range(40)):
        assert decision.candidates == usual.candidates
        assert {decision.offer, *decision.fallbacks} == {usual.offer, *usual.fallbacks}
        if decision.reasons == usual.reasons:
            assert (decision.offer, decision.fallbacks) == (usual.offer, usual.fallbacks)
