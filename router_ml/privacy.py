"""What of a prompt may stand in a journal: all of it, what a hook makes of it, or a digest without a word of it."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from router_ml.errors import InputError
from router_ml.records import OutcomeReport, floats, prompt_fields
from router_ml.text import clean, prompt_text
from router_ml.types import Decision, Message, Request

WITHHELD = "withheld"
"""Stands in for an error message that may hold words of a prompt."""

_LEAST_KEY_BYTES = 16
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,40}")
"""What is taken for the name of an error and not for a message."""
_LOG = logging.getLogger(__name__)

Redact = Callable[[str], str]


class PromptRule(Protocol):
    """Turns what was asked and reported into what is written. Used by one thread."""

    failures: int
    """Prompts and messages that could not be treated, and so were not written."""

    def prompt(self, request: Request, decision: Decision) -> Mapping[str, Any]:
        """Fields of RequestRecord that stand for the prompt. Never raises."""

    def outcome(self, report: OutcomeReport) -> OutcomeReport:
        """The report as it is written. Never raises."""


class FullText:
    """The prompt as it was given."""

    def __init__(self) -> None:
        self.failures = 0

    def prompt(self, request: Request, decision: Decision) -> Mapping[str, Any]:
        return prompt_fields(request)

    def outcome(self, report: OutcomeReport) -> OutcomeReport:
        return report


class RedactedText:
    """Each text as `redact` returns it; what it fails on is left out, never written as it was."""

    def __init__(self, redact: Redact) -> None:
        self._redact = redact
        self.failures = 0

    def prompt(self, request: Request, decision: Decision) -> Mapping[str, Any]:
        try:
            if request.text is not None:
                return prompt_fields(replace(request, text=self._redacted(request.text)))
            turns = [Message(turn.role, self._redacted(turn.content)) for turn in request.messages]
            return prompt_fields(replace(request, messages=tuple(turns)))
        except Exception as error:  # a user's hook may raise anything
            self._fail(error)
            return {"withheld": True}

    def outcome(self, report: OutcomeReport) -> OutcomeReport:
        if not report.error:
            return report
        try:
            return replace(report, error=self._redacted(report.error))
        except Exception as error:
            self._fail(error)
            return replace(report, error=WITHHELD)

    def _redacted(self, text: str) -> str:
        redacted = self._redact(text)
        if not isinstance(redacted, str):
            raise TypeError(f"the hook returned {type(redacted).__name__}, expected str")
        return redacted

    def _fail(self, error: Exception) -> None:
        """Told by its type alone: the message of an error may quote what it failed on."""
        if not self.failures:
            _LOG.error("redaction failed (%s): the text is left out of the journal", type(error).__name__)
        self.failures += 1


class NoText:
    """A keyed hash, the bundle's embedding and side features; an error only where it is a plain code.

    The router must be one that makes digests (`Router.load(..., digests=True)`).
    """

    def __init__(self, key: bytes) -> None:
        """InputError on a key of fewer than 16 bytes."""
        if len(key) < _LEAST_KEY_BYTES:
            raise InputError(f"the key of the journal must have at least {_LEAST_KEY_BYTES} bytes, found {len(key)}")
        self._key = key
        self.failures = 0

    def prompt(self, request: Request, decision: Decision) -> Mapping[str, Any]:
        if request.embedding is not None:
            return prompt_fields(request)
        digest = decision.digest
        if digest is None:
            if not self.failures:
                _LOG.error("a decision came without a digest of its prompt, which is left out of the journal")
            self.failures += 1
            return {"withheld": True}
        text = request.text if request.text is not None else prompt_text(request.messages)
        return {
            "digest": {
                "prompt_hmac": prompt_hmac(self._key, request.tenant, text),
                "embedding_f32": floats(digest.embedding),
                "side_f32": floats(digest.side),
                "tokens": digest.n_tokens,
                "encoder_sha256": digest.encoder_sha256,
            }
        }

    def outcome(self, report: OutcomeReport) -> OutcomeReport:
        if not report.error or _CODE.fullmatch(report.error):
            return report
        return replace(report, error=WITHHELD)


def prompt_hmac(key: bytes, tenant: str | None, text: str) -> str:
    """64 hex digits that equal prompts of one tenant share, and those of two tenants do not."""
    of_tenant = hmac.digest(key, (tenant or "").encode("utf-8", "replace"), "sha256")
    return hmac.new(of_tenant, clean(text).encode("utf-8"), hashlib.sha256).hexdigest()


def read_key(path: str | Path) -> bytes:
    """The key in a file, white space around it left out; InputError when it cannot be read or is too short."""
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise InputError(f"{path}: the journal's key cannot be read ({error.strerror})") from None
    if len(key) < _LEAST_KEY_BYTES:
        raise InputError(
            f"{path}: the journal's key must have at least {_LEAST_KEY_BYTES} bytes, found {len(key)}; "
            "make one with: openssl rand -hex 32"
        )
    return key


def load_redaction(reference: str) -> Redact:
    """The function that `module:function` names; InputError when there is none."""
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise InputError(f"the redaction hook must be given as module:function; found {reference!r}")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"the redaction hook {reference!r} cannot be loaded ({error}); is its folder in PYTHONPATH?"
        ) from None
    if not callable(found):
        raise InputError(f"the redaction hook {reference!r} is {type(found).__name__}, not a function")
    hook: Redact = found
    return hook
