"""Twice round the road: logs, version, server, journal, logs, next version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from router_ml.bundle import load
from router_ml.cli import main
from router_ml.client import RouterClient
from router_ml.errors import RequestError
from router_ml.journal import Journal, OutcomeReport
from router_ml.router import Router
from router_ml.server import ServerSettings, serve
from router_ml.types import Decision, Request
from training.encoder.reuse import encoder_of_bundle
from training.registry import look_up, resolve

DAYS, PER_DAY = 8, 250
Truth = dict[tuple[str, str], float]
"""Prompt, model -> success."""


@pytest.fixture
def workplace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # mlruns/ lies in the working directory
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    """One command as a program would run it."""
    status = main([*argv, "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A folder with partial logs and the version that was trained on them, registered beside them; read only.

    And what every model would have answered.
    """
    place = tmp_path_factory.mktemp("first")
    options = ("--days", str(DAYS), "--requests-per-day", str(PER_DAY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["simulate", "--out", "logs.parquet", *options]) == 0
        assert main(["simulate", "--out", "full.parquet", "--full-information", *options]) == 0
        assert main(["train", "logs.parquet", "--out", "bundle", "--quality-target", "0.95"]) == 0
    rows = pq.read_table(place / "full.parquet", columns=["prompt", "model", "success"]).to_pylist()
    return place, {(row["prompt"], row["model"]): row["success"] for row in rows}


@pytest.fixture
def trained(first: tuple[Path, Truth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, to work in."""
    monkeypatch.chdir(shutil.copytree(first[0], tmp_path / "copy"))
    return tmp_path / "copy"


def serve_and_report(model: str, prompts: list[str], truth: Truth, journal: Path) -> None:
    """What a backend does: ask, call the model, report."""
    router = Router.load(resolve(model))
    with Journal(journal) as record:
        server = serve(router, settings=ServerSettings(listen="127.0.0.1:0"), journal=record)
        server.start()
        try:
            with RouterClient(server.address, timeout_s=60.0, bulk_timeout_s=60.0) as client:
                decisions = [client.route(prompt, segment="support") for prompt in prompts]
                receipt = client.report(
                    [
                        OutcomeReport(decision.decision_id, success=truth[prompt, decision.model], output_tokens=50)
                        for prompt, decision in zip(prompts, decisions, strict=True)
                    ]
                )
                assert receipt.accepted == len(prompts)
        finally:
            server.stop()


def test_a_served_version_leaves_a_journal_that_trains_the_next(
    first: tuple[Path, Truth], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, truth = first
    prompts = list(dict.fromkeys(prompt for prompt, _ in truth))[:150]
    before = look_up("models:/router@champion")
    assert (before.version, before.aliases) == (1, ("champion",))
    serve_and_report("models:/router@champion", prompts, truth, trained / "journal")

    report = run(capsys, "ingest", "journal", "--format", "journal", "--out", "served")
    table = pq.read_table(trained / "served")
    assert table.num_rows == len(prompts)
    assert table["success"].null_count == 0
    assert set(table["propensity"].to_pylist()) == {1.0}
    assert set(table["version"].to_pylist()) == {load(trained / "bundle").manifest.version}
    assert report["n_rows"] == len(prompts)

    second = run(capsys, "train", "logs.parquet", "served")
    assert second["registered"] == {"name": "router", "number": 2, "alias": "challenger"}
    assert look_up("models:/router@champion").version == 1
    serve_and_report("models:/router@challenger", prompts[:50], truth, trained / "journal2")
    run(capsys, "ingest", "journal2", "--format", "journal", "--out", "served2")
    assert set(pq.read_table(trained / "served2")["version"].to_pylist()) == {second["version"]}


def test_the_registered_version_the_folder_and_predict_agree(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs, bundle = trained / "logs.parquet", trained / "bundle"
    out = trained / "predictions.parquet"
    run(capsys, "predict", str(logs), "--model", "models:/router/1", "--out", str(out))
    rows = pq.read_table(out).to_pylist()
    chosen = {row["prompt_id"]: row["model"] for row in rows if row["chosen"]}
    success = {(row["prompt_id"], row["model"]): row["p_success"] for row in rows}

    router = Router.load(bundle)
    asked = {}
    for row in pq.read_table(logs, columns=["prompt_id", "prompt", "segment"]).to_pylist():
        asked.setdefault(row["prompt_id"], (row["prompt"], row["segment"]))
    for prompt_id, (prompt, segment) in list(asked.items())[:300]:
        decision = router.route(prompt, segment=segment)
        assert chosen[prompt_id] == decision.model
        for candidate in decision.candidates:
            assert success[prompt_id, candidate.model] == pytest.approx(candidate.p_success, abs=1e-5)


def test_a_version_on_logs_it_was_trained_on_is_judged_only_by_what_was_held_out(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, bundle = workplace / "full.parquet", workplace / "bundle"
    run(capsys, "simulate", "--out", str(full), "--full-information", "--days", "6", "--requests-per-day", "150")
    trained = run(capsys, "train", str(full), "--out", str(bundle), "--no-register")
    judged = run(capsys, "evaluate", str(full), "--model", str(bundle))
    assert judged["n_prompts"] == trained["evaluation"]["n_prompts"]
    assert judged["comparison"]["figures"] == trained["evaluation"]["comparison"]["figures"]


def test_a_transformer_encoder_goes_through_the_same_bundle(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs, bundle = workplace / "logs.parquet", workplace / "bundle"
    run(capsys, "simulate", "--out", str(logs), "--days", "4", "--requests-per-day", "30")
    trained = run(capsys, "train", str(logs), "--encoder-kind", "transformer", "--out", str(bundle), "--no-register")
    router = Router.load(bundle)
    assert router.describe().encoder.startswith("transformer ")
    assert router.describe().embedding_size == 384
    assert trained["parity"]["p_success"] < 1e-5
    question = "Which clause limits liability?"
    with_digest = Router.load(bundle, digests=True).route(question)
    assert with_digest.digest is not None
    (vector,) = encoder_of_bundle(bundle).encode([question])
    assert vector == pytest.approx(with_digest.digest.embedding, abs=1e-5)
    alone = router.route(question)
    beside = router.decide_batch([Request(text=question), Request(text=question + " And which one insures it? " * 20)])[
        0
    ]
    assert isinstance(beside, Decision)
    for one, two in zip(alone.candidates, beside.candidates, strict=True):
        assert one.p_success == pytest.approx(two.p_success, abs=1e-5)


def test_logs_of_embeddings_without_text_train_a_version_that_takes_embeddings(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1500, 8)).astype(np.float32)
    rows = []
    for i, vector in enumerate(vectors):
        for model, cost, ability in (("small", 0.001, 0.0), ("large", 0.02, 2.0)):
            success = float(rng.random() < 1 / (1 + np.exp(-(ability + 2 * vector[0]))))
            rows.append({"embedding": vector.tolist(), "model": model, "success": success, "cost_usd": cost, "n": i})
    logs = workplace / "logs.jsonl"
    logs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = run(capsys, "train", str(logs), "--out", str(workplace / "bundle"), "--no-register")
    assert trained["evaluation"]["comparison"]["figures"]["router"]["aiq"] > 0.6
    router = Router.load(workplace / "bundle")
    easy, hard = (router.route(embedding=[sign * 3.0] + [0.0] * 7, quality_target=0.9) for sign in (1, -1))
    assert easy.model == "small"
    assert easy.candidate("small").p_success > hard.candidate("small").p_success + 0.3
    with pytest.raises(RequestError, match="trained on embeddings alone"):
        router.route("some text")
