"""Requests are decided by the version of their arm, under the propensity of all arms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router_ml import bundle
from router_ml.catalog import Catalog
from router_ml.errors import NoEligibleOfferError, RequestError
from router_ml.experiment import Arm, Experiment, Unit
from router_ml.exploration import Exploration
from router_ml.router import Router
from router_ml.split_router import SplitRouter
from router_ml.traffic import Traffic
from router_ml.types import Constraints, Decision, Request

MakeRouter = Callable[..., Router]
WORDS = ("bab", "xrob", "dec fig lus", "xvab xzeb xkyb", "gob xrob mab")


@pytest.fixture(scope="module")
def make_router(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRouter:
    """Versions that differ in their prices, and so in what they choose."""

    def make(name: str, *, dearer: str = "", models: tuple[str, ...] = (), share: float | None = None) -> Router:
        manifest, _, parts = bundle.verify(tiny_bundle)
        data = json.loads(parts[bundle.CATALOG])
        for offer in data["offers"]:
            if offer["model"] == dearer:
                offer["request_usd"] = 1.0
        data["offers"] = [offer for offer in data["offers"] if not models or offer["model"] in models]
        folder = tmp_path_factory.mktemp("versions") / name
        tokenizer = parts[bundle.TOKENIZER]
        bundle.write(folder, replace(manifest, version=name), parts[bundle.GRAPH], Catalog.from_dict(data), tokenizer)
        return Router.load(
            folder, exploration=None if share is None else Exploration(share, floor=0.0, cost_multiple=1e6)
        )

    return make


def experiment(name: str = "shorter", *versions: str, **changes: object) -> Experiment:
    fields = {"salt": f"salt of {name}", "unit": Unit.SESSION, "segments": None, "share": 0.5, "start": 0.0} | changes
    arms = tuple(Arm("control" if k == 0 else f"arm-{k}", version) for k, version in enumerate(versions))
    return Experiment(name=name, arms=arms, **fields)  # type: ignore[arg-type]


def split(routers: dict[str, Router], *tests: Experiment) -> SplitRouter:
    return SplitRouter(Traffic(next(iter(routers)), "layer", tests), routers)


def requests(n: int = 200, **fields: object) -> list[Request]:
    return [Request(text=WORDS[k % 5], session_id=f"s{k}", **fields) for k in range(n)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def routers(make_router: MakeRouter) -> dict[str, Router]:
    return {
        "old": make_router("old"),
        "new": make_router("new", dearer="large"),
        "third": make_router("third", dearer="mid"),
    }


def test_the_version_of_the_arm_decides_and_sessions_stick(routers: dict[str, Router]) -> None:
    router = split(routers, experiment("shorter", "old", "new", share=0.3))
    arms: dict[str, set[str]] = {}
    for request in requests() * 2:
        decision = router.decide(request)
        arms.setdefault(request.session_id or "", set()).add(decision.arm)
        assert decision.version == {"": "old", "shorter/control": "old", "shorter/arm-1": "new"}[decision.arm]
        chosen = routers[decision.version].decide(request)
        assert (decision.offer, decision.candidates) == (chosen.offer, chosen.candidates)
    assert all(len(each) == 1 for each in arms.values())
    assert {arm for each in arms.values() for arm in each} == {"", "shorter/control", "shorter/arm-1"}


@pytest.mark.parametrize("share", [None, 0.3])
def test_the_propensity_in_a_test_is_the_mean_over_its_arms(make_router: MakeRouter, share: float | None) -> None:
    names = {"old": "", "new": "large", "third": "mid"}
    versions = {name: make_router(name, dearer=dearer, share=share) for name, dearer in names.items()}
    router = split(versions, experiment("three", *versions, share=0.25))
    seen = set()
    for request in requests(60):
        decision = router.decide(request)
        own = versions[decision.version].chances((request,))[0]
        if decision.arm == "":
            assert (decision.propensity, decision.arm_propensity) == (own[decision.model], None)
            continue
        each = [version.chances((request,))[0].get(decision.model, 0.0) for version in versions.values()]
        assert decision.propensity == pytest.approx(np.mean(each), abs=1e-12)
        assert decision.arm_propensity == own[decision.model]
        seen.add(round(decision.propensity, 9))
    assert len(seen) > 1
    if share is None:
        assert seen <= {round(k / 3, 9) for k in (1, 2, 3)}


def test_chosen_models_are_as_frequent_as_their_propensities_say(make_router: MakeRouter) -> None:
    versions = {"old": make_router("old", share=0.3), "new": make_router("new", dearer="large", share=0.3)}
    router = split(versions, experiment("shorter", *versions, share=0.5))
    n = 4000
    results = router.decide_batch([Request(text=WORDS[0], session_id=f"s{k}") for k in range(n)])
    decisions = [each for each in results if isinstance(each, Decision)]
    counts, stated = Counter(each.model for each in decisions), {each.model: each.propensity for each in decisions}
    assert sum(stated.values()) == pytest.approx(1)
    for model, propensity in stated.items():
        assert abs(counts[model] - n * propensity) < 5 * np.sqrt(n * propensity * (1 - propensity))


def test_one_version_against_itself_is_certain_of_its_choice(routers: dict[str, Router]) -> None:
    router = split(routers, experiment("aa", "old", "old"))
    decisions = [router.decide(request) for request in requests(40)]
    assert {(each.arm, each.propensity) for each in decisions} == {("aa/control", 1.0), ("aa/arm-1", 1.0)}


def test_a_batch_is_decided_as_its_requests_are_alone(routers: dict[str, Router]) -> None:
    tests = experiment("a", "old", "new", share=0.2), experiment("b", "old", "new", "third", start=0.4, share=0.15)
    router = split(routers, *tests)
    asked = [*requests(100), Request(text=" ", session_id="s3"), Request(text="bab")]
    together = router.decide_batch(asked)
    assert isinstance(together[100], RequestError)
    for request, decision in zip([*asked[:100], asked[101]], [*together[:100], together[101]], strict=True):
        alone = router.decide(request)
        assert isinstance(decision, Decision)
        same = ("arm", "version", "offer", "model", "propensity", "arm_propensity", "fallbacks", "reasons")
        assert [getattr(decision, name) for name in same] == [getattr(alone, name) for name in same]
    assert len({each.arm for each in together if isinstance(each, Decision)}) == 6
    assert len({each.decision_id for each in together if isinstance(each, Decision)}) == 101


def test_the_unit_request_is_hashed_by_the_id_of_the_decision(routers: dict[str, Router]) -> None:
    test = experiment("each", "old", "new", unit=Unit.REQUEST, share=0.3)
    router = split(routers, test)
    for decision in [router.decide(Request(text="bab")) for _ in range(60)]:
        arm = test.arm_of("layer", decision.decision_id)
        assert decision.arm == ("" if arm is None else f"each/{test.arms[arm].name}")


def test_a_prompt_that_not_every_arm_could_take_is_in_no_test(
    routers: dict[str, Router], make_router: MakeRouter, embedding_bundle: Path
) -> None:
    other = Router.load(embedding_bundle)
    router = split({"old": routers["old"], "odd": other}, experiment("odd", "old", "odd"))
    assert {router.decide(request).arm for request in requests(20)} == {""}
    vector = np.ones(other.bundle.manifest.embedding_size, dtype=np.float32)
    with pytest.raises(RequestError, match="`embedding` must have 32 numbers"):
        router.decide(Request(embedding=vector, session_id="s"))


def test_an_arm_that_has_no_offer_for_a_request_says_so_and_the_other_weighs_it_as_never_chosen(
    routers: dict[str, Router], make_router: MakeRouter
) -> None:
    versions = {"old": routers["old"], "few": make_router("few", models=("tiny", "small"))}
    router = split(versions, experiment("few", *versions))
    only = Constraints(allowed_models=("large",))
    refused = 0
    for request in requests(30, constraints=only):
        try:
            decision = router.decide(request)
        except NoEligibleOfferError:
            refused += 1
        else:
            assert (decision.arm, decision.propensity, decision.arm_propensity) == ("few/control", 0.5, 1.0)
    assert 0 < refused < 30


def test_it_tells_of_the_tests_in_force(routers: dict[str, Router]) -> None:
    told = split(routers, experiment("shorter", "old", "new", share=0.3, segments=("chat",))).describe()
    assert (told.version, told.layer_salt, told.tests[0].segments) == ("old", "layer", ("chat",))
    assert [(arm.name, arm.version, arm.bundle_sha256) for arm in told.tests[0].arms] == [
        ("control", "old", routers["old"].bundle.sha256),
        ("arm-1", "new", routers["new"].bundle.sha256),
    ]
