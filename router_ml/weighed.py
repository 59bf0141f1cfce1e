"""The offers of one request as they were weighed: plain numbers, of which candidates are made when somebody looks.

A server looks at none of them. What it sends and journals is the same but for the numbers from one decision to the
next, so those are put into bytes that were prepared once for all decisions of a version.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from operator import itemgetter
from typing import Any, NamedTuple, overload

import orjson

from router_ml.types import Candidate, Rejection
from router_ml.v1 import router_pb2 as pb

REJECTION_NUMBER = {each: pb.Rejection.Value(f"REJECTION_{each.name}") for each in Rejection}

_NUMBERS = ("p_success", "output_tokens", "cost_usd", "latency_ms")
"""Of a candidate, in the order of its fields in the contract and in the journal."""
_N = len(_NUMBERS)
_MAX_LAYOUTS = 256

_Rejected = tuple[Rejection | None, ...] | None


class _Layout(NamedTuple):
    """Candidates of which the same numbers are known and the same offers rejected, without the numbers."""

    known: Callable[[list[float]], tuple[float, ...]]
    """Takes the known ones out of all numbers."""
    unknown: tuple[int, ...]
    """Places of the others."""
    rejected: _Rejected
    message: list[bytes | float]
    """Field `candidates` of a RouteResponse; every other item stands for a known number."""
    pack: Callable[..., bytes]
    """Makes bytes of such items."""
    line: list[bytes]
    """The list of candidates of a journal line; every other item stands for a known number."""


class _Fit(NamedTuple):
    """A layout, and the numbers that it leaves out."""

    layout: _Layout
    known: tuple[float, ...]


class OfferNames:
    """What is the same of all candidates of a router: their names, and the layouts met so far."""

    def __init__(self, offers: Sequence[tuple[str, str]]) -> None:
        """`offers`: name and model of each, in catalog order."""
        self.offers = tuple(offers)
        self._last: _Layout | None = None
        self._layouts: dict[tuple[tuple[int, ...], _Rejected], _Layout] = {}

    def fit(self, numbers: list[float], rejected: _Rejected) -> _Fit | None:
        """What candidates are made of; None where a number is infinite, for which JSON has no word.

        Most decisions have the layout of the one before.
        """
        layout = self._last
        if layout is None or layout.rejected != rejected or any([numbers[at] == numbers[at] for at in layout.unknown]):
            layout = self._look_up(numbers, rejected)
        known = layout.known(numbers)
        if not isfinite(sum(known)):
            layout = self._look_up(numbers, rejected)
            known = layout.known(numbers)
            if not all(map(isfinite, known)):
                return None
        return _Fit(layout, known)

    def _look_up(self, numbers: list[float], rejected: _Rejected) -> _Layout:
        key = tuple([at for at, number in enumerate(numbers) if number != number]), rejected
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[key] = self._made(*key)
        self._last = layout
        return layout

    def _made(self, unknown: tuple[int, ...], rejected: _Rejected) -> _Layout:
        """A layout, cut out of what protobuf and orjson make of such candidates with zeros for numbers."""
        known = [at for at in range(_N * len(self.offers)) if at not in unknown]
        message, line = [b""], [b"["]
        for k, (offer, model) in enumerate(self.offers):
            names = [_NUMBERS[at % _N] for at in known if at // _N == k]
            why = None if rejected is None else rejected[k]
            end = {"rejected": REJECTION_NUMBER[why]} if why else {}
            candidate = {"offer": offer, "model": model, **dict.fromkeys(names, 0.0), **end}
            whole = pb.RouteResponse(candidates=[candidate]).SerializeToString()
            # After the names come the numbers, each a tag and eight bytes, and a reason of two.
            at = len(whole) - 9 * len(names) - 2 * bool(end)
            message[-1] += whole[:at]
            line[-1] += b"," * bool(k) + orjson.dumps({"offer": offer, "model": model})[:-1]
            for name in names:
                message[-1] += whole[at : at + 1]
                line[-1] += b',"%b":' % name.encode()
                message.append(b"")
                line.append(b"")
                at += 9
            message[-1] += whole[at:]
            line[-1] += b',"rejected":"%b"}' % why.encode() if why else b"}"
        line[-1] += b"]"
        pack = struct.Struct("<" + "d".join([f"{len(part)}s" for part in message])).pack
        return _Layout(_taker(known), unknown, rejected, _spaced(message, 0.0), pack, _spaced(line, b""))


class Weighed(Sequence[Candidate]):
    """Candidates in catalog order. Equal to any sequence of the same candidates."""

    __slots__ = ("_fitted", "_names", "_numbers", "_rejected")

    def __init__(
        self, names: OfferNames, numbers: list[float], rejected: Sequence[Rejection | None] | None = None
    ) -> None:
        """`numbers`, offer after offer: success probability, output tokens, cost, latency, NaN where unknown.

        `rejected` is why each offer may not be chosen, None: all may.
        """
        self._names = names
        self._numbers = numbers
        self._rejected = tuple(rejected) if rejected is not None and any(rejected) else None
        self._fitted: tuple[_Fit | None] | None = None

    def message(self) -> bytes | None:
        """The field `candidates` of a RouteResponse, serialized; None where that takes candidates one by one."""
        if (fit := self._fit()) is None:
            return None
        items = fit.layout.message.copy()
        items[1::2] = fit.known
        return fit.layout.pack(*items)

    def json(self) -> bytes | None:
        """The list of candidates as it stands in a journal line; None where that takes candidates one by one."""
        if (fit := self._fit()) is None:
            return None
        items = fit.layout.line.copy()
        if fit.known:
            items[1::2] = orjson.dumps(fit.known)[1:-1].split(b",")
        return b"".join(items)

    def _fit(self) -> _Fit | None:
        if self._fitted is None:
            self._fitted = (self._names.fit(self._numbers, self._rejected),)
        return self._fitted[0]

    def __len__(self) -> int:
        return len(self._names.offers)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Candidate, ...]: ...
    def __getitem__(self, index: int | slice) -> Candidate | tuple[Candidate, ...]:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[Candidate]:
        numbers, rejected = self._numbers, self._rejected
        for k, (offer, model) in enumerate(self._names.offers):
            p_success, *others = numbers[_N * k : _N * (k + 1)]
            output, cost, latency = (None if value != value else value for value in others)
            yield Candidate(offer, model, p_success, output, cost, latency, None if rejected is None else rejected[k])

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def _taker(places: Sequence[int]) -> Callable[[list[float]], tuple[float, ...]]:
    """Takes what stands at these places of a list."""
    if len(places) > 1:
        return itemgetter(*places)  # in C
    return lambda values: tuple([values[at] for at in places])


def _spaced(parts: Sequence[bytes], space: Any) -> list[Any]:
    """The parts, with `space` between them."""
    items = [space] * (2 * len(parts) - 1)
    items[0::2] = parts
    return items
