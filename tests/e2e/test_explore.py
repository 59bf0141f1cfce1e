"""A server that explores, as a user starts it: every call leaves its share to chance, and the journal tells."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest

from router_ml.bundle import policy_of
from router_ml.client import RouterClient
from router_ml.journal import read_records
from router_ml.replay import recorded, replay
from router_ml.request import make_request
from router_ml.types import Decision, Reason

CLI = (sys.executable, "-m", "router_ml.cli")
WORDS = "bab deb fib gog luc mad xrob xvac xzed xquf".split()


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, str]]:
    """The line that a server prints, and its address."""
    argv = [*CLI, "serve", "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            found = re.search(r" on (127\.0\.0\.1:\d+); ", line)
            assert found, line or process.stderr.read()
            yield line, found[1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("rule", ["epsilon", "thompson"])
def test_every_call_explores_and_each_decision_can_be_made_again(tiny_bundle: Path, tmp_path: Path, rule: str) -> None:
    draw = random.Random(1)
    asked = [make_request(" ".join(draw.choices(WORDS, k=draw.randrange(1, 30)))) for _ in range(300)]
    options = ("--explore", "50%", "--explore-rule", rule, "--explore-cost-multiple", "40", "--explore-floor", "0.1")
    with (
        serving(
            "--model", str(tiny_bundle), "--journal", str(tmp_path), "--journal-text", "full", *options,
            "--metrics", "127.0.0.1:0",
        ) as (line, address),
        RouterClient(address, timeout_s=60.0, bulk_timeout_s=60.0) as client,
    ):  # fmt: skip
        words = f"{rule}, share 0.5, at most 40 times the cost, floor 0.1"
        assert line.endswith(f"; explores by {words}\n")
        assert client.describe().exploration == words
        found = {
            "Route": [client.decide(request) for request in asked[:100]],
            "RouteBatch": client.decide_batch(asked[100:200]),
            "RouteStream": list(client.decide_stream(asked[200:])),
        }
    for decisions in found.values():
        explored = sum(Reason.EXPLORED in each.reasons for each in decisions if isinstance(each, Decision))
        assert 5 < explored < 60  # a little over 30 are expected, six standard deviations from either
    _, sha256, policy = policy_of(tiny_bundle)
    journaled = {each.decision.decision_id: each.decision for each in read_records(tmp_path) if each.decision.offer}
    for each in chain.from_iterable(found.values()):
        assert isinstance(each, Decision)
        record = journaled[each.decision_id]
        assert (record.exploration.rule, record.exploration.share) == (rule, 0.5)
        assert replay(record, policy, sha256) == recorded(record)
        assert (record.offer, record.propensity, record.reasons) == (each.offer, each.propensity, list(each.reasons))


def test_without_the_flag_nothing_is_left_to_chance(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        serving("--model", str(tiny_bundle), "--journal", str(tmp_path)) as (line, address),
        RouterClient(address, timeout_s=60.0, bulk_timeout_s=60.0) as client,
    ):
        assert "explores" not in line
        assert client.describe().exploration is None
        assert {client.route(" ".join(WORDS)).propensity for _ in range(20)} == {1.0}
    assert not any(each.decision.HasField("exploration") for each in read_records(tmp_path))


def test_a_bundle_that_cannot_tell_how_sure_it_is_is_refused_in_words(tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "contract" / "bundle_format_2"
    argv = [*CLI, "serve", "--model", str(old), "--explore", "0.05", "--explore-rule", "thompson"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout) == (1, "")
    assert "explore by `epsilon`, or train it anew" in done.stderr
    assert "Traceback" not in done.stderr
