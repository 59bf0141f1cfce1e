"""Builds and checks the request to a router; the in-process router and the client both call this."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from router_ml.errors import RequestError
from router_ml.types import NO_CONSTRAINTS, Constraints, Float32Array, Message, Request

_NONE: tuple[str, ...] = ()

MAX_TOKENS = 2**31 - 1
"""Largest token count that the contract and the outcome table can hold."""

MAX_PROMPT_CHARS = 16 * 1024 * 1024
"""Most characters of a prompt, of a text or of all its messages; a router cuts it to far fewer."""

MAX_MESSAGES = 4096
"""Most messages of a prompt."""

MAX_NAMES = 1024
"""Most names of a list, and most entries of `cached_input_tokens`."""

MAX_NAME_CHARS = 256
"""Most characters of a name or label: of models, offers, regions, capabilities, roles, segments, sessions, tenants."""


def make_request(
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
) -> Request:
    """A checked request from plain arguments.

    Exactly one of `text`, `messages` and `embedding` is given. A message is a
    `Message` or a mapping of `role` and `content`. Numbers of numpy are taken
    too, and an empty `segment`, `session_id` or `tenant` means none. The other
    fields are explained at `Request` and `Constraints`.

    Raises RequestError, which names the field.
    """
    names = (allowed_models, denied_models, allowed_regions, required_capabilities)
    constraints = NO_CONSTRAINTS
    if any(each is not _NONE for each in names) or max_cost_usd is not None or max_output_tokens is not None:
        constraints = Constraints(
            allowed_models=_names("allowed_models", allowed_models),
            denied_models=_names("denied_models", denied_models),
            allowed_regions=_names("allowed_regions", allowed_regions),
            required_capabilities=_names("required_capabilities", required_capabilities),
            max_cost_usd=_plain(max_cost_usd),
            max_output_tokens=_plain(max_output_tokens),
        )
    request = Request(
        text=text,
        messages=tuple(_message(i, message) for i, message in enumerate(messages)),
        embedding=_vector(embedding),
        segment=segment or None,
        session_id=session_id or None,
        tenant=tenant or None,
        constraints=NO_CONSTRAINTS if constraints == NO_CONSTRAINTS else constraints,
        quality_target=_plain(quality_target),
        min_success_probability=_plain(min_success_probability),
        input_tokens=_plain(input_tokens),
        cached_input_tokens=_counts(cached_input_tokens),
        batch=_plain(batch),
    )
    check_request(request)
    return request


def check_request(request: Request) -> None:
    """Raise RequestError, which names the field, unless every value is within its range."""
    _check_prompt(request)
    if request.constraints is not NO_CONSTRAINTS:
        _check_constraints(request.constraints)
    for name, label in (("segment", request.segment), ("session_id", request.session_id), ("tenant", request.tenant)):
        if label is not None:
            if not isinstance(label, str):
                raise _wrong(name, "a string or None", label)
            if len(label) > MAX_NAME_CHARS:
                raise _long(name, label)
    check_number("quality_target", request.quality_target, high=1.0, zero=False)
    check_number("min_success_probability", request.min_success_probability, high=1.0)
    check_tokens("input_tokens", request.input_tokens)
    if request.cached_input_tokens:
        _check_cached(request.cached_input_tokens)
    if not isinstance(request.batch, bool):
        raise _wrong("batch", "True or False", request.batch)


def check_number(field: str, value: float | None, *, high: float = sys.float_info.max, zero: bool = True) -> None:
    """Raise RequestError unless `value` is None or a finite number from 0 (`zero`: inclusive) to `high`."""
    if value is None:
        return
    if (
        not isinstance(value, float | int)
        or isinstance(value, bool)
        or not 0 <= value <= high
        or (value == 0 and not zero)
    ):
        bounds = f"{'0 or more' if zero else 'above 0'} and {'finite' if high > 1 else 'at most 1'}"
        raise _wrong(field, f"a number, {bounds}", value)


def check_tokens(field: str, value: int | None, *, least: int = 0) -> None:
    """Raise RequestError unless `value` is None or a whole number from `least` to `MAX_TOKENS`."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_TOKENS:
        raise _wrong(field, f"a whole number from {least} to {MAX_TOKENS}", value)


def _check_prompt(request: Request) -> None:
    given = [name for name in ("text", "embedding") if getattr(request, name) is not None]
    if request.messages:
        given.insert(1 if request.text is not None else 0, "messages")
    if len(given) != 1:
        found = " and ".join(f"`{name}`" for name in given) if given else "none of them"
        raise RequestError(f"give exactly one of `text`, `messages` and `embedding`; found {found}")
    if request.text is not None:
        _check_text(request.text)
    elif request.messages:
        _check_messages(request.messages)
    else:
        _check_embedding(request.embedding)


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise _wrong("text", "a string", text)
    if not text or text.isspace():
        raise _wrong("text", "a prompt with at least one character that is not white space", text)
    if len(text) > MAX_PROMPT_CHARS:
        raise _long_prompt("text")


