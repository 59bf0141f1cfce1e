from __future__ import annotations

import hashlib
import json
import os
import pickletools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from router_ml import bundle
from router_ml.bundle import CATALOG, FORMAT, GRAPH, MANIFEST, TOKENIZER, UNCERTAINTY
from router_ml.catalog import Catalog
from router_ml.errors import BundleError
from router_ml.router import Router

FILES = (MANIFEST, GRAPH, CATALOG, TOKENIZER, UNCERTAINTY)


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def write_again(source: Path, target: Path, **changes: Any) -> str:
    """Write the parts of one bundle as another."""
    manifest, _, parts = bundle.verify(source)
    catalog = Catalog.from_dict(json.loads(parts[CATALOG]))
    optional = parts.get(TOKENIZER), parts.get(UNCERTAINTY)
    return bundle.write(target, replace(manifest, **changes), parts[GRAPH], catalog, *optional)


def signed(data: dict[str, Any]) -> bytes:
    """A manifest whose own hash is right, whatever it says."""
    data = {key: value for key, value in data.items() if key != "manifest_sha256"}
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(data | {"manifest_sha256": hashlib.sha256(canonical).hexdigest()}).encode()


def edit(folder: Path, *, sign: bool, **changes: Any) -> None:
    """Change keys of a manifest; a value of Ellipsis removes the key."""
    data = json.loads((folder / MANIFEST).read_text()) | changes
    data = {key: value for key, value in data.items() if value is not ...}
    (folder / MANIFEST).write_bytes(signed(data) if sign else json.dumps(data).encode())


# -- round trip -----------------------------------------------------------------------------------


def test_what_is_written_is_what_is_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    before = bundle.load(tiny_bundle)
    digest = write_again(tiny_bundle, tmp_path / "again")
    after = bundle.load(tmp_path / "again")
    assert digest == after.sha256 == before.sha256
    assert after.manifest == before.manifest
    assert after.catalog == before.catalog
    assert after.points == before.points
    assert after.format == FORMAT


def test_an_equal_tokenizer_is_shared_with_the_version_before_and_another_is_not(copy: Path, tmp_path: Path) -> None:
    before = bundle.load(copy)
    assert bundle.load(copy, like=before).tokenizer is before.tokenizer
    assert bundle.load(copy).tokenizer is not before.tokenizer
    settings = {**before.manifest.tokenizer, "max_chars": 4000}  # type: ignore[dict-item]
    write_again(copy, tmp_path / "again", tokenizer=settings)
    after = bundle.load(tmp_path / "again", like=before)
    assert after.tokenizer is not None and after.tokenizer.settings.max_chars == 4000


def test_a_copy_decides_as_the_original(tiny_bundle: Path, copy: Path) -> None:
    one, other = (Router.load(path).route("bab xrob deb") for path in (tiny_bundle, copy))
    assert one.candidates == other.candidates


