from __future__ import annotations

import base64
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_ml import bundle as bundles
from router_ml.errors import BundleError, InputError
from router_ml.features import side_features, side_matrix
from router_ml.journal import Journal, OutcomeReport, read_records
from router_ml.privacy import WITHHELD, NoText, RedactedText, load_redaction, prompt_hmac, read_key
from router_ml.router import Router
from router_ml.text import clean
from router_ml.types import Decision, Message, Request
from router_ml.v1 import log_pb2

KEY = b"sixteen bytes or more"
SECRET = "Ms Rosalind Achterberg owes 4711 euros"
FEW = 8
"""A piece of a prompt so long tells something of it."""


@pytest.fixture(scope="module")
def router(tiny_bundle: Path) -> Router:
    return Router.load(tiny_bundle, digests=True)


def journaled(folder: Path, rule: Any, router: Router, *requests: Request) -> list[log_pb2.RequestRecord]:
    """What a journal of decisions on these requests holds of them, in their order."""
    with Journal(folder, rule=rule) as journal:
        for request in requests:
            journal.append_decision(request, router.decide(request))
    assert journal.stats.decisions_dropped == 0
    return [record.decision.request for record in read_records(folder)]


def pieces(text: str) -> Iterator[bytes]:
    """Pieces of a text, and of what it becomes in other codes."""
    raw = clean(text).encode()
    for coded in (raw, base64.b64encode(raw), raw.hex().encode()):
        for start in range(len(coded) - FEW + 1):
            yield coded[start : start + FEW]


# -- no text ---------------------------------------------------------------------------------------

# Without digits, for those may stand in a journal by chance, and without what JSON writes in another way.
words = st.text(st.characters(codec="utf-8", exclude_characters='"\\0123456789'), min_size=FEW, max_size=60)
prompts = st.one_of(
    words.map(lambda text: {"text": text}),
    st.lists(st.builds(Message, st.just("user"), words), min_size=1, max_size=3).map(lambda m: {"messages": tuple(m)}),
)


@pytest.fixture(scope="module")
def always(tmp_path_factory: pytest.TempPathFactory, router: Router) -> bytes:
    """What stands in a journal whatever was asked, such as names of fields: it tells nothing of a prompt."""
    return whole_journal(tmp_path_factory.mktemp("other"), router, ["?"], text="?")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=prompts)
def test_no_piece_of_a_prompt_stands_in_a_journal_without_text(
    tmp_path_factory: pytest.TempPathFactory, router: Router, always: bytes, prompt: dict[str, Any]
) -> None:
    texts = [prompt["text"]] if "text" in prompt else [message.content for message in prompt["messages"]]
    found = whole_journal(tmp_path_factory.mktemp("journal"), router, texts, **prompt)
    for text in texts:
        assert [piece for piece in pieces(text) if piece in found and piece not in always] == []


def whole_journal(folder: Path, router: Router, errors: list[str], **prompt: Any) -> bytes:
    """All bytes of a journal without text: of one decision, and of errors that quote the prompt."""
    request = Request(**prompt, segment="chat", tenant="acme")
    with Journal(folder, rule=NoText(KEY)) as journal:
        decision = router.decide(request)
        journal.append_decision(request, decision)
        journal.append_outcomes([OutcomeReport(decision.decision_id, error=f"400: cannot do '{e}'") for e in errors])
    found = b"".join(path.read_bytes() for path in folder.iterdir())
    assert found.count(b"digest") == 1 and found.count(WITHHELD.encode()) == len(errors)
    return found


def test_a_digest_holds_what_training_needs(tmp_path: Path, router: Router) -> None:
    messages = (Message("system", "bab deb"), Message("user", "xrob?"))
    text, conversation = journaled(
        tmp_path, NoText(KEY), router, Request(text=SECRET), Request(messages=messages, tenant="acme")
    )
    assert text.WhichOneof("_text") is None and not text.messages and not text.embedding_f32
    digest = text.digest
    assert router.bundle.tokenizer is not None
    (tokens,) = router.bundle.tokenizer.tokens([SECRET])
    assert digest.tokens == tokens.n_whole
    assert np.frombuffer(digest.side_f32, "<f4") == pytest.approx(
        side_matrix([side_features(SECRET, tokens.n_whole)])[0]
    )
    assert np.linalg.norm(np.frombuffer(digest.embedding_f32, "<f4")) == pytest.approx(1, abs=1e-5)
    assert digest.encoder_sha256 == router.bundle.manifest.encoder["sha256"]
    assert digest.prompt_hmac == prompt_hmac(KEY, None, SECRET)
    assert conversation.digest.prompt_hmac == prompt_hmac(KEY, "acme", "bab deb\nxrob?")


def test_equal_prompts_share_a_hash_within_a_tenant_and_under_one_key_only() -> None:
    tenants, keys = ("acme", "bolt", None), (KEY, KEY + b"2")
    hashes = [prompt_hmac(key, tenant, SECRET) for key, tenant in itertools.product(keys, tenants)]
    assert len(set(hashes)) == len(hashes)
    assert prompt_hmac(KEY, "acme", SECRET) == hashes[0] != prompt_hmac(KEY, "acme", SECRET + "!")


def test_decisions_of_a_batch_carry_the_digests_of_their_own_prompts(router: Router) -> None:
    texts = ["bab " * n for n in (40, 1, 200, 7)]
    embedding = np.ones(32, dtype=np.float32)
    requests = [*(Request(text=text) for text in texts), Request(embedding=embedding, input_tokens=5)]
    results = router.decide_batch(requests)
    for request, result in zip(requests, results, strict=True):
        assert isinstance(result, Decision)
        alone = router.decide(request)
        if request.embedding is not None:
            assert result.digest is None and alone.digest is None
            continue
        assert result.digest is not None and alone.digest is not None
        assert result.digest.embedding == pytest.approx(alone.digest.embedding, abs=1e-6)
        assert result.digest.side.tolist() == alone.digest.side.tolist()
        assert result.digest.n_tokens == alone.digest.n_tokens