def _check_messages(messages: Sequence[Message]) -> None:
    _check_count("messages", len(messages), MAX_MESSAGES, "messages")
    chars = 0
    for i, message in enumerate(messages):
        if not isinstance(message, Message):
            raise _wrong(f"messages[{i}]", "a message of `role` and `content`", message)
        if not isinstance(message.role, str) or not message.role:
            raise _wrong(f"messages[{i}].role", "a string that is not empty", message.role)
        if not isinstance(message.content, str):
            raise _wrong(f"messages[{i}].content", "a string", message.content)
        if len(message.role) > MAX_NAME_CHARS:
            raise _long(f"messages[{i}].role", message.role)
        chars += len(message.content)
    if chars > MAX_PROMPT_CHARS:
        raise _long_prompt("messages")
    if all(not message.content or message.content.isspace() for message in messages):
        raise RequestError(
            f"`messages` must hold at least one character that is not white space; found {len(messages)} blank messages"
        )


def _check_embedding(embedding: Any) -> None:
    if not isinstance(embedding, np.ndarray) or embedding.dtype != np.float32:
        raise _wrong("embedding", "a numpy array of float32", embedding)
    if embedding.ndim != 1 or not embedding.size:
        raise RequestError(f"`embedding` must have one dimension and a length above 0; found shape {embedding.shape}")
    with np.errstate(over="ignore"):
        length = float(np.linalg.norm(embedding))
    if 0.0 < length < np.inf:
        return
    if not np.isfinite(embedding).all():
        index = int(np.flatnonzero(~np.isfinite(embedding))[0])
        raise RequestError(f"`embedding` must be finite in float32; found {embedding[index]} at index {index}")
    raise RequestError(f"`embedding` must have a length above 0 and finite in float32; found {length:g}")


def _check_constraints(constraints: Constraints) -> None:
    for field in ("allowed_models", "denied_models", "allowed_regions", "required_capabilities"):
        _check_names(field, getattr(constraints, field))
    check_number("max_cost_usd", constraints.max_cost_usd)
    check_tokens("max_output_tokens", constraints.max_output_tokens, least=1)


def _check_names(field: str, names: Any) -> None:
    if not isinstance(names, tuple):
        raise _wrong(field, "a tuple of names", names)
    _check_count(field, len(names), MAX_NAMES, "names")
    for name in names:
        if not isinstance(name, str) or not name:
            raise _wrong(field, "a tuple of strings that are not empty", name)
        if len(name) > MAX_NAME_CHARS:
            raise _long(field, name)


def _check_cached(counts: Mapping[str, int]) -> None:
    _check_count("cached_input_tokens", len(counts), MAX_NAMES, "entries")
    for offer, tokens in counts.items():
        if not isinstance(offer, str) or not offer:
            raise _wrong("cached_input_tokens", "keyed by the names of offers", offer)
        if len(offer) > MAX_NAME_CHARS:
            raise _long("cached_input_tokens", offer)
        check_tokens(f"cached_input_tokens[{_short(offer)}]", tokens)


def _names(field: str, names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise _wrong(field, "a sequence of names", names)
    return tuple(names)


def _message(index: int, message: Any) -> Message:
    if isinstance(message, Mapping):
        if set(message) != {"role", "content"}:
            raise _wrong(f"messages[{index}]", "a message of `role` and `content` alone", dict(message))
        return Message(message["role"], message["content"])
    if not isinstance(message, Message):
        raise _wrong(f"messages[{index}]", "a message of `role` and `content`", message)
    return message


def _vector(embedding: ArrayLike | None) -> Float32Array | None:
    if embedding is None:
        return None
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, which the check refuses by index
            return np.asarray(embedding, dtype=np.float32)
    except (TypeError, ValueError):
        raise _wrong("embedding", "a sequence of numbers", embedding) from None


def _plain(value: Any) -> Any:
    """Numbers of numpy compare in their own precision; the rest of the road expects Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _counts(counts: Mapping[str, int] | None) -> dict[str, int]:
    if counts is None:
        return {}
    if not isinstance(counts, Mapping):
        raise _wrong("cached_input_tokens", "a mapping from names of offers to tokens", counts)
    return {offer: _plain(tokens) for offer, tokens in counts.items()}


def _check_count(field: str, found: int, most: int, what: str) -> None:
    if found > most:
        raise RequestError(f"`{field}` must hold at most {most} {what}; found more")


def _long(field: str, name: str) -> RequestError:
    return RequestError(
        f"`{field}` must hold at most {MAX_NAME_CHARS} characters a name; found {len(name)}: {_short(name)}"
    )


def _long_prompt(field: str) -> RequestError:
    return RequestError(
        f"`{field}` must hold at most {MAX_PROMPT_CHARS} characters in all; found more: shorten the prompt"
    )


def _wrong(field: str, expected: str, found: object) -> RequestError:
    return RequestError(f"`{field}` must be {expected}; found {_short(found)}")


def _short(value: object) -> str:
    """What a message quotes: a prompt may be megabytes long."""
    return f"an array of {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else reprlib.repr(value)


def prompt_bytes(request: Request) -> int:
    """Memory that the prompt takes, about."""
    if request.text is not None:
        return len(request.text)
    if request.embedding is not None:
        return request.embedding.nbytes
    return sum(len(message.content) for message in request.messages)
