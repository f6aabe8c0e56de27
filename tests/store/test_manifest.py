"""Manifests: canonical JSON, digests, the lines of sha256sum. Pure, but for sha256sum."""

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfs.errors import StoreError
from modelfs.names import ModelId, VersionId
from modelfs.store.manifest import Entry, Manifest, Provenance, as_tree, folders_of, from_json

PROVENANCE = Provenance("hub", "https://rgw", "bucket", "models/", "node-a", "0.1")
ODD_NAMES = [
    "plain",
    "two words",
    "back\\slash",
    "line\nend",
    "return\rkey",
    "\\n",
    "-dash",
    "*star",
    "  spaces  ",
    "quote'\"",
    "日本語/モデル.bin",
    "deep/er/er/file",
    "\ttab",
    "\\",
    "trailing\\",
    "mixed\\\n\r\\n",
]


def entry(path: str, data: bytes = b"x", etag: str = "e") -> Entry:
    sha256 = hashlib.sha256(data).hexdigest()
    return Entry(path, f"models/acme/llama/{path}", etag, len(data), 5, sha256=sha256)


def manifest(*files: Entry, folders: tuple[str, ...] = (), version: str = "v1") -> Manifest:
    return Manifest("acme", "llama", version, PROVENANCE, 1, 1000, folders, files, 2)


def test_a_manifest_comes_back_from_its_json() -> None:
    made = manifest(entry("a"), entry("日本語"), folders=("empty",))
    text = made.to_json()
    assert from_json(text, "here") == made
    assert from_json(text, "here").to_json() == text
    assert made.id == VersionId(ModelId("acme", "llama"), "v1")
    assert made.size == 2


def test_a_manifest_of_before_files_told_what_confirmed_them_is_read() -> None:
    made = manifest(entry("a"))
    content = json.loads(made.to_json())
    for name in ("checksum", "confirmed"):
        del content["files"][0][name]
    assert from_json(json.dumps(content).encode(), "here") == made
    confirmed = manifest(replace(entry("a"), confirmed="md5"))
    assert from_json(confirmed.to_json(), "here") == confirmed
    assert confirmed.digest == made.digest


def test_a_manifest_names_its_source_where_that_is_another_model() -> None:
    own, local = manifest(entry("a")), replace(manifest(entry("a")), source="acme/base")
    assert b"source" not in own.to_json()  # as of before there were sources
    assert from_json(own.to_json(), "here").source is None
    assert from_json(local.to_json(), "here") == local
    assert local.digest == own.digest


def test_the_json_is_canonical() -> None:
    text = manifest(entry("日本語")).to_json()
    assert text.endswith(b"}\n")
    assert b": " not in text
    assert "日本語".encode() in text
    assert text.index(b'"digest"') < text.index(b'"files"') < text.index(b'"version"')


def test_equal_content_has_an_equal_digest_whenever_and_from_wherever_it_was_frozen() -> None:
    first = manifest(entry("a", b"1", "e1"), entry("b", b"2"), folders=("f",))
    second = replace(
        manifest(entry("b", b"2", "e9"), entry("a", b"1", "e2"), folders=("f",), version="v2"),
        pinned_ns=99,
        uid=0,
        ready_ns=100,
        provenance=replace(PROVENANCE, host="node-b", bucket="other"),
    )
    assert first.digest == second.digest
    assert str(first.digest).startswith("sha256:")


@pytest.mark.parametrize(
    "other",
    [
        manifest(entry("a", b"1"), entry("b", b"3"), folders=("f",)),
        manifest(entry("a", b"1"), entry("c", b"2"), folders=("f",)),
        manifest(entry("a", b"1"), folders=("f",)),
        manifest(entry("a", b"1"), entry("b", b"2"), folders=()),
        manifest(entry("a", b"1"), entry("b", b"2"), folders=("g",)),
    ],
)
def test_other_content_has_another_digest(other: Manifest) -> None:
    assert manifest(entry("a", b"1"), entry("b", b"2"), folders=("f",)).digest != other.digest


def test_there_is_no_digest_before_all_is_here() -> None:
    coming = replace(entry("b"), sha256=None)
    made = manifest(entry("a"), coming)
    assert made.digest is None
    assert made.to_checksums().count(b"\n") == 1
    assert from_json(made.to_json(), "here") == made


def test_checksums_are_what_sha256sum_writes_and_reads(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    text = manifest(*(entry(name, name.encode()) for name in ODD_NAMES)).to_checksums()
    written = subprocess.run(
        ["sha256sum", "--", *ODD_NAMES], cwd=tmp_path, capture_output=True, check=True
    )
    assert text == written.stdout
    read = subprocess.run(
        ["sha256sum", "--strict", "-c", "-"], input=text, cwd=tmp_path, capture_output=True
    )
    assert read.returncode == 0, read.stdout
    (tmp_path / ODD_NAMES[3]).write_text("changed")
    wrong = subprocess.run(["sha256sum", "-c", "-"], input=text, cwd=tmp_path, capture_output=True)
    assert wrong.returncode == 1


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{}", b"[]", b"null", b"7", b"not json", b"\xff\xfe"),
        b'{"format":2}',
        manifest(entry("a")).to_json()[:-20],
        manifest(entry("a")).to_json().replace(b'"path"', b'"pfad"'),
        manifest(entry("a")).to_json().replace(b'"registry"', b'"unknown"'),
    ],
)
def test_a_damaged_manifest_is_an_error_that_names_its_file(text: bytes) -> None:
    with pytest.raises(StoreError, match=r"/store/v1\.json"):
        from_json(text, "/store/v1.json")


def test_a_version_as_a_tree_has_every_folder() -> None:
    tree = as_tree(manifest(entry("a/b/c"), entry("top"), folders=("empty", "empty/inner")))
    assert {path: (sorted(f.files), sorted(f.folders)) for path, f in tree.items()} == {
        "": (["top"], ["a", "empty"]),
        "a": ([], ["b"]),
        "a/b": (["c"], []),
        "empty": ([], ["inner"]),
        "empty/inner": ([], []),
    }


component = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.lists(component, min_size=1, max_size=4).map("/".join), max_size=8))
def test_every_folder_above_a_file_is_found(paths: list[str]) -> None:
    found = folders_of(paths)
    for path in paths:
        parts = path.split("/")
        assert all("/".join(parts[:n]) in found for n in range(1, len(parts)))
    assert all(any(path.startswith(f"{folder}/") for path in paths) for folder in found)
