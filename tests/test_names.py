"""Names: what may be called so, and that a key never becomes a path outside its model."""

import os.path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelfs import names
from modelfs.errors import InvalidName, NameTooLong
from modelfs.names import Keys, ModelId, VersionId

PREFIX = "models/acme/llama/"

plain_names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}", fullmatch=True)
hostile_keys = st.lists(
    st.sampled_from(["", ".", "..", "a", "\0", "é" * 128, "\udcff", "…", "/"]) | st.text(max_size=9)
).map("/".join)


# Versions and aliases


@pytest.mark.parametrize("name", ["1", "v2", "2026-11-22", "v3.1-rc1", "v1+cu128", "0" * 100])
def test_what_begins_with_a_digit_or_v_and_a_digit_is_a_version(name):
    assert names.check_version_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "v", "vv1", "V1", "weights", "main", "latest", "-1", ".1", "v1/2", "1 2", "1" * 101],
)
def test_what_looks_otherwise_is_no_version(name):
    with pytest.raises(InvalidName, match="is no version name"):
        names.check_version_name(name)


@pytest.mark.parametrize("name", ["v1\n", "1\0", "v\u0661", "\u0661"])
def test_a_line_end_or_a_digit_of_another_script_makes_no_version(name):
    with pytest.raises(InvalidName, match="is no version name"):
        names.check_version_name(name)


@pytest.mark.parametrize("name", ["production", "canary", "team-b.prod", "_x", "version"])
def test_a_word_is_an_alias(name):
    assert names.check_alias_name(name) == name


@pytest.mark.parametrize("name", ["main", "latest", ".modelfs", ".x", "v1", "1", "a/b", "", "é"])
def test_what_is_reserved_or_looks_like_a_version_is_no_alias(name):
    with pytest.raises(InvalidName, match="cannot be an alias"):
        names.check_alias_name(name)


@given(st.text())
@example("v1")
def test_no_name_is_both_a_version_and_an_alias(name):
    def is_alias() -> bool:
        try:
            return bool(names.check_alias_name(name))
        except InvalidName:
            return False

    assert not (names.is_version_name(name) and is_alias())


@given(st.text())
def test_a_plain_name_is_always_one_component_of_a_path(name):
    if names.is_plain_name(name):
        assert names.check_component(name) == name
        assert not name.startswith((".", "-"))


@pytest.mark.parametrize("name", ["", ".x", "-x", "+x", "a/b", "a b", "a" * 101, "ü", "a\n"])
def test_a_bad_name_is_refused_with_what_it_was_for(name):
    with pytest.raises(InvalidName, match="cannot be the name of a namespace"):
        names.check_name(name, "namespace")


# The next version


@pytest.mark.parametrize(
    ("used", "following"),
    [
        (set(), "v1"),
        ({"v1"}, "v2"),
        ({"v1", "v10"}, "v11"),
        ({"2026-11-22", "v2-rc1"}, "v1"),
        ({"v007"}, "v8"),
    ],
)
def test_the_next_version_is_above_every_numbered_one(used, following):
    assert names.next_version_name(used) == following


@given(st.sets(st.integers(0, 10**9 - 1).map("v{}".format) | plain_names))
def test_the_next_version_is_a_version_name_that_was_never_used(used):
    following = names.next_version_name(used)
    assert names.is_version_name(following)
    assert following not in used


# Round trips


@given(plain_names, plain_names)
def test_a_model_that_is_written_is_read_back(namespace, name):
    model = ModelId(namespace, name)
    assert names.parse_model(str(model)) == model
    assert names.parse_model(f"/{model}/") == model


@given(plain_names, plain_names, plain_names)
def test_a_version_that_is_written_is_read_back(namespace, name, version):
    written = VersionId(ModelId(namespace, name), version)
    assert names.parse_version(str(written)) == written


@pytest.mark.parametrize("text", ["", "acme", "acme/", "acme/a/b", "../x", "acme/.x", "acme@v1"])
def test_what_names_no_model_is_refused(text):
    with pytest.raises(InvalidName):
        names.parse_model(text)


@pytest.mark.parametrize("text", ["acme/llama", "acme/llama@", "acme@v1", "acme/llama@../v1"])
def test_what_names_no_version_is_refused(text):
    with pytest.raises(InvalidName):
        names.parse_version(text)


@given(plain_names, plain_names, st.sampled_from(["", "models/", "a/b/"]), hostile_keys)
def test_a_path_that_a_key_gave_is_that_key_again(namespace, name, prefix, path):
    model, keys = ModelId(namespace, name), Keys(prefix)
    try:
        key = keys.file(model, names.relative_path(path, ""))
    except (InvalidName, NameTooLong):
        return
    assert names.relative_path(key, keys.model(model)) == path


def test_keys_lie_below_their_prefix():
    model = ModelId("acme", "llama")
    assert Keys("models/").namespace("acme") == "models/acme/"
    assert Keys("models/").model(model) == PREFIX
    assert Keys("").file(model, "a/b.bin") == "acme/llama/a/b.bin"


def test_a_key_that_s3_would_refuse_is_too_long():
    model = ModelId("a", "b")
    room = names.KEY_MAX_BYTES - len("a/b/")
    assert len(Keys("").file(model, "x" * room)) == names.KEY_MAX_BYTES
    with pytest.raises(NameTooLong, match="1025 bytes"):
        Keys("").file(model, "x" * (room + 1))


# A key is never trusted


@given(hostile_keys)
@example("../../etc/passwd")
@example("a/../../b")
@example("/etc/passwd")
@example("a//b")
@example("a/./b")
@example("a/\0")
@example("a/\udcff")
@example("/")
def test_no_key_gives_a_path_that_escapes(tail):
    try:
        path = names.relative_path(PREFIX + tail, PREFIX)
    except InvalidName:
        return
    assert PREFIX + path == PREFIX + tail
    assert not path.startswith("/")
    assert "\0" not in path
    joined = os.path.normpath(os.path.join("/store", path))
    assert joined == ("/store/" + path).rstrip("/")
    for component in path.removesuffix("/").split("/"):
        assert path == "" or names.check_component(component)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("../x", "a component '..'"),
        ("a/./b", "a component '.'"),
        ("a//b", "an empty component"),
        ("/", "an empty component"),
        ("a\0b", "a NUL character"),
        ("\udcff", "not UTF-8"),
        ("é" * 128, "a component of 256 bytes"),
    ],
)
def test_a_key_that_is_hidden_says_why(tail, reason):
    with pytest.raises(InvalidName, match=reason):
        names.relative_path(PREFIX + tail, PREFIX)


def test_a_key_of_another_model_is_refused():
    with pytest.raises(InvalidName, match="not below"):
        names.relative_path("models/acme/llama-2/x", PREFIX)


@pytest.mark.parametrize("tail", ["", "a", "a/", "a/b.bin", "…/…", "a b", ".hidden", "..."])
def test_a_good_key_gives_its_path(tail):
    assert names.relative_path(PREFIX + tail, PREFIX) == tail


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "\udcff"])
def test_what_could_not_be_a_file_is_no_component(name):
    with pytest.raises(InvalidName):
        names.check_component(name)


def test_a_component_has_at_most_255_bytes():
    assert names.check_component("é" * 127)
    with pytest.raises(NameTooLong, match="256 bytes"):
        names.check_component("é" * 128)
