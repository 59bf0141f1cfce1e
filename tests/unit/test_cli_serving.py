"""What `route`, `serve`, help and errors print, and how they exit."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from router_ml.cli import main
from router_ml.journal_options import add_journal_options, needs_digests, open_journal
from router_ml.router import Router
from router_ml.server import Server, ServerSettings, serve

COMMANDS = ("demo", "simulate", "ingest", "train", "predict", "evaluate", "serve", "route", "bench")
HARD = "xrob xvac xzed xquf xkyg"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Server]:
    server = serve(Router.load(tiny_bundle), settings=ServerSettings("127.0.0.1:0"))
    server.start()
    yield server
    server.stop(0)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit status, output and error output of one command."""
    try:
        status = main(argv)
    except SystemExit as end:  # how argparse ends
        status = int(end.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def check_fails(capsys: pytest.CaptureFixture[str], status: int, message: str, *argv: str) -> None:
    found, out, err = run(capsys, *argv)
    assert (found, out) == (status, "")
    assert message in err
    assert "Traceback" not in err


# -- help -----------------------------------------------------------------------------------------


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--help")
    assert (status, err) == (0, "")
    for command in COMMANDS:
        assert f"\n    {command} " in out
    assert "router-ml demo" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, err = run(capsys, command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: router-ml {command}")
    assert "--json" in out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert out.startswith("router-ml 0.")


@pytest.mark.parametrize("argv", [(), ("--nonsense",), ("fly",), ("route",), ("serve", "--model")])
def test_wrong_use_exits_2_and_shows_the_usage(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    check_fails(capsys, 2, "usage: router-ml", *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "name what to serve: --model BUNDLE, --bundles DIR, or --follow"),
        (("--model", "bundle", "--bundles", "dir"), "leave out --model"),
        (("--bundles", "nowhere"), "nowhere/current: no version to serve; write the name of a bundle folder into it"),
        (
            ("--follow", "models:/router@champion", "--bundles", "nowhere"),
            "no version to serve: `models:/router@champion`",
        ),
        (("--model", "bundle", "--workers", "0"), "expected a whole number above 0, or auto; found '0'"),
        (("--model", "bundle", "--explore", "5"), "must be a share such as 0.05 or 5%, above 0 and below 1, found '5'"),
        (("--model", "bundle", "--explore", "0%"), "must be a share such as 0.05 or 5%"),
        (("--model", "bundle", "--explore", "some"), "must be a number, found 'some'"),
        (("--model", "bundle", "--explore", "5%", "--explore-cost-multiple", "0.5"), "must be 1 or more, and finite"),
        (("--model", "bundle", "--explore", "5%", "--explore-floor", "2"), "must lie in [0, 1], found 2"),
        (("--model", "bundle", "--explore-floor", "0.2"), "--explore-floor says how to explore; say how much as well"),
    ],
)
def test_serve_says_what_it_needs(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_fails(capsys, 2, message, "serve", *argv)


def test_help_of_serving_needs_no_training_package() -> None:
    code = "import sys; from router_ml.cli import main; main(['route', '--help'])"
    heavy = "print([m for m in ('training', 'torch', 'mlflow', 'sklearn') if m in sys.modules], file=sys.stderr)"
    argv = [sys.executable, "-c", f"import sys, atexit; atexit.register(lambda: {heavy}); {code}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "[]\n")


# -- route ----------------------------------------------------------------------------------------


def test_route_explains_its_decision(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    status, out, err = run(capsys, "route", HARD, "--model", str(tiny_bundle))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("large@us: the best success for its cost")
    assert len(lines) == 2 + 6 + 1
    assert lines[2].startswith("> large@us")


def test_json_is_the_decision(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    status, out, _ = run(capsys, "route", HARD, "--model", str(tiny_bundle), "--json")
    data = json.loads(out)
    assert (status, data["offer"], len(data["candidates"])) == (0, "large@us", 6)


def test_options_reach_the_decision(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    options = ["--segment", "chat", "--quality-target", "0.8", "--max-cost-usd", "0.01", "--max-output-tokens", "100"]
    options += ["--region", "eu", "--region", "jp", "--deny", "tiny", "--allow", "small", "--allow", "tiny"]
    _, out, _ = run(capsys, "route", HARD, "--model", str(tiny_bundle), "--json", *options, "--capability", "tools")
    data = json.loads(out)
    one = Router.load(tiny_bundle).route(
        HARD,
        segment="chat",
        quality_target=0.8,
        max_cost_usd=0.01,
        max_output_tokens=100,
        allowed_regions=["eu", "jp"],
        denied_models=["tiny"],
        allowed_models=["small", "tiny"],
        required_capabilities=["tools"],
    )
    assert (data["offer"], data["fallbacks"], data["quality_target"]) == ("small@eu", [], 0.8)
    assert [c["p_success"] for c in data["candidates"]] == [c.p_success for c in one.candidates]
    assert [c["cost_usd"] for c in data["candidates"]] == [c.cost_usd for c in one.candidates]
    assert [c["rejected"] for c in data["candidates"]] == [c.rejected for c in one.candidates]


def test_a_server_decides_as_the_bundle(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, server: Server) -> None:
    found = []
    for where in (("--model", str(tiny_bundle)), ("--server", server.address)):
        status, out, _ = run(capsys, "route", HARD, *where, "--segment", "code", "--region", "eu", "--json")
        assert status == 0
        found.append({key: value for key, value in json.loads(out).items() if key != "decision_id"})
    assert found[0] == found[1]


@pytest.mark.parametrize("content", [b"bab deb", "漢字".encode(), b"bab \xff\xfe deb"])
def test_a_dash_reads_the_prompt_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, content: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    _, piped, _ = run(capsys, "route", "-", "--model", str(tiny_bundle), "--json")
    _, typed, _ = run(capsys, "route", content.decode(errors="replace"), "--model", str(tiny_bundle), "--json")
    assert json.loads(piped)["candidates"] == json.loads(typed)["candidates"]


def test_a_catalog_of_ones_own_sets_the_prices(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    models = "models: [{name: mid}, {name: gpt-9}]\n"
    offers = "offers: [{name: a, model: mid, request_usd: 0.5}, {name: b, model: gpt-9, request_usd: 0.1}]\n"
    (tmp_path / "catalog.yaml").write_text(models + offers)
    options = ("--model", str(tiny_bundle), "--catalog", str(tmp_path / "catalog.yaml"), "--json")
    status, out, err = run(capsys, "route", HARD, *options)
    assert status == 0
    assert [(c["offer"], c["cost_usd"]) for c in json.loads(out)["candidates"]] == [("a", 0.5)]
    assert err == "router-ml: never chosen, since the bundle cannot judge their models: b\n"


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--quality-target", "1.5", "must lie in (0, 1], found 1.5"),
        ("--quality-target", "0", "must lie in (0, 1]"),
        ("--quality-target", "nan", "must lie in (0, 1]"),
        ("--quality-target", "high", "must be a number, found 'high'"),
        ("--max-cost-usd", "-1", "must be a number of US dollars, 0 or more"),
        ("--max-cost-usd", "inf", "must be a number of US dollars, 0 or more"),
        ("--max-cost-usd", "much", "must be a number, found 'much'"),
        ("--max-output-tokens", "0", "must be 1 or more, found 0"),
        ("--max-output-tokens", "1.5", "must be a whole number, found '1.5'"),
    ],
)
def test_a_wrong_value_is_wrong_use(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, option: str, value: str, message: str
) -> None:
    check_fails(capsys, 2, message, "route", HARD, "--model", str(tiny_bundle), f"{option}={value}")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_blank_prompt_is_wrong_use(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, text: str) -> None:
    check_fails(capsys, 2, "router-ml: `text` must be", "route", text, "--model", str(tiny_bundle))


def test_text_for_a_bundle_of_embeddings_is_wrong_use(
    capsys: pytest.CaptureFixture[str], embedding_bundle: Path
) -> None:
    check_fails(capsys, 2, "`embedding` is required", "route", HARD, "--model", str(embedding_bundle))


def test_a_bundle_and_a_server_exclude_each_other(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    both = ("--model", str(tiny_bundle), "--server", "127.0.0.1:1")
    check_fails(capsys, 2, "not allowed with", "route", HARD, *both)


def test_a_catalog_does_not_go_with_a_server(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    options = ("--server", server.address, "--catalog", "c.yaml")
    check_fails(capsys, 2, "--catalog goes with --model", "route", HARD, *options)


@pytest.mark.parametrize("command", ["serve", "route"])
def test_a_wrong_catalog_is_wrong_use(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "c.yaml").write_text(
        "models: [{name: mid}]\noffers: [{name: a, model: mid, request_usd: 1}, {name: a, model: mid, request_usd: 1}]"
    )
    argv = (command, *((HARD,) if command == "route" else ()), "--model", str(tiny_bundle), "--catalog")
    check_fails(capsys, 2, "`offers` holds ['a'] more than once", *argv, str(tmp_path / "c.yaml"))
    check_fails(capsys, 2, "gone.yaml: cannot be read", *argv, str(tmp_path / "gone.yaml"))


def test_constraints_that_leave_nothing_exit_1(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    argv = ("route", HARD, "--model", str(tiny_bundle), "--region", "jp")
    check_fails(capsys, 1, "router-ml: no offer is eligible", *argv)


def test_a_server_says_the_same_of_constraints_that_leave_nothing(
    capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    check_fails(capsys, 1, "tiny@us: region", "route", HARD, "--server", server.address, "--region", "jp")


@pytest.mark.parametrize("command", ["serve", "route"])
def test_what_is_no_bundle_exits_1(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    argv = (command, *((HARD,) if command == "route" else ()), "--model", str(tmp_path))
    check_fails(capsys, 1, f"{tmp_path} is not a bundle: it has no manifest.json", *argv)


def test_a_server_that_is_not_there_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    check_fails(capsys, 1, "did not answer", "route", HARD, "--server", "127.0.0.1:1")


def test_a_secured_server_is_asked_with_a_token_and_over_tls(
    capsys: pytest.CaptureFixture[str], server: Server, tiny_bundle: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    assert run(capsys, "route", HARD, "--server", server.address, "--token-file", str(token))[0] == 0
    far = ("route", HARD, "--server", "router.internal:50051", "--token-file", str(token))
    check_fails(capsys, 2, "only over TLS", *far)
    check_fails(capsys, 2, "`tls_ca` must be a PEM file", *far, "--tls-ca", str(token))
    here = ("route", HARD, "--model", str(tiny_bundle), "--token-file", str(token))
    check_fails(capsys, 2, "--token-file go with --server", *here)


def test_a_wrong_address_is_wrong_use(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    check_fails(capsys, 2, "`listen` must be HOST:PORT", "serve", "--model", str(tiny_bundle), "--listen", "nowhere")


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, server: Server) -> None:
    argv = ("serve", "--model", str(tiny_bundle), "--listen", server.address)
    check_fails(capsys, 2, f"port {server.port} is in use", *argv)


def test_a_journal_that_cannot_be_made_is_wrong_use(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    argv = ("serve", "--model", str(tiny_bundle), "--listen", "127.0.0.1:0", "--journal", str(tmp_path / "file"))
    check_fails(capsys, 2, "cannot be a journal folder", *argv)


def test_a_reader_that_goes_away_is_no_traceback(tiny_bundle: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "router_ml.cli", "route", HARD, "--model", str(tiny_bundle)]
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, text=True, timeout=180)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# -- what of a prompt is journaled -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--journal-text", "none"], "--journal-text goes with --journal DIR"),
        (["--journal-keep-days", "7"], "--journal-keep-days goes with --journal DIR"),
        (["--journal", "j", "--journal-text", "none"], "--journal-text none needs --journal-key-file FILE; make one"),
        (["--journal", "j", "--journal-key-file", "k"], "--journal-key-file goes with --journal-text none"),
        (["--journal", "j", "--journal-redact", "html"], "must be given as module:function"),
        (["--journal", "j", "--journal-text", "none", "--journal-key-file", "nowhere"], "nowhere: the journal's key"),
        (
            ["--journal", "j", "--journal-text", "none", "--journal-key-file", "k", "--journal-redact", "html:escape"],
            "--journal-redact has nothing to redact with --journal-text none",
        ),
        (["--journal", "j", "--journal-keep-days", "0"], "must be above 0, found 0"),
        (["--journal", "j", "--journal-keep-gb", "much"], "must be a number, found 'much'"),
    ],
)
def test_journal_options_that_contradict_each_other_are_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    check_fails(capsys, 2, message, "serve", "--model", str(tiny_bundle), "--listen", "127.0.0.1:0", *options)
    assert list(tmp_path.iterdir()) == []


def test_the_options_reach_the_journal(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_journal_options(parser)
    (tmp_path / "key").write_text("k" * 16)
    given = ["--journal", str(tmp_path / "j"), "--journal-keep-days", "0.5", "--journal-keep-gb", "2"]
    private = parser.parse_args([*given, "--journal-text", "none", "--journal-key-file", str(tmp_path / "key")])
    assert needs_digests(private) and not needs_digests(parser.parse_args(given))
    journal = open_journal(private)
    assert journal is not None
    journal.close()
    assert (journal.settings.keep_seconds, journal.settings.keep_bytes) == (43_200, 2e9)
    assert open_journal(parser.parse_args([])) is None
