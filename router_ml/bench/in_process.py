"""Latency of `Router.route` in this process, beside its floors, and where the time goes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from router_ml.bench.figures import Figure, Latency, Target
from router_ml.bench.prompts import Word, beyond_ascii, never_seen, prompts, usual
from router_ml.errors import InputError
from router_ml.heads import OUTPUTS, rows_of
from router_ml.request import make_request
from router_ml.router import Router
from router_ml.text import Tokenizer

_P50_US = {16: 60, 128: 100, 512: 200, 2048: 500}
_P99_US = {128: 300}
_ODD_P50_US = 400
_WORDS: dict[Word, str] = {usual: "warm", never_seen: "never-seen words", beyond_ascii: "non-ASCII"}

PARTS = ("request", "tokenizer", "features", "graph", "policy", "decision")


def tokenizer_of(router: Router) -> Tokenizer:
    """Its tokenizer; InputError where the bundle takes embeddings alone."""
    if router.bundle.tokenizer is None:
        raise InputError(
            "bench asks with prompts, and this bundle was trained on embeddings alone: name one that takes text"
        )
    return router.bundle.tokenizer


def measure(router: Router, tokens: int, rounds: int, calls: int) -> tuple[list[Figure], dict[int, dict[str, float]]]:
    """Figures of `rounds` times `calls` calls per kind of prompt, and by length the median µs of each of `PARTS`."""
    lengths = sorted({*_P50_US, tokens})
    figures = [_figure(router, usual, n_tokens, rounds, calls) for n_tokens in lengths]
    figures += [_figure(router, word, 128, rounds, calls) for word in (never_seen, beyond_ascii)]
    return figures, {n_tokens: _parts(router, n_tokens, calls) for n_tokens in lengths}


def _figure(router: Router, word: Word, n_tokens: int, rounds: int, calls: int) -> Figure:
    tokenizer, run = tokenizer_of(router), router.bundle.session.run
    whole: list[Latency] = []
    per_second, cpu, tokenizing, graph = [], [], [], []
    for text in prompts(tokenizer, word, n_tokens, max(100, calls // 4), seed=-1):
        router.route(text)
    for round_ in range(rounds):
        texts = prompts(tokenizer, word, n_tokens, calls, seed=round_)
        # Words never seen would be known from one pass to the next, so each takes texts of its own.
        alone = prompts(tokenizer, word, n_tokens, max(1, calls // 4), seed=rounds + round_)
        gc.collect()
        processor = time.process_time()
        spans = _timed(router.route, texts)
        cpu.append((time.process_time() - processor) * 1e6 / calls)
        whole.append(Latency.of(spans))
        per_second.append(calls / sum(spans) * 1e6)
        tokenizing.append(median(_timed(lambda text: tokenizer.tokens((text,)), alone)))
        feeds = [router._features.together((make_request(text),)).feed() for text in alone]
        graph.append(median(_timed(lambda feed: run(OUTPUTS, feed), feeds)))
    latency = Latency.median(whole)
    return Figure(
        name=f"in_process_{n_tokens}" if word is usual else f"in_process_{word.__name__}",
        what=f"Router.route, {n_tokens} tokens, {_WORDS[word]}",
        latency=latency,
        per_second=median(per_second),
        cpu_us=median(cpu),
        beside={"ort_run_us": median(graph), "tokenizing_us": median(tokenizing)},
        targets=_targets(latency, word, n_tokens),
    )


def _targets(latency: Latency, word: Word, n_tokens: int) -> tuple[Target, ...]:
    if word is not usual:
        return (Target("p50", _ODD_P50_US, latency.p50, "µs"),)
    limits = (("p50", _P50_US, latency.p50), ("p99", _P99_US, latency.p99))
    return tuple(
        Target(name, by_length[n_tokens], found, "µs") for name, by_length, found in limits if n_tokens in by_length
    )


def _parts(router: Router, n_tokens: int, calls: int) -> dict[str, float]:
    """Their sum is a little more than the whole, by the cost of the clocks."""
    rows = [_spans(router, text) for text in prompts(tokenizer_of(router), usual, n_tokens, max(1, calls // 2))]
    return dict(zip(PARTS, np.median(rows, axis=0).tolist(), strict=True))


def _spans(router: Router, text: str) -> list[float]:
    """Microseconds of each part of one call."""
    clock = time.perf_counter_ns
    marks = [clock()]
    request = make_request(text)
    marks.append(clock())
    tokenizer_of(router).tokens((text,))
    marks.append(clock())
    features = router._features.together((request,))
    marks.append(clock())
    router.bundle.session.run(OUTPUTS, features.feed())
    marks.append(clock())
    flat, *_ = router._run((request,), features)
    marks.append(clock())
    row = next(rows_of(flat, features, router._ratios))
    choice = router._choice(request, row)
    marks.append(clock())
    router._decision(request, choice, row.p_success, router._numbers(row, choice), None, None)
    marks.append(clock())
    request_us, tokenizer, features_us, graph, _, policy, decision = (np.diff(marks) / 1e3).tolist()
    return [request_us, tokenizer, features_us - tokenizer, graph, policy, decision]


def _timed(call: Callable[[Any], Any], arguments: Sequence[Any]) -> list[float]:
    """Microseconds of each call."""
    found = []
    for argument in arguments:
        start = time.perf_counter_ns()
        call(argument)
        found.append((time.perf_counter_ns() - start) / 1e3)
    return found
