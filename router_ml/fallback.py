"""The decision that a client makes by itself when the router is late, down or wrong."""

from __future__ import annotations

import logging
import math
import time

from router_ml.errors import InputError, NoEligibleOfferError, RequestError, RouterMlError
from router_ml.types import Constraints, Decision, Reason, Request

_LOG_EVERY_S = 10.0

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
        self._used = 0
        self._log_again_at = -math.inf

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
        self._log(error)
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

    def _log(self, error: RouterMlError) -> None:
        self._used += 1
        now = time.monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + _LOG_EVERY_S
            _LOG.warning("%s; so the default offer `%s` was used, %d times by now", error, self._offer, self._used)


def _allows(constraints: Constraints, model: str) -> bool:
    allowed = constraints.allowed_models
    return model not in constraints.denied_models and (not allowed or model in allowed)
