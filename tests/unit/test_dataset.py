"""Outcome tables as numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers

from router_ml.errors import InputError
from router_ml.text import Tokenizer, TokenizerSettings
from training.dataset import build_dataset
from training.outcomes import OUTCOME_SCHEMA


def batch(*rows: dict[str, Any]) -> pa.RecordBatch:
    """Rows of the outcome table; what a row does not give is null."""
    filled = [{name: row.get(name) for name in OUTCOME_SCHEMA.names} for row in rows]
    for i, row in enumerate(filled):
        row["request_id"] = row["request_id"] or f"r{i}"
        row["model"] = row["model"] or "small"
    return pa.RecordBatch.from_pylist(filled, schema=OUTCOME_SCHEMA)


def embedded(*values: float, **columns: Any) -> dict[str, Any]:
    return {"embedding": list(values)} | columns


def test_equal_prompts_of_one_segment_are_one_whatever_id_a_file_gives_them() -> None:
    data = build_dataset(
        [
            batch(
                embedded(3, 4, prompt_id="a", segment="x", model="small", success=1.0),
                embedded(3, 4, prompt_id="b", segment="x", model="large", success=0.0),
                embedded(3, 4, prompt_id="c", segment="y", model="small", success=0.5),
            )
        ],
        None,
    )
    assert len(data.prompts) == 2
    assert data.rows.prompt.tolist() == [0, 0, 1]
    assert data.prompts.prompt_id[0] == data.prompts.prompt_id[1]
    assert (data.models, data.segments) == (("small", "large"), ("x", "y"))
    assert data.prompts.segment.tolist() == [1, 2]


def test_given_embeddings_are_brought_to_unit_length() -> None:
    data = build_dataset([batch(embedded(3, 4))], None)
    assert data.prompts.embedding[0] == pytest.approx([0.6, 0.8])
    assert data.features(np.array([0]), pad_id=0).embedding[0] == pytest.approx([0.6, 0.8])
    assert np.isnan(data.prompts.n_tokens[0])


def test_prompts_keep_their_numbers_across_batches() -> None:
    first, second = batch(embedded(1, 0), embedded(0, 1)), batch(embedded(0, 1, request_id="z"), embedded(1, 1))
    data = build_dataset([first, second], None)
    assert data.rows.prompt.tolist() == [0, 1, 1, 2]
    assert data.prompts.start.tolist() == [0, 0, 0, 0]


def test_cells_average_what_is_known_and_leave_the_rest_unknown() -> None:
    rows = [
        embedded(1, 0, success=1.0, model="small"),
        embedded(1, 0, success=0.0, model="small"),
        embedded(1, 0, success=None, model="large"),
        embedded(0, 1, success=1.0, model="large"),
    ]
    data = build_dataset([batch(*rows)], None)
    mean, count = data.cells(data.rows.success)
    assert mean[0, 0] == 0.5
    assert np.isnan(mean[0, 1]) and np.isnan(mean[1, 0])
    assert count.tolist() == [[2, 0], [0, 1]]


def test_unknown_values_stay_unknown() -> None:
    data = build_dataset([batch(embedded(1, 0))], None)
    for name in ("success", "cost_usd", "output_tokens", "latency_ms", "propensity"):
        assert np.isnan(getattr(data.rows, name)).all()
    assert data.rows.time_us.tolist() == [-1]
    assert data.rows.own_split.tolist() == [""]


def test_models_and_segments_are_renumbered_by_the_names_that_are_kept() -> None:
    rows = [embedded(1, 0, model=name, segment=f"of {name}", success=1.0) for name in ("a", "b", "c")]
    data = build_dataset([batch(*rows)], None)
    kept = data.keep_models(("c", "never seen", "a")).keep_segments(("of a",))
    assert kept.models == ("c", "never seen", "a")
    assert kept.rows.model.tolist() == [2, 0]
    assert kept.prompts.segment.tolist() == [1, 0, 0]


def test_the_fingerprint_follows_the_rows() -> None:
    one, same, other = (build_dataset([batch(embedded(1, 0, success=s))], None) for s in (1.0, 1.0, 0.0))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_rows_with_and_without_text_need_an_encoder() -> None:
    text = {"messages": json.dumps([{"role": "user", "content": "hello"}])}
    with pytest.raises(InputError, match="an encoder is needed"):
        build_dataset([batch(embedded(1, 0), text)], None)


def test_logs_without_a_valid_row_are_refused() -> None:
    with pytest.raises(InputError, match="no valid row"):
        build_dataset([], None)


def test_means_of_a_model_are_over_what_is_known_of_it() -> None:
    rows = [
        embedded(1, 0, model="small", cost_usd=1.0),
        embedded(0, 1, model="small", cost_usd=2.0),
        embedded(1, 1, model="small"),
        embedded(1, 0, model="large"),
    ]
    data = build_dataset([batch(*rows)], None)
    assert data.model_means(data.rows.cost_usd) == pytest.approx([1.5, np.nan], nan_ok=True)


# -- texts that were not kept ------------------------------------------------------------------------


class LengthEncoder:
    """Vectors of two numbers, whatever the text."""

    sha256 = "e" * 64

    def __init__(self) -> None:
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
        model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        self.tokenizer = Tokenizer(model.to_str().encode(), TokenizerSettings(pad_id=2))

    def encode_ids(self, rows: Sequence[Any]) -> Any:
        return np.tile(np.float32([1, 0]), (len(rows), 1))


def kept_as(prompt_id: str, *, encoder: str = "e" * 64, **columns: Any) -> dict[str, Any]:
    side = [0.5, 1, 0, 0, 0, 0, 1]
    row = {"prompt_id": prompt_id, "side_features": side, "prompt_tokens": 7.0, "encoder_sha256": encoder}
    return embedded(0.6, 0.8, **row) | columns


def test_stored_embeddings_and_side_features_stand_in_for_a_text_that_was_not_kept() -> None:
    data = build_dataset([batch({"prompt": "hello hello"}, kept_as("a"))], LengthEncoder())
    assert data.prompts.given.tolist() == [False, True]
    assert data.prompts.side[1].tolist() == [0.5, 1, 0, 0, 0, 0, 1]
    assert data.prompts.n_tokens.tolist() == [2, 7]
    features = data.features(np.array([0, 1]), pad_id=2)
    assert features.ids.tolist() == [[1, 1], [2, 2]]
    assert features.embedding[1] == pytest.approx([0.6, 0.8]) and not features.embedding[0].any()


def test_texts_that_were_not_kept_are_one_prompt_where_their_hashes_are_equal() -> None:
    rows = [kept_as("a"), kept_as("a", embedding=[0.6, 0.80000001]), kept_as("b")]
    data = build_dataset([batch(*rows)], LengthEncoder())
    assert data.rows.prompt.tolist() == [0, 0, 1]


@pytest.mark.parametrize("encoder", [None, LengthEncoder()])
def test_embeddings_of_another_encoder_are_refused_with_what_to_do(encoder: Any) -> None:
    with pytest.raises(InputError, match=r"embeddings of the encoder ffffffffffff.*--encoder BUNDLE"):
        build_dataset([batch(kept_as("a", encoder="f" * 64))], encoder)
