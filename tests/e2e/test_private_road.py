"""Round the road without a word of a prompt on disk: serve, journal, ingest, train; the next version routes text."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from router_ml.cli import main
from router_ml.client import RouterClient
from router_ml.journal import OutcomeReport
from router_ml.router import Router
from router_ml.types import Decision, Request

EASY = [f"{a}{b}" for a in ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "so", "tu") for b in "bcdfghjklmnprs"]
HARD = [f"x{a}{b}" for a in ("ro", "va", "ze", "qu", "ky") for b in "bcdfghjklmnprs"]
SKILL = {"tiny": (2.5, 8.0, 0.0001), "large": (3.3, 2.0, 0.01)}
"""Log odds without hard words, what is lost on nothing but them, US dollars a call."""


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    status = main([*argv, "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


def prompts(n: int) -> list[tuple[str, float]]:
    """Text, and share of hard words."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(n):
        hard = rng.beta(0.7, 0.9)
        words = [str(rng.choice(HARD if rng.random() < hard else EASY)) for _ in range(rng.integers(8, 40))]
        found.append((" ".join(words), sum(word in HARD for word in words) / len(words)))
    return found


def serve_and_report(bundle: Path, journal: Path, key: Path, asked: list[tuple[str, float]]) -> None:
    """A server process of its own, and a backend that reports what came of both models."""
    options = ("--journal", str(journal), "--journal-text", "none", "--journal-key-file", str(key))
    command = [sys.executable, "-m", "router_ml.cli", "serve", "--model", str(bundle), "--listen", "127.0.0.1:0"]
    rng = np.random.default_rng(6)
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            address = re.search(r" on (127\.0\.0\.1:\d+); ", line)
            assert address, line or process.stderr.read()
            with RouterClient(address[1], timeout_s=60.0, bulk_timeout_s=60.0) as client:
                decisions = []
                for start in range(0, len(asked), 64):
                    part = [Request(text=text, segment="chat", tenant="acme") for text, _ in asked[start : start + 64]]
                    decisions += client.decide_batch(part)
                reports = []
                for (text, hard), decision in zip(asked, decisions, strict=True):
                    assert isinstance(decision, Decision)
                    for model, (skill, loss, usd) in SKILL.items():
                        success = float(rng.random() < 1 / (1 + np.exp(-(skill - loss * hard))))
                        tokens = len(text.split())
                        fields = {"cost_usd": usd, "input_tokens": tokens, "output_tokens": 2 * tokens}
                        reports.append(OutcomeReport(decision.decision_id, model=model, success=success, **fields))
                for start in range(0, len(reports), 64):
                    assert client.report(reports[start : start + 64]).rejected == ()
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, "")
        finally:
            process.kill()


def test_a_journal_without_text_trains_a_version_that_routes_text(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("a key of thirty-two characters..\n")
    asked = prompts(600)
    serve_and_report(tiny_bundle, tmp_path / "journal", key, asked)
    raw = b"".join(path.read_bytes() for path in (tmp_path / "journal").iterdir())
    assert not [word for word in HARD if word.encode() in raw]

    ingested = run(
        capsys, "ingest", str(tmp_path / "journal"), "--format", "journal", "--out", str(tmp_path / "served")
    )
    assert (ingested["n_decisions"], ingested["n_rows"], ingested["rejected"]) == (600, 1200, {})
    table = pq.read_table(tmp_path / "served")
    assert table["prompt"].null_count == table["messages"].null_count == table.num_rows

    following = tmp_path / "next"
    served = str(tmp_path / "served")
    run(capsys, "train", served, "--encoder", str(tiny_bundle), "--out", str(following), "--no-register")
    before, after = Router.load(tiny_bundle), Router.load(following, digests=True)
    assert after.bundle.manifest.encoder == before.bundle.manifest.encoder
    easy, hard = (after.route(" ".join(words[:20]), segment="chat") for words in (EASY, HARD))
    assert after.bundle.manifest.verdict["serves"] == "router"
    chances = [decision.candidate("tiny").p_success for decision in (easy, hard)]
    assert chances[0] > chances[1] + 0.3
    judged = run(capsys, "evaluate", served, "--model", str(following))
    assert judged["n_prompts"] > 50

    # And once more round, by the encoder that was handed on.
    serve_and_report(following, tmp_path / "journal", key, prompts(20))
    again = run(capsys, "ingest", str(tmp_path / "journal"), "--format", "journal", "--out", str(tmp_path / "served"))
    assert again["n_decisions"] == 620
    assert len(set(pq.read_table(tmp_path / "served")["encoder_sha256"].to_pylist())) == 1
