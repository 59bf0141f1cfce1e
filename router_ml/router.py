"""Router = text -> features -> heads -> policy. Read this page first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike

from router_ml import bundle as bundles
from router_ml.batch_policy import BatchPolicy, Chosen
from router_ml.bundle import Bundle
from router_ml.catalog import Catalog
from router_ml.decision_ids import time_ordered_id, time_ordered_ids
from router_ml.errors import BundleError, NoEligibleOfferError, RequestError, RouterMlError
from router_ml.exploration import Exploration, ExplorationRule, Explorer
from router_ml.features import Features
from router_ml.heads import OUTPUTS, VECTOR, Row, deviations, estimate, rows_of
from router_ml.policy import Policy
from router_ml.request import check_request, make_request
from router_ml.request_features import RequestFeatures
from router_ml.request_policy import Choice, RequestPolicy, rule_of
from router_ml.types import Decision, Description, Digest, Estimates, Float32Array, Message, Request
from router_ml.weighed import OfferNames, Weighed


class Router:
    """Decides which offer should answer a prompt. Safe to share between threads.

    ``Router.load("bundle").route("...").offer`` is the whole of its use. The catalog of
    the bundle is in force unless another one, say with today's prices, is given.
    With `digests`, decisions on text carry what a journal without text keeps of it;
    BundleError where the bundle cannot give that. With `exploration`, a share of decisions is left to chance;
    BundleError where the bundle cannot tell the uncertainty that its rule asks for.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        catalog: Catalog | None = None,
        digests: bool = False,
        exploration: Exploration | None = None,
    ) -> None:
        self.bundle = bundle
        self.policy = Policy(catalog or bundle.catalog, bundle.manifest.models, bundle.points)
        self._of_request = RequestPolicy(self.policy)
        self._catalog_as_of = (catalog or bundle.catalog).as_of
        self._features = RequestFeatures(bundle)
        self._ratio = np.array(bundle.manifest.input_token_ratio, dtype=np.float32)
        self._ratios: list[float] = self._ratio.tolist()
        self._of_batch = BatchPolicy(self.policy, self._of_request, self._ratios)
        self._encoder_sha256 = _encoder_sha256(bundle) if digests and bundle.tokenizer else None
        self._column: list[int] = self.policy.column.tolist()
        self._offers = tuple((offer.name, offer.model) for offer in self.policy.offers)
        self._names = OfferNames(self._offers)
        self.exploration = exploration
        self._explorer = Explorer(exploration, bundle.sha256) if exploration else None
        thompson = exploration is not None and exploration.rule is ExplorationRule.THOMPSON
        self._uncertainty = _uncertainty_of(bundle) if thompson else None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        catalog: Catalog | None = None,
        digests: bool = False,
        exploration: Exploration | None = None,
        like: Router | None = None,
    ) -> Router:
        """Verify and open a bundle folder; BundleError says what is wrong with it.

        What it has in common with `like`, the version that it is to follow, is shared and opens at once.
        """
        bundle = bundles.load(path, like=like.bundle if like else None)
        return cls(bundle, catalog=catalog, digests=digests, exploration=exploration)

    # -- one request ----------------------------------------------------------------------------

    def route(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message | Mapping[str, str]] = (),
        embedding: ArrayLike | None = None,
        segment: str | None = None,
        session_id: str | None = None,
        tenant: str | None = None,
        allowed_models: Iterable[str] = (),
        denied_models: Iterable[str] = (),
        allowed_regions: Iterable[str] = (),
        required_capabilities: Iterable[str] = (),
        max_cost_usd: float | None = None,
        max_output_tokens: int | None = None,
        quality_target: float | None = None,
        min_success_probability: float | None = None,
        input_tokens: int | None = None,
        cached_input_tokens: Mapping[str, int] | None = None,
        batch: bool = False,
    ) -> Decision:
        """Decide one prompt, given as `text`, `messages` or `embedding`; see `types.Request` for the fields.

        Raises RequestError (which field is wrong) and NoEligibleOfferError (which constraint excludes which offer).
        """
        request = make_request(
            text,
            messages=messages,
            embedding=embedding,
            segment=segment,
            session_id=session_id,
            tenant=tenant,
            allowed_models=allowed_models,
            denied_models=denied_models,
            allowed_regions=allowed_regions,
            required_capabilities=required_capabilities,
            max_cost_usd=max_cost_usd,
            max_output_tokens=max_output_tokens,
            quality_target=quality_target,
            min_success_probability=min_success_probability,
            input_tokens=input_tokens,
            cached_input_tokens=cached_input_tokens,
            batch=batch,
        )
        return self._decide(request)

    def decide(self, request: Request) -> Decision:
        """Decide one request; errors as for `route`."""
        check_request(request)
        return self._decide(request)

    def decide_as(self, decision_id: str, request: Request) -> Decision:
        """Decide one request under an id that it has already, see `time_ordered_id`; errors as for `route`."""
        check_request(request)
        return self._decide(request, decision_id)

    # -- many requests --------------------------------------------------------------------------

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        """Decide each request; one that is wrong gets its error in its place and spoils no other."""
        return self.decide_batch_as(time_ordered_ids(len(requests)), requests)

    def decide_each(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        """The same, to the last bit as `decide` does."""
        return self.decide_batch_as(time_ordered_ids(len(requests)), requests, alone=True)

    def decide_batch_as(
        self, decision_ids: Sequence[str], requests: Sequence[Request], *, alone: bool = False
    ) -> list[Decision | RouterMlError]:
        """The same under ids that the requests have already.

        `alone` runs the graph for each by itself: rows beside it change its sums in the last digits.
        """
        results: list[Decision | RouterMlError | None] = [None] * len(requests)
        good = []
        for i, request in enumerate(requests):
            try:
                self._check(request)
                good.append(i)
            except RequestError as error:
                results[i] = error
        some = [requests[i] for i in good]
        for i, request, (chosen, digest, deviation) in zip(good, some, self._chosen(some, alone), strict=True):
            choice, p_success, numbers = chosen
            try:
                results[i] = self._decision(request, choice, p_success, numbers, digest, deviation, decision_ids[i])
            except NoEligibleOfferError as error:
                results[i] = error
        return [result for result in results if result is not None]

    def takes(self, request: Request) -> bool:
        """Whether a prompt given like this is one for the bundle."""
        try:
            self._check_fits(request)
        except RequestError:
            return False
        return True

    def chances(self, requests: Sequence[Request], *, alone: bool = False) -> list[dict[str, float]]:
        """For each checked request, which it must take, the probability with which each model is chosen.

        Models without a chance are left out, so that a request that has no eligible offer gets an empty one.
        `alone` is that of `decide_batch_as`.
        """
        return [
            self._chances(request, chosen, deviation)
            for request, (chosen, _, deviation) in zip(requests, self._chosen(requests, alone), strict=True)
        ]

    def estimate(self, requests: Sequence[Request]) -> Estimates:
        """Estimates [n, m] of n checked requests; runs the graph on requests of like length together."""
        order, parts = [], []
        for places, features in self._features.parts(requests):
            order.append(places)
            parts.append(estimate(self.bundle.session, features, self._ratio))
        back = np.argsort(np.concatenate(order), kind="stable")
        found = Estimates(
            *(
                np.concatenate([getattr(part, name) for part in parts])[back]
                for name in ("p_success", "output_tokens", "latency_ms", "input_tokens")
            )
        )
        for i, request in enumerate(requests):
            if request.input_tokens is not None:
                found.input_tokens[i] = request.input_tokens
        return found

    def describe(self) -> Description:
        """What is in force: version, hashes, models, offers, targets, limits."""
        manifest = self.bundle.manifest
        return Description(
            version=manifest.version,
            bundle_sha256=self.bundle.sha256,
            bundle_format=self.bundle.format,
            created=manifest.created,
            training_start=manifest.training_start,
            training_end=manifest.training_end,
            encoder=f"{manifest.encoder['kind']} {manifest.encoder['name']}",
            embedding_size=manifest.embedding_size,
            models=manifest.models,
            offers=tuple(offer.name for offer in self.policy.offers),
            catalog_as_of=self._catalog_as_of,
            segments=manifest.segments,
            quality_targets=self.bundle.points.quality_targets,
            default_quality_target=self.bundle.points.default_target,
            max_text_chars=self.bundle.tokenizer.settings.max_chars if self.bundle.tokenizer else 0,
            exploration=str(self.exploration) if self.exploration else None,
        )

    # -- inside ---------------------------------------------------------------------------------

    def _decide(self, request: Request, decision_id: str | None = None) -> Decision:
        self._check_fits(request)
        features = self._features.together((request,))
        flat, (digest,), (deviation,) = self._run((request,), features)
        row = next(rows_of(flat, features, self._ratios))
        choice = self._choice(request, row)
        numbers = self._numbers(row, choice)
        return self._decision(request, choice, row.p_success, numbers, digest, deviation, decision_id)

    def _chosen(
        self, requests: Sequence[Request], alone: bool
    ) -> Iterator[tuple[Chosen, Digest | None, list[float] | None]]:
        """What the policy would choose for each checked request, with digest and deviations, where they are made."""
        if not requests:
            return iter(())
        flat = np.empty((len(requests), 3 * len(self._ratios)), dtype=np.float32)
        n_tokens = np.empty(len(requests), dtype=np.float32)
        digests: list[Digest | None] = [None] * len(requests)
        deviation: list[list[float] | None] = [None] * len(requests)
        for places, features in self._features.parts(requests, alone=alone):
            at = places.tolist()
            flat[places], some_digests, spread = self._run([requests[i] for i in at], features)
            n_tokens[places] = features.n_tokens
            for i, digest, each in zip(at, some_digests, spread, strict=True):
                digests[i], deviation[i] = digest, each
        return zip(self._of_batch.choose(requests, flat, n_tokens), digests, deviation, strict=True)

    def _run(
        self, requests: Sequence[Request], features: Features
    ) -> tuple[Float32Array, Sequence[Digest | None], Sequence[list[float] | None]]:
        """One run of the graph: its output, and for each request a digest and deviations [m], where they are made."""
        nothing: tuple[None, ...] = (None,) * len(requests)
        digests: Sequence[Digest | None] = nothing
        if self._encoder_sha256 is None and (self._uncertainty is None or self.bundle.tokenizer is None):
            (flat,) = self.bundle.session.run(OUTPUTS, features.feed())
            vectors = features.embedding
        else:
            flat, vectors = self.bundle.session.run((*OUTPUTS, VECTOR), features.feed())
            if self._encoder_sha256 is not None:
                digests = _digests(requests, features, vectors, self._encoder_sha256)
        if self._uncertainty is None:
            return flat, digests, nothing
        return flat, digests, deviations(self._uncertainty, vectors, features.side, features.segment).tolist()

    def _check(self, request: Request) -> None:
        check_request(request)
        self._check_fits(request)

    def _check_fits(self, request: Request) -> None:
        """What only this bundle can know of a request."""
        size = self.bundle.manifest.embedding_size
        if request.embedding is None:
            if self.bundle.tokenizer is None:
                raise RequestError("`embedding` is required: this bundle was trained on embeddings alone, without text")
        elif request.embedding.shape != (size,):
            raise RequestError(f"`embedding` must have {size} numbers for this bundle; found {request.embedding.size}")

    def _choice(self, request: Request, row: Row) -> Choice:
        """What the policy would choose, if anything."""
        input_tokens = row.input_tokens
        if request.input_tokens is not None:
            input_tokens = [float(request.input_tokens)] * len(row.p_success)
        return self._of_request.choose(request, row.p_success, row.output_tokens, input_tokens)

    def _numbers(self, row: Row, choice: Choice) -> list[float]:
        """As `Weighed` takes them."""
        p_success, output_tokens, latency_ms, _ = row
        return [
            number
            for j, usd in zip(self._column, choice.cost_usd, strict=True)
            for number in (p_success[j], output_tokens[j], usd, latency_ms[j])
        ]

    def _chances(self, request: Request, chosen: Chosen, deviation: list[float] | None) -> dict[str, float]:
        choice = chosen.choice
        if not choice.order:
            return {}
        if self._explorer is None:
            return {self._offers[choice.order[0]][1]: 1.0}
        by = rule_of(self.policy, request)
        models, probability, *_ = self._explorer.spread(choice, self._column, chosen.p_success, by, deviation)
        return {self.policy.models[j]: each for j, each in zip(models, probability, strict=True)}

    def _decision(
        self,
        request: Request,
        choice: Choice,
        p_success: list[float],
        numbers: list[float],
        digest: Digest | None,
        deviation: list[float] | None,
        decision_id: str | None = None,
    ) -> Decision:
        """The decision of a choice, `numbers` as `Weighed` takes them; NoEligibleOfferError where there is none."""
        if not choice.order:
            raise self._of_request.no_offer(choice)
        decision_id = decision_id or time_ordered_id()
        order, reasons, propensity, drawn = choice.order, choice.reasons, 1.0, None  # the policy is deterministic
        if self._explorer is not None:
            by = rule_of(self.policy, request)
            order, reasons, propensity, drawn = self._explorer.draw(
                decision_id, choice, self._column, p_success, by, deviation
            )
        first, *others = order
        name, model = self._offers[first]
        target = request.quality_target or self.bundle.points.default_target
        return Decision(
            decision_id=decision_id,
            offer=name,
            model=model,
            fallbacks=tuple([self._offers[k][0] for k in others]),
            candidates=Weighed(self._names, numbers, choice.rejected),
            reasons=reasons,
            propensity=propensity,
            quality_target=None if request.min_success_probability is not None else target,
            version=self.bundle.manifest.version,
            arm="",
            bundle_sha256=self.bundle.sha256,
            digest=digest,
            exploration=drawn,
        )


def _digests(
    requests: Sequence[Request], features: Features, vectors: Float32Array, encoder_sha256: str
) -> list[Digest | None]:
    rows = zip(requests, vectors, features.side, features.n_tokens.tolist(), strict=True)
    return [
        None if request.embedding is not None else Digest(vector, side, n_tokens, encoder_sha256)
        for request, vector, side, n_tokens in rows
    ]


def _encoder_sha256(bundle: Bundle) -> str:
    if (
        VECTOR not in {output.name for output in bundle.session.get_outputs()}
        or "sha256" not in bundle.manifest.encoder
    ):
        raise BundleError(
            f"version {bundle.manifest.version} cannot give the embedding of a prompt, which a journal without text "
            "keeps in its place; train it anew with this version of router-ml, or journal the text"
        )
    return str(bundle.manifest.encoder["sha256"])


def _uncertainty_of(bundle: Bundle) -> ort.InferenceSession:
    if bundle.uncertainty is None:
        raise BundleError(
            f"version {bundle.manifest.version} does not tell how sure it is, which the exploration rule `thompson` "
            "needs; explore by `epsilon`, or train it anew with this version of router-ml"
        )
    return bundles.open_session(bundle.uncertainty)