def test_the_folder_holds_its_files_readable_by_all(copy: Path, tmp_path: Path) -> None:
    write_again(copy, tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == set(FILES)
    assert (tmp_path / "again").stat().st_mode & 0o777 == 0o755


def test_a_bundle_of_embeddings_has_no_tokenizer(embedding_bundle: Path) -> None:
    assert {path.name for path in embedding_bundle.iterdir()} == {MANIFEST, GRAPH, CATALOG, UNCERTAINTY}
    assert bundle.load(embedding_bundle).tokenizer is None


def test_a_missing_parent_folder_is_made(tiny_bundle: Path, tmp_path: Path) -> None:
    write_again(tiny_bundle, tmp_path / "a" / "b" / "bundle")
    assert bundle.load(tmp_path / "a" / "b" / "bundle").manifest.models


def test_the_hash_names_the_whole_content(tiny_bundle: Path, tmp_path: Path) -> None:
    changed = write_again(tiny_bundle, tmp_path / "again", created="2020-01-01T00:00:00+00:00")
    assert changed != bundle.load(tiny_bundle).sha256


@pytest.mark.parametrize("kind", ["tiny_bundle", "embedding_bundle"])
def test_no_file_is_a_pickle(kind: str, request: pytest.FixtureRequest) -> None:
    for path in request.getfixturevalue(kind).iterdir():
        content = path.read_bytes()
        if path.suffix == ".json":
            json.loads(content)
        else:
            onnx.checker.check_model(onnx.load_from_string(content))
        with pytest.raises(ValueError):
            list(pickletools.genops(content))


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_refused_by_name(copy: Path, name: str, place: float) -> None:
    content = bytearray((copy / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        bundle.load(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_file_cut_short_is_refused_by_name(copy: Path, name: str, share: float) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(BundleError, match=name):
        bundle.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        bundle.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_refused_by_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(BundleError, match=name):
        bundle.load(copy)


def test_any_flipped_bit_of_the_manifest_is_refused(copy: Path) -> None:
    good = (copy / MANIFEST).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(good), 300):
        content = bytearray(good)
        content[place] ^= 1 << int(rng.integers(0, 8))
        if json_or_none(bytes(content)) == json.loads(good):  # white space between the fields says nothing
            continue
        (copy / MANIFEST).write_bytes(content)
        with pytest.raises(BundleError):
            bundle.verify(copy)


def json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"7", b"\xff\xfe", b'{"format": null}', b"[" * 100_000],
    ids=["empty", "object", "list", "null", "number", "not-utf8", "null-format", "deep"],
)
def test_a_manifest_that_is_none_is_refused(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json|format"):
        bundle.load(copy)


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    edit(copy, sign=False, version="other")
    with pytest.raises(BundleError, match="changed since it was written"):
        bundle.load(copy)


def test_a_manifest_without_its_hash_is_refused(copy: Path) -> None:
    edit(copy, sign=False, manifest_sha256=...)
    with pytest.raises(BundleError, match="changed since it was written"):
        bundle.load(copy)


def test_a_newer_format_is_refused_and_says_so(copy: Path) -> None:
    edit(copy, sign=True, format=FORMAT + 1)
    with pytest.raises(BundleError, match=rf"format {FORMAT + 1}, this program reads up to {FORMAT}; upgrade"):
        bundle.load(copy)


def test_a_newer_format_is_told_even_if_it_hashes_otherwise(copy: Path) -> None:
    edit(copy, sign=False, format=FORMAT + 1, manifest_sha256=...)
    with pytest.raises(BundleError, match="upgrade"):
        bundle.load(copy)


@pytest.mark.parametrize("value", [0, -1, "1", 1.5, True, None])
def test_a_format_that_is_no_number_of_ours_is_refused(copy: Path, value: Any) -> None:
    edit(copy, sign=True, format=value)
    with pytest.raises(BundleError, match="format"):
        bundle.load(copy)


def test_a_file_of_unknown_name_is_refused(copy: Path) -> None:
    files = json.loads((copy / MANIFEST).read_text())["files"]
    edit(copy, sign=True, files=files | {"../secret.json": "0" * 64})
    with pytest.raises(BundleError, match=r"`files` must name .*\.\./secret\.json"):
        bundle.load(copy)


@pytest.mark.parametrize("name", [GRAPH, CATALOG, TOKENIZER])
def test_a_manifest_that_does_not_name_a_file_is_refused(copy: Path, name: str) -> None:
    files = json.loads((copy / MANIFEST).read_text())["files"]
    edit(copy, sign=True, files={key: value for key, value in files.items() if key != name})
    with pytest.raises(BundleError, match=name):
        bundle.load(copy)


@pytest.mark.parametrize("key", ["models", "segments", "operating_points", "version", "files", "input_token_ratio"])
def test_a_manifest_without_a_field_is_refused(copy: Path, key: str) -> None:
    edit(copy, sign=True, **{key: ...})
    with pytest.raises(BundleError, match=key):
        bundle.load(copy)


@pytest.mark.parametrize("key", ["confidence", "promised_willingness", "promised_thresholds", "rule"])
def test_operating_points_without_a_field_are_refused(copy: Path, key: str) -> None:
    points = json.loads((copy / MANIFEST).read_text())["operating_points"]
    edit(copy, sign=True, operating_points={name: value for name, value in points.items() if name != key})
    with pytest.raises(BundleError, match=f"`operating_points` does not match format .*{key}.*retrain"):
        bundle.load(copy)


def test_a_manifest_with_an_unknown_field_is_refused(copy: Path) -> None:
    edit(copy, sign=True, colour="red")
    with pytest.raises(BundleError, match="colour"):
        bundle.load(copy)


def test_other_side_features_are_refused(copy: Path) -> None:
    edit(copy, sign=True, side_features=["log_chars"])
    with pytest.raises(BundleError, match=r"side features.*retrain"):
        bundle.load(copy)


def test_a_graph_that_onnxruntime_cannot_open_is_refused(copy: Path) -> None:
    (copy / GRAPH).write_bytes(b"not a graph")
    files = json.loads((copy / MANIFEST).read_text())["files"]
    edit(copy, sign=True, files=files | {GRAPH: hashlib.sha256(b"not a graph").hexdigest()})
    with pytest.raises(BundleError, match=r"graph\.onnx: onnxruntime .* cannot open it"):
        bundle.load(copy)


@pytest.mark.parametrize("name", ["nowhere", "a-file", "empty"])
def test_what_is_no_bundle_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=name):
        bundle.load(tmp_path / name)


# -- writing over what is there -------------------------------------------------------------------


def test_an_older_bundle_is_replaced_as_a_whole(copy: Path) -> None:
    (copy / "stray.txt").write_text("left by hand")
    digest = write_again(copy, copy, version="next")
    loaded = bundle.load(copy)
    assert (loaded.sha256, loaded.manifest.version) == (digest, "next")
    assert {path.name for path in copy.iterdir()} == set(FILES)
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]


