from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from router_ml import bundle
from router_ml.bundle import open_session
from router_ml.catalog import Catalog
from router_ml.errors import BundleError, GateError
from training.calibrate import Calibration
from training.cost import MagnitudeModel
from training.dataset import Dataset, Prompts, Rows
from training.export import TOLERANCE, check_parity, chunks, estimates_of, write_bundle
from training.fit import LINEAR_GRID, FitSettings, fit_success
from training.graph import GraphParts, build_graph
from training.trees import TreeSettings

TOKENS_A_RUN = 16_384
ONE_THREAD = TreeSettings(n_threads=1, n_trees=10)


@pytest.fixture(scope="module")
def world(token_world: Callable[..., Any]) -> Any:
    return token_world(n=250, m=3, seed=7)


@pytest.fixture(scope="module")
def parts(world: Any) -> GraphParts:
    settings = FitSettings(LINEAR_GRID[2], ONE_THREAD)
    fit = fit_success(world.data, vocabulary=world.vocabulary, settings=settings)
    tokens, unknown = MagnitudeModel(None, np.array([10.0, 20.0, 30.0])), MagnitudeModel(None, np.full(3, np.nan))
    return GraphParts(world.encoder, world.pad_id, 12, fit.model, tokens, unknown)


def of_lengths(lengths: list[int]) -> Dataset:
    n = len(lengths)
    none = np.zeros(0)
    start = np.cumsum([0, *lengths])
    prompts = Prompts(
        np.array([f"p{i}" for i in range(n)]),
        np.zeros(start[-1], np.int32),
        start,
        np.zeros((n, 1), np.float32),
        np.zeros(n, bool),
        np.zeros((n, 7), np.float32),
        np.array(lengths, np.float32),
        np.zeros(n, np.int64),
    )
    whole = none.astype(np.int64)
    return Dataset(prompts, Rows(whole, whole, *[none] * 7, whole, none.astype(str)), ("m",), (), "")


@examples(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 60) | st.integers(0, 40_000), max_size=40), st.randoms(use_true_random=False))
def test_chunks_hold_each_prompt_once_in_order_and_stay_within_bounds(lengths: list[int], order: Any) -> None:
    index = list(range(len(lengths)))
    order.shuffle(index)
    found = list(chunks(of_lengths(lengths), np.array(index, dtype=np.int64)))
    assert [int(i) for part in found for i in part] == index
    for part in found:
        assert len(part) == 1 or len(part) * max(1, *(lengths[i] for i in part)) <= TOKENS_A_RUN
    for one, following in pairwise(found):  # and none could have taken one more
        longest = max(1, lengths[following[0]], *(lengths[i] for i in one))
        assert (len(one) + 1) * longest > TOKENS_A_RUN


def test_prompts_in_many_runs_get_the_estimates_they_get_in_one(world: Any, parts: GraphParts) -> None:
    session = open_session(build_graph(parts))
    index = np.tile(np.arange(250), 3)  # 39 tokens at most: two runs
    assert len(list(chunks(world.data, index))) > 1
    found = estimates_of(session, world.data, index, parts.pad_id, (1.0, 2.0, 3.0))
    assert found.p_success.shape == (750, 3)
    assert found.p_success[250:500] == pytest.approx(found.p_success[:250], abs=1e-6)
    assert found.output_tokens[0] == pytest.approx([10, 20, 30])
    assert np.isnan(found.latency_ms).all()
    assert found.input_tokens[:250] == pytest.approx(np.outer(world.data.prompts.n_tokens, [1, 2, 3]))


def test_the_input_of_a_prompt_without_text_is_unknown(world: Any, parts: GraphParts) -> None:
    p = world.data.prompts
    data = replace(world.data, prompts=replace(p, n_tokens=np.full(len(p), np.nan, np.float32)))
    found = estimates_of(open_session(build_graph(parts)), data, np.arange(5), parts.pad_id, (1.0,) * 3)
    assert np.isnan(found.input_tokens).all()


def test_the_gate_reports_what_it_compared(world: Any, parts: GraphParts) -> None:
    report = check_parity(parts, world.data, np.arange(10, 200))
    assert report.n_prompts == 190
    assert 0 <= report.p_success < TOLERANCE and 0 <= report.relative < TOLERANCE


class Skewed(MagnitudeModel):
    """Says something else than its numbers, which the graph is made of."""

    def predict(self, features: np.ndarray, n_threads: int) -> np.ndarray:
        return np.asarray(super().predict(features, n_threads) * (1 + 3e-5))


def test_the_gate_refuses_tokens_that_differ_by_little(world: Any, parts: GraphParts) -> None:
    off = replace(parts, output_tokens=Skewed(None, parts.output_tokens.level))
    with pytest.raises(GateError, match="nothing was written"):
        check_parity(off, world.data, np.arange(20))


def test_the_gate_refuses_a_prompt_that_holds_the_padding(world: Any, parts: GraphParts) -> None:
    """The graph cannot see such a token; a model that weighs it would be served as another."""
    p = world.data.prompts
    ids = np.where(np.arange(len(p.ids)) % 40 == 0, world.pad_id, p.ids).astype(np.int32)
    data = replace(world.data, prompts=replace(p, ids=ids))
    model = fit_success(data, vocabulary=world.vocabulary, settings=FitSettings(LINEAR_GRID[2], ONE_THREAD)).model
    with pytest.raises(GateError):
        check_parity(replace(parts, success=model), data, np.arange(250))


def test_the_gate_refuses_a_graph_that_gives_no_number(world: Any, parts: GraphParts) -> None:
    wild = Calibration(np.full(3, np.nan), np.zeros(3))

    class Silent:
        """The success model with its true probabilities, though its calibration is not a number."""

        def __getattr__(self, name: str) -> Any:
            return wild if name == "calibration" else getattr(parts.success, name)

    with pytest.raises(GateError):
        check_parity(replace(parts, success=Silent()), world.data, np.arange(20))


def rewritten(source: Path, target: Path, graph: bytes | None = None) -> str:
    manifest, _, files = bundle.verify(source)
    catalog = Catalog.from_dict(json.loads(files[bundle.CATALOG]))
    optional = files.get(bundle.TOKENIZER), files.get(bundle.UNCERTAINTY)
    return write_bundle(target, manifest, graph or files[bundle.GRAPH], catalog, *optional)


def test_a_written_bundle_loads_under_its_hash(tiny_bundle: Path, tmp_path: Path) -> None:
    digest = rewritten(tiny_bundle, tmp_path / "again")
    assert bundle.load(tmp_path / "again").sha256 == digest == bundle.load(tiny_bundle).sha256


def test_a_graph_that_cannot_be_opened_is_noticed_on_writing(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot open"):
        rewritten(tiny_bundle, tmp_path / "again", b"no graph")
