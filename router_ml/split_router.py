"""The versions of a traffic document as one router: each request is decided by the version of its arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from router_ml.decision_ids import time_ordered_id, time_ordered_ids
from router_ml.errors import RouterMlError
from router_ml.experiment import Experiment
from router_ml.router import Router
from router_ml.shadow import ShadowQueue
from router_ml.traffic import Traffic, in_force
from router_ml.types import Decision, Description, Request


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One arm of a test."""

    label: str
    router: Router
    routers: tuple[Router, ...]
    """Of all arms of the test, this one included."""

    def marked(
        self, requests: Sequence[Request], results: Sequence[Decision | RouterMlError], alone: bool
    ) -> list[Decision | RouterMlError]:
        """What this side decided, with the arm and with the propensity over all arms."""
        at = [i for i, result in enumerate(results) if isinstance(result, Decision)]
        some = [requests[i] for i in at]
        chances = {
            router: router.chances(some, alone=alone) for router in set(self.routers) if router is not self.router
        }
        marked = list(results)
        for k, i in enumerate(at):
            decision = results[i]
            assert isinstance(decision, Decision)
            own, model = decision.propensity, decision.model
            each = [own if router is self.router else chances[router][k].get(model, 0.0) for router in self.routers]
            marked[i] = decision._replace(arm=self.label, propensity=sum(each) / len(each), arm_propensity=own)
        return marked


class SplitRouter:
    """Decides as `Router` does. Safe to share between threads.

    A request is in at most one test. One whose unit is not known, or whose prompt one of the arms could not take, is
    in none: so what is left out does not depend on the arm. Shadows hear of decisions only after they are made.
    """

    def __init__(self, traffic: Traffic, routers: Mapping[str, Router], shadows: ShadowQueue | None = None) -> None:
        """`routers` by folder. Without `shadows` no shadow decides."""
        self._traffic = traffic
        self._routers = routers
        self._champion = routers[traffic.champion]
        self._tests = [(test, _sides(test, routers)) for test in traffic.tests]
        self._shadows = [(shadow, routers[shadow.version]) for shadow in traffic.shadows] if shadows else []
        self._queue = shadows

    def decide(self, request: Request) -> Decision:
        """Decide one request; errors as for `Router.decide`."""
        decision_id = time_ordered_id()
        side = self._side(request, decision_id)
        if side is None:
            decision = self._champion.decide_as(decision_id, request)
        else:
            (decision,) = side.marked((request,), (side.router.decide_as(decision_id, request),), True)  # type: ignore[assignment]
        self._tell_shadows(request, decision)
        return decision

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        """Decide each request; one that is wrong gets its error in its place and spoils no other."""
        return self._decide_all(requests, alone=False)

    def decide_each(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        """The same, to the last bit as `decide` does."""
        return self._decide_all(requests, alone=True)

    def _decide_all(self, requests: Sequence[Request], alone: bool) -> list[Decision | RouterMlError]:
        ids = time_ordered_ids(len(requests))
        places: defaultdict[_Side | None, list[int]] = defaultdict(list)
        for i, (request, decision_id) in enumerate(zip(requests, ids, strict=True)):
            places[self._side(request, decision_id)].append(i)
        results: dict[int, Decision | RouterMlError] = {}
        for side, at in places.items():
            some = [requests[i] for i in at]
            router = self._champion if side is None else side.router
            decided = router.decide_batch_as([ids[i] for i in at], some, alone=alone)
            results |= zip(at, decided if side is None else side.marked(some, decided, alone), strict=True)
        ordered = [results[i] for i in range(len(requests))]
        for request, result in zip(requests, ordered, strict=True):
            if isinstance(result, Decision):
                self._tell_shadows(request, result)
        return ordered

    def describe(self) -> Description:
        """The champion, and what is tested beside it."""
        identity = {name: (each.bundle.manifest.version, each.bundle.sha256) for name, each in self._routers.items()}
        told = in_force(self._traffic, identity)
        return replace(
            self._champion.describe(),
            layer_salt=self._traffic.layer_salt,
            tests=told.tests,
            shadows=told.shadows,
        )

    def _side(self, request: Request, decision_id: str) -> _Side | None:
        for test, sides in self._tests:
            unit_id = test.unit_id(request, decision_id)
            if unit_id is None:
                continue
            arm = test.arm_of(self._traffic.layer_salt, unit_id)
            if arm is not None:
                return sides[arm] if all(router.takes(request) for router in sides[arm].routers) else None
        return None

    def _tell_shadows(self, request: Request, decision: Decision) -> None:
        for shadow, router in self._shadows:
            if self._queue is not None and shadow.takes(request, decision.decision_id):
                self._queue.put(shadow.name, router, request, decision)


def _sides(test: Experiment, routers: Mapping[str, Router]) -> list[_Side]:
    of_arms = tuple(routers[arm.version] for arm in test.arms)
    return [_Side(f"{test.name}/{arm.name}", router, of_arms) for arm, router in zip(test.arms, of_arms, strict=True)]