def test_a_bundle_of_text_gives_way_to_one_of_embeddings(copy: Path, embedding_bundle: Path) -> None:
    write_again(embedding_bundle, copy)
    assert not (copy / TOKENIZER).exists()
    assert bundle.load(copy).tokenizer is None


def test_an_empty_folder_is_taken(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write_again(tiny_bundle, tmp_path / "bundle")
    assert bundle.load(tmp_path / "bundle").manifest.models


def test_a_link_to_a_bundle_stays_a_link(copy: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(copy, target_is_directory=True)
    write_again(copy, link, version="next")
    assert link.is_symlink()
    assert bundle.load(copy).manifest.version == "next"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "current"]


def test_a_damaged_bundle_can_be_written_over(copy: Path, tiny_bundle: Path) -> None:
    (copy / GRAPH).unlink()
    write_again(tiny_bundle, copy)
    assert bundle.load(copy).manifest.models


def test_a_folder_that_is_no_bundle_is_left_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(BundleError, match="photos: exists and is not a bundle"):
        write_again(tiny_bundle, tmp_path / "photos")
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "cat.jpg"]


def test_a_file_is_not_overwritten(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BundleError, match="notes: exists and is not a bundle"):
        write_again(tiny_bundle, tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_file_in_the_place_of_the_parent_folder_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BundleError, match="cannot be written there"):
        write_again(tiny_bundle, tmp_path / "notes" / "bundle")


WRITE_ON_A_FULL_DISK = """
import json, resource, signal, sys
from dataclasses import replace
from pathlib import Path
from router_ml import bundle
from router_ml.catalog import Catalog
from router_ml.errors import BundleError

source, target, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
manifest, _, parts = bundle.verify(source)
catalog = Catalog.from_dict(json.loads(parts[bundle.CATALOG]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    bundle.write(target, replace(manifest, version="next"), parts[bundle.GRAPH], catalog, parts[bundle.TOKENIZER])
except BundleError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits on this system")
@pytest.mark.parametrize("limit", [0, 1, 1000, 20_000])
def test_a_disk_that_fills_up_leaves_the_older_bundle_and_nothing_else(
    tiny_bundle: Path, copy: Path, limit: int
) -> None:
    before = bundle.load(copy).sha256
    argv = [sys.executable, "-c", WRITE_ON_A_FULL_DISK, str(tiny_bundle), str(copy), str(limit)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert "cannot be written" in done.stdout, done.stdout
    assert "untouched" in done.stdout
    assert bundle.load(copy).sha256 == before
    assert os.listdir(copy.parent) == ["bundle"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o555)
    with pytest.raises(BundleError, match="cannot be written"):
        write_again(tiny_bundle, tmp_path / "shut" / "bundle")
