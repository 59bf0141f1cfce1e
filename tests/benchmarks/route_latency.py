"""Latency of `Router.route`, and where it goes.

    python tests/benchmarks/route_latency.py BUNDLE [--tokens 16 128 512 2048] [--n 2000]

One thread, one process, in process. Prompts differ from call to call and are drawn from
English words, so that the tokenizer's cache of words works as in service. The parts are
timed in a second pass: their sum is a little more than the whole, by the cost of the clocks.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.heads import OUTPUTS
from router_ml.request import make_request
from router_ml.router import Router, _rows

WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so what up said
its about than into them can only other time new some could these two may first then do any like my now over
such our man even most made after also did many before must through years where much your way well down should
because each just those people mister how too little state good very make world still see own work men day get
here old between both life being under three never know same last another while us off might great go come
since against right came take used himself few house refactor function kubernetes tokenizer asynchronous
invoice contractual obligations indemnification summarize extract database migration subscription
cancellation, please explain why; does (x + y) = 42? write a test: customer's order
""".split()

PARTS = ("request", "tokenizer", "features", "graph", "policy", "decision")


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of Router.route, and where it goes.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128, 512, 2048])
    parser.add_argument("--n", type=int, default=2000, help="calls per length; default 2000")
    args = parser.parse_args()
    router = Router.load(args.bundle)
    about = router.describe()
    print(f"{len(about.models)} models, {len(about.offers)} offers, {about.encoder}, {about.embedding_size} dimensions")
    print(
        f"{'tokens':>6}  {'p50':>6} {'p90':>6} {'p99':>6}   of it, median: " + " ".join(f"{part:>9}" for part in PARTS)
    )
    for n_tokens in args.tokens:
        texts = prompts(router, n_tokens, args.n)
        for text in texts[: args.n // 4]:
            router.route(text)
        whole = timed(router.route, texts)
        parts = [np.median(column) for column in zip(*(timed_parts(router, text) for text in texts), strict=True)]
        figures = " ".join(f"{value:6.0f}" for value in np.percentile(whole, (50, 90, 99)))
        print(f"{n_tokens:6d}  {figures} us" + " " * 16 + " ".join(f"{part:9.1f}" for part in parts))


def prompts(router: Router, n_tokens: int, n: int) -> list[str]:
    """Texts of about `n_tokens` tokens each."""
    draw = random.Random(0)
    assert router.bundle.tokenizer is not None, "a bundle of embeddings has no text to time"
    sample = " ".join(draw.choices(WORDS, k=2000))
    per_word = len(router.bundle.tokenizer.ids(sample[:8000])) / len(sample[:8000].split())
    return [" ".join(draw.choices(WORDS, k=max(1, round(n_tokens / per_word)))) for _ in range(n)]


def timed(call: Callable[[str], Any], texts: Sequence[str]) -> list[float]:
    """Microseconds of each call."""
    gc.collect()
    found = []
    for text in texts:
        start = time.perf_counter_ns()
        call(text)
        found.append((time.perf_counter_ns() - start) / 1e3)
    return found


def timed_parts(router: Router, text: str) -> list[float]:
    """Microseconds of each part of one call, in the order of `PARTS`."""
    clock = time.perf_counter_ns
    marks = [clock()]
    request = make_request(text)
    marks.append(clock())
    assert router.bundle.tokenizer is not None
    router.bundle.tokenizer.tokens((text,))
    marks.append(clock())
    features = router._features((request,))
    marks.append(clock())
    router.bundle.session.run(OUTPUTS, features.feed())
    marks.append(clock())
    estimates, _ = router._run((request,))
    marks.append(clock())
    ((p_success, output_tokens, latency_ms, input_tokens),) = _rows(estimates)
    router._of_request.choose(request, p_success, output_tokens, input_tokens)
    marks.append(clock())
    router._decision(request, p_success, output_tokens, latency_ms, input_tokens, None)
    marks.append(clock())
    spans = np.diff(marks) / 1e3
    request_us, tokenizer, features_us, graph, _, policy, both = spans.tolist()
    return [request_us, tokenizer, features_us - tokenizer, graph, policy, both - policy]


if __name__ == "__main__":
    main()