def test_digests_change_no_decision(tiny_bundle: Path, router: Router) -> None:
    plain = Router.load(tiny_bundle)
    for text in ("bab deb", "xrob xvac xzed", SECRET):
        with_digest, without = router.route(text), plain.route(text)
        assert without.digest is None and with_digest.digest is not None
        assert with_digest.candidates == without.candidates and with_digest.offer == without.offer


def test_an_embedding_that_came_as_a_prompt_is_written_as_it_was(tmp_path: Path, router: Router) -> None:
    embedding = np.arange(32, dtype=np.float32)
    (request,) = journaled(tmp_path, NoText(KEY), router, Request(embedding=embedding, input_tokens=5))
    assert np.frombuffer(request.embedding_f32, "<f4").tolist() == embedding.tolist()
    assert not request.HasField("digest")


def test_without_a_digest_the_prompt_is_withheld_and_counted(
    tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rule = NoText(KEY)
    with caplog.at_level(logging.ERROR):
        (request,) = journaled(tmp_path, rule, Router.load(tiny_bundle), Request(text=SECRET))
    assert request.withheld and not request.HasField("digest") and rule.failures == 1
    assert "without a digest" in caplog.text and "Rosalind" not in caplog.text


@pytest.mark.parametrize(
    ("error", "written"),
    [("timeout", "timeout"), ("http.503", "http.503"), ("cannot read 'hello'", WITHHELD), ("x" * 41, WITHHELD)],
)
def test_an_error_is_written_only_where_it_is_a_plain_code(error: str, written: str) -> None:
    assert NoText(KEY).outcome(OutcomeReport("d", error=error)).error == written


def test_a_bundle_that_cannot_give_embeddings_is_refused_at_once(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = bundles.load(tiny_bundle)
    del opened.manifest.encoder["sha256"]
    with pytest.raises(BundleError, match=r"cannot give the embedding of a prompt.* train it anew"):
        Router(opened, digests=True)
    Router(opened)


def test_a_bundle_of_embeddings_alone_needs_no_digests(embedding_bundle: Path) -> None:
    router = Router.load(embedding_bundle, digests=True)
    assert router.route(embedding=np.ones(16)).digest is None


# -- the key ---------------------------------------------------------------------------------------


def test_a_key_is_read_without_the_line_feed_after_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert read_key(tmp_path / "key") == KEY


def test_a_key_that_is_short_or_missing_is_refused_by_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"short\n")
    with pytest.raises(InputError, match=r"key: .* at least 16 bytes, found 5; make one with: openssl"):
        read_key(tmp_path / "key")
    with pytest.raises(InputError, match=r"nowhere: .* cannot be read \(No such file"):
        read_key(tmp_path / "nowhere")
    with pytest.raises(InputError, match="at least 16 bytes, found 0"):
        NoText(b"")


# -- redaction -------------------------------------------------------------------------------------


def test_texts_are_written_as_the_hook_returns_them(tmp_path: Path, router: Router) -> None:
    rule = RedactedText(lambda text: text.replace("Rosalind", "[name]"))
    messages = (Message("user", "Rosalind"), Message("assistant", "who?"))
    text, conversation = journaled(tmp_path, rule, router, Request(text=SECRET), Request(messages=messages))
    assert text.text == "Ms [name] Achterberg owes 4711 euros"
    assert conversation.messages == '[{"role": "user", "content": "[name]"}, {"role": "assistant", "content": "who?"}]'
    assert rule.outcome(OutcomeReport("d", error="no Rosalind")).error == "no [name]"
    assert b"Rosalind" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("result", [RuntimeError(SECRET), None, 7])
def test_what_a_hook_fails_on_is_left_out_counted_and_not_logged(
    tmp_path: Path, router: Router, caplog: pytest.LogCaptureFixture, result: Any
) -> None:
    def hook(text: str) -> str:
        if "Rosalind" not in text:
            return text
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[no-any-return]

    with caplog.at_level(logging.INFO), Journal(tmp_path, rule=RedactedText(hook)) as journal:
        for prompt in (SECRET, "bab", SECRET):
            journal.append_decision(Request(text=prompt), router.route(prompt))
        journal.append_outcomes([OutcomeReport("d", error=SECRET)])
    assert journal.stats.redactions_failed == 3 and journal.stats.decisions_written == 3
    first, second, third = (r.decision.request for r in read_records(tmp_path) if r.HasField("decision"))
    assert (first.withheld, second.withheld, third.withheld, second.text) == (True, False, True, "bab")
    assert [r.outcome.error for r in read_records(tmp_path) if r.HasField("outcome")] == [WITHHELD]
    assert b"Rosalind" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert caplog.text.count("redaction failed") == 1 and "Rosalind" not in caplog.text


def test_a_hook_is_named_by_module_and_function() -> None:
    assert load_redaction("html:escape")("<") == "&lt;"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("html", "must be given as module:function"),
        (":escape", "must be given as module:function"),
        ("no_such_module:f", "cannot be loaded .*No module named 'no_such_module'"),
        ("html:no_such", "cannot be loaded .*no attribute 'no_such'"),
        ("html:__doc__", "is str, not a function"),
    ],
)
def test_a_hook_that_is_none_is_refused_by_name(reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_redaction(reference)
