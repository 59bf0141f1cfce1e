"""The decision that a client makes by itself when the router is late, down or wrong."""

from __future__ import annotations

import logging

from router_ml.errors import InputError, NoEligibleOfferError, RequestError, RouterMlError
from router_ml.types import Constraints, Decision, Reason, Request

_LOG = logging.getLogger(__name__)


class Fallback:
    """The configured default. Safe to share between threads."""

    def __init__(self, offer: str | None, model: str | None) -> None:
        """Neither given: there is no default. InputError when only the offer is."""
        if offer and not model:
            raise InputError(
                f"`default_model` must name the model of `default_offer` {offer!r}, "
                "so that a request that denies the model is not sent to it"
            )
        self._model = model or None
        self._offer = offer or self._model
        self._in_use = False

    def decision(self, request: Request, error: RouterMlError) -> Decision:
        """The default decision in place of `error`.

        Raises `error` when it is the caller's own mistake or there is no
        default, and an error of its kind when the request does not allow the
        default model.
        """
        if self._offer is None or self._model is None or isinstance(error, RequestError | NoEligibleOfferError):
            raise error
        if not _allows(request.constraints, self._model):
            raise type(error)(f"{error}; the default model `{self._model}` is not allowed by this request") from error
        if not self._in_use:
            self._in_use = True
            _LOG.warning("%s; the default offer `%s` is used until it decides", error, self._offer)
        return Decision(
            decision_id="",
            offer=self._offer,
            model=self._model,
            fallbacks=(),
            candidates=(),
            reasons=(Reason.ROUTER_UNAVAILABLE,),
            propensity=1.0,
            quality_target=None,
            version="",
            arm="",
            bundle_sha256="",
        )

    def not_needed(self) -> None:
        """The router decided."""
        if self._in_use:
            self._in_use = False
            _LOG.info("the router decides again; the default offer `%s` is no longer used", self._offer)


def _allows(constraints: Constraints, model: str) -> bool:
    allowed = constraints.allowed_models
    return model not in constraints.denied_models and (not allowed or model in allowed)
