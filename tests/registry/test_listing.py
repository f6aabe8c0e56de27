"""From keys to folders. Pure."""

import time

import pytest

from modelfs.registry.listing import Changes, Listing
from modelfs.registry.objects import ObjectId, ObjectInfo

PREFIX = "models/acme/llama/"


def info(path: str, etag: str = "e", prefix: str = PREFIX) -> ObjectInfo:
    return ObjectInfo(ObjectId(prefix + path, etag), 1, 0)


def listing_of(*paths: str) -> Listing:
    listing = Listing(PREFIX)
    for path in paths:
        listing.add(info(path))
    return listing


def shape(listing: Listing) -> dict[str, tuple[list[str], list[str]]]:
    return {path: (sorted(f.files), sorted(f.folders)) for path, f in listing.folders.items()}


def test_keys_become_folders_with_files_and_markers() -> None:
    listing = listing_of("", "a", "b/c", "b/d/e", "empty/")
    assert shape(listing) == {
        "": (["a"], ["b", "empty"]),
        "b": (["c"], ["d"]),
        "b/d": (["e"], []),
        "empty": ([], []),
    }
    assert listing.exists
    assert [p for p, f in listing.folders.items() if f.has_marker] == ["", "empty"]
    assert sorted(path for path, _ in listing.walk()) == ["a", "b/c", "b/d/e"]


def test_nothing_is_no_model_and_a_marker_or_any_key_is_one() -> None:
    assert not Listing(PREFIX).exists
    assert listing_of("").exists
    assert listing_of("deep/down/file").exists


@pytest.mark.parametrize(
    "path",
    ["a//b", "/a", "./a", "a/../b", "..", "nul\0", "k" * 256, "bad\udcff", "//", "a/./", "../"],
)
def test_a_key_that_could_be_no_file_is_hidden_with_its_reason(path: str) -> None:
    listing = listing_of("", "good", path)
    assert list(listing.hidden) == [PREFIX + path]
    assert listing.hidden[PREFIX + path]
    assert shape(listing) == {"": (["good"], [])}


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a"), ("a", "a/"), ("a/", "a")])
def test_of_a_file_and_a_folder_of_one_name_the_folder_is_shown(paths: tuple[str, str]) -> None:
    listing = listing_of(*paths)
    assert listing.hidden == {PREFIX + "a": "both a file and a folder"}
    assert shape(listing)[""] == ([], ["a"])


def test_a_removed_folder_takes_what_was_below_it_along() -> None:
    listing = listing_of("old/sub/deep/file", "other/x")
    listing.remove("old/sub/deep/file")
    listing.remove("old/")
    assert shape(listing) == {"": ([], ["other"]), "other": (["x"], [])}
    listing.add(info("old/sub/"))
    assert shape(listing)["old/sub"] == ([], [])


def test_what_this_mount_did_is_laid_over_a_listing_that_was_begun_before() -> None:
    changes = Changes()
    changes.note("early", info("early"))
    started_at = time.monotonic()
    changes.note("new", info("new", "mine"))
    changes.note("gone", None)
    changes.note("twice", info("twice", "first"))
    changes.note("twice", info("twice", "second"))
    changes.note("folder/", info("folder/"))
    changes.note("folder/", None)
    listing = listing_of("gone", "folder/", "theirs", "new")
    changes.apply(listing, started_at)
    assert shape(listing) == {"": (["new", "theirs", "twice"], [])}
    files = listing.folders[""].files
    assert (files["new"].id.etag, files["twice"].id.etag) == ("mine", "second")


def test_a_listing_that_was_begun_after_a_change_is_believed() -> None:
    changes = Changes()
    changes.note("mine", info("mine"))
    changes.note("gone", None)
    time.sleep(0.001)
    listing = listing_of("gone")
    changes.apply(listing, time.monotonic())
    assert shape(listing) == {"": (["gone"], [])}


def test_changes_of_other_folders_do_not_reach_a_listing_of_one_folder() -> None:
    changes = Changes()
    changes.note("a/here", info("a/here"))
    changes.note("a/deeper/x", info("a/deeper/x"))
    changes.note("b/there", info("b/there"))
    listing = Listing(PREFIX, is_whole=False)
    listing.add_folder("a")
    changes.apply(listing, 0.0, "a")
    assert shape(listing)["a"] == (["here"], [])


def test_changes_older_than_any_listing_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = Changes()
    for number in range(1001):
        changes.note(str(number), None)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1000)
    changes.note("last", None)
    assert [path for path, _ in changes.since(0)] == ["last"]
