"""The configuration: what a file may say, and what a person reads when it says it wrongly."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from modelfs import config
from modelfs.config import load
from modelfs.errors import ConfigError
from modelfs.tables import DEFAULT_LOCAL_ONLY, CacheConfig, NamespaceConfig, RegistryConfig
from modelfs.units import GIB, KIB, MIB

MINIMAL = '[registries.hub]\nendpoint = "https://rgw:8443"\nbucket = "llmos"\n'


@pytest.fixture
def write(tmp_path: Path):
    """Write a configuration file and return its path."""

    def write_file(text: str | bytes) -> Path:
        file = tmp_path / "modelfs.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write_file


@pytest.fixture
def registry(write):
    """Return the registry `hub` of a file with these lines added to the minimal one."""
    return lambda lines="": load(write(MINIMAL + lines)).registry("hub")


@pytest.fixture
def complaints(write):
    """Return what load() says of a file, line by line, without the file's name and line."""

    def read(text: str | bytes) -> list[str]:
        file = write(text)
        with pytest.raises(ConfigError) as caught:
            load(file)
        lines = str(caught.value).split("\n")
        assert all(line.startswith(f"{file}: ") for line in lines)
        return [re.sub(r"line \d+: (?!not )", "", line.removeprefix(f"{file}: ")) for line in lines]

    return read


# What a good file means


def test_an_endpoint_and_a_bucket_are_enough(registry):
    hub = registry()
    assert (hub.name, hub.endpoint, hub.bucket) == ("hub", "https://rgw:8443", "llmos")
    assert (hub.prefix, hub.region, hub.addressing) == ("models/", "us-east-1", "path")
    assert (hub.metadata_ttl_s, hub.timeout_s, hub.drain_timeout_s) == (5, 30, 60)
    assert (hub.part_size, hub.parallel_requests, hub.staged_max) == (8 * MIB, 16, None)
    assert (hub.read_ahead, hub.read_ahead_formats) == (128 * MIB, True)
    assert hub.local_only == DEFAULT_LOCAL_ONLY
    assert (hub.read_only, hub.native_versions) == (False, True)
    assert (hub.cache.max_size, hub.cache.min_free) == (50 * GIB, "5%")


@pytest.mark.parametrize(
    ("said", "size"), [("0", 0), ("'0B'", 0), ("'1MiB'", MIB), ("'1GiB'", GIB)]
)
def test_how_far_is_read_ahead_may_be_set_and_0_is_none(registry, said, size):
    assert registry(f"read_ahead = {said}").read_ahead == size


def test_the_store_is_by_default_a_folder_with_the_name_of_the_registry(registry):
    assert registry().store == Path("/var/lib/modelfs/hub")


def test_the_example_is_a_good_file(write):
    hub = load(write(config.example())).registry("hub")
    assert hub.store_filesystem == ("ceph", "fuse.ceph-fuse")
    assert hub.namespace_of("acme") == NamespaceConfig(gid=2001, mode=0o770)


def test_the_example_with_every_line_switched_on_is_a_good_file_with_every_setting(write):
    text = re.sub(r"(?m)^# (?=[a-z_]+ = )", "", config.example())
    hub = load(write(text)).registry("hub")
    assert set(RegistryConfig.model_fields) == hub.model_fields_set
    assert set(CacheConfig.model_fields) == hub.cache.model_fields_set
    assert set(NamespaceConfig.model_fields) == hub.namespace_of("acme").model_fields_set


def test_the_lines_that_are_switched_off_in_the_example_show_the_defaults(write):
    text = re.sub(r"(?m)^# (?=[a-z_]+ = )", "", config.example())
    full, plain = (load(write(t)).registry("hub") for t in (text, config.example()))
    without_default = {"ca_bundle", "upload_role", "staged_max", "namespaces", "metrics_port"}
    assert full.model_dump(exclude=without_default) == plain.model_dump(exclude=without_default)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("0", 0),
        ("5", 5),
        ("0.5", 0.5),
        ('"5s"', 5),
        ('"500ms"', 0.5),
        ('"30m"', 1800),
        ('"1h"', 3600),
    ],
)
def test_a_time_is_a_number_of_seconds_or_has_its_unit(registry, written, seconds):
    assert registry(f"metadata_ttl = {written}").metadata_ttl_s == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [('"8MiB"', 8 * MIB), ('"64 KiB"', 64 * KIB), ("1048576", MIB), ('"10MB"', 10_000_000)],
)
def test_a_size_is_a_number_of_bytes_or_has_its_unit(registry, written, size):
    assert registry(f"part_size = {written}").part_size == size


@pytest.mark.parametrize(
    ("written", "free"),
    [('"5%"', 50), ('"0%"', 0), ('"12.5 %"', 125), ('"1KiB"', 1024), ("7", 7), ("0", 0)],
)
def test_free_space_is_a_share_of_the_disk_or_a_size(registry, written, free):
    hub = registry(f"[registries.hub.cache]\nmin_free = {written}")
    assert hub.cache.min_free_bytes(1000) == free


@pytest.mark.parametrize(
    ("written", "prefix"),
    [("models", "models/"), ("models/", "models/"), ("", ""), ("a/b", "a/b/")],
)
def test_a_prefix_is_empty_or_ends_in_a_slash(registry, written, prefix):
    assert registry(f"prefix = '{written}'").prefix == prefix


def test_an_endpoint_loses_the_slash_at_its_end(write):
    text = MINIMAL.replace("8443", "8443/")
    assert load(write(text)).registry("hub").endpoint == "https://rgw:8443"


def test_a_path_is_cleaned(registry):
    assert registry('store = "/ceph//x/../hub/"').store == Path("/ceph/hub")


@pytest.mark.parametrize("written", ["0770", "770"])
def test_a_mode_is_octal(registry, written):
    hub = registry(f'[registries.hub.namespaces.acme]\nmode = "{written}"')
    assert hub.namespace_of("acme").mode == 0o770


def test_a_namespace_that_is_not_named_has_the_defaults(registry):
    assert registry().namespace_of("acme") == NamespaceConfig(uid=None, gid=None, mode=0o755)


def test_settings_cannot_be_changed_afterwards(registry):
    with pytest.raises(ValidationError):
        registry().part_size = 1


def test_settings_made_in_python_have_their_python_names(tmp_path):
    made = RegistryConfig(
        name="hub", endpoint="http://x", bucket="llmos", store=tmp_path, metadata_ttl_s=0.1
    )
    assert made.metadata_ttl_s == 0.1
    assert NamespaceConfig(mode=0o750).mode == 0o750


# Which file is read


def test_the_file_of_the_environment_is_read_where_none_is_given(write, monkeypatch):
    monkeypatch.setenv("MODELFS_CONFIG", str(write(MINIMAL)))
    assert load(None).registry("hub").bucket == "llmos"


def test_the_given_file_goes_before_that_of_the_environment(write, monkeypatch):
    monkeypatch.setenv("MODELFS_CONFIG", "/nonexistent/other.toml")
    assert load(write(MINIMAL)).registry("hub").bucket == "llmos"


def test_the_file_of_the_system_is_read_where_nothing_is_said(write, monkeypatch):
    monkeypatch.delenv("MODELFS_CONFIG", raising=False)
    monkeypatch.setattr(config, "DEFAULT_FILE", write(MINIMAL))
    assert load().registry("hub").bucket == "llmos"


def test_a_missing_file_is_named_with_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: there is no such file; make it") as caught:
        load(tmp_path / "none.toml")
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_the_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); make it"):
        load(tmp_path)


def test_an_unknown_registry_is_answered_with_the_known_ones(write):
    file = write(MINIMAL + MINIMAL.replace("hub", "lab"))
    with pytest.raises(ConfigError) as caught:
        load(file).registry("hbu")
    assert str(caught.value) == (
        f"{file}: there is no registry 'hbu'; did you mean 'hub'? (known: hub, lab)"
    )


# Bad files

A_NAME = "a name of 1 to 100 of A-Z a-z 0-9 . _ + - with no dot, + or - first"
A_URL = "a URL like 'https://rgw.cluster.local:8443', with no path or user name in it"
A_SIZE = "a size like '500GiB', or a number of bytes"
A_TTL = "a time like '5s' or '500ms', up to '24h', or a number of seconds"
A_TIMEOUT = "a time from '100ms' to '1h', or a number of seconds"
A_PART = "a size from '64KiB' to '1GiB', or a number of bytes"
A_WINDOW = "a size like '128MiB', up to '1GiB'; 0 is none"
A_SHARE = "a share of the disk like '5%' (under 100%), or a size like '20GiB'"
A_PREFIX = (
    "the part before NAMESPACE/MODEL in the keys, like 'models/', or ''; "
    "with no / first, no empty, . or .. component"
)
A_FILTER = "a list of patterns for names, like ['*.swp', '.~*'], with no / in them"
A_MODE = "octal digits in quotes like '0770'"
A_BUCKET = "a bucket's name: 3 to 255 of A-Z a-z 0-9 . _ -"

IN_HUB = [
    ("endpont = 1", "endpont: found an unknown key; did you mean 'endpoint'?"),
    ("metadata_ttl_s = 5", "metadata_ttl_s: found an unknown key; did you mean 'metadata_ttl'?"),
    ("secret_key = 'K3Y'", "secret_key: found an unknown key; expected one of endpoint, bucket"),
    ("name = 'x'", "name: found an unknown key; expected one of endpoint, bucket"),
    ("prefix = '/models'", f"prefix: found '/models'; expected {A_PREFIX}"),
    ("prefix = 'a/../b'", f"prefix: found 'a/../b'; expected {A_PREFIX}"),
    ("region = ''", "region: found ''; expected a region's name like 'us-east-1'"),
    (
        "credentials = 'AKIA:K3Y'",
        "credentials: found no path; expected the absolute path of a file in AWS "
        "credentials format",
    ),
    ("addressing = 'host'", "addressing: found 'host'; expected 'path', 'virtual' or 'auto'"),
    ("mountpoint = 'm'", "mountpoint: found 'm'; expected the absolute path of a folder"),
    ("store = 7", "store: found 7; expected the absolute path of a folder"),
    (
        "store_filesystem = 'ceph'",
        "store_filesystem: found 'ceph'; expected a list of file system types as in "
        "/proc/mounts, like ['ceph', 'fuse.ceph-fuse']",
    ),
    (
        "upload_role = 'modelfs'",
        "upload_role: found 'modelfs'; expected a role's ARN like "
        "'arn:aws:iam:::role/modelfs-upload'",
    ),
    ("read_only = 'yes'", "read_only: found 'yes'; expected true or false"),
    ("native_versions = 1", "native_versions: found 1; expected true or false"),
    ("metadata_ttl = '5 days'", f"metadata_ttl: found '5 days'; expected {A_TTL}"),
    ("metadata_ttl = -1", f"metadata_ttl: found -1; expected {A_TTL}"),
    ("metadata_ttl = true", f"metadata_ttl: found true; expected {A_TTL}"),
    ("timeout = 0", f"timeout: found 0; expected {A_TIMEOUT}"),
    ("timeout = nan", f"timeout: found nan; expected {A_TIMEOUT}"),
    ("part_size = '1KiB'", f"part_size: found '1KiB'; expected {A_PART}"),
    ("part_size = 1e7", f"part_size: found 10000000.0; expected {A_PART}"),
    (
        "parallel_requests = 129",
        "parallel_requests: found 129; expected a number from 1 to 128",
    ),
    ("read_ahead = -1", f"read_ahead: found -1; expected {A_WINDOW}"),
    ("read_ahead = '2GiB'", f"read_ahead: found '2GiB'; expected {A_WINDOW}"),
    ("read_ahead = 'much'", f"read_ahead: found 'much'; expected {A_WINDOW}"),
    ("read_ahead_formats = 1", "read_ahead_formats: found 1; expected true or false"),
    ("local_only = '*.swp'", f"local_only: found '*.swp'; expected {A_FILTER}"),
    ("local_only = ['a', 'b/']", f"local_only[1]: found 'b/'; expected {A_FILTER}"),
    ("staged_max = 0", "staged_max: found 0; expected a size like '200GiB', or a number of bytes"),
    ("cache = 5", "cache: found 5; expected a table"),
    ("cache.max_size = 'lots'", f"cache.max_size: found 'lots'; expected {A_SIZE}"),
    ("cache.max_siz = 1", "cache.max_siz: found an unknown key; did you mean 'max_size'?"),
    ("cache.min_free = '100%'", f"cache.min_free: found '100%'; expected {A_SHARE}"),
    ("cache.min_free = -1", f"cache.min_free: found -1; expected {A_SHARE}"),
    ("namespaces = 7", "namespaces: found 7; expected a table"),
    ("namespaces.acme = []", "namespaces.acme: found a list; expected a table"),
    ("namespaces.'a b'.uid = 1", f"namespaces.\"a b\": found 'a b'; expected {A_NAME}"),
    ("namespaces.acme.mode = 770", f"namespaces.acme.mode: found 770; expected {A_MODE}"),
    ("namespaces.acme.mode = '0888'", f"namespaces.acme.mode: found '0888'; expected {A_MODE}"),
    (
        "namespaces.acme.gid = 'staff'",
        "namespaces.acme.gid: found 'staff'; expected a numeric group id like 2001",
    ),
]


@pytest.mark.parametrize(("line", "complaint"), IN_HUB, ids=[line for line, _ in IN_HUB])
def test_a_bad_setting_is_one_line_with_its_key_what_was_found_and_expected(
    complaints, line, complaint
):
    (said,) = complaints(MINIMAL + line)
    assert said.startswith(f"registries.hub.{complaint}")
    assert "K3Y" not in said


WHOLE_FILES = [
    ("", "registries: found nothing; expected at least one table [registries.NAME]"),
    ("registries = 5", "registries: found 5; expected at least one table [registries.NAME]"),
    (
        "[registries]",
        "registries: found an empty table; expected at least one table [registries.NAME]",
    ),
    ("[registries]\nhub = 'x'", "registries.hub: found 'x'; expected a table"),
    (MINIMAL + "[registry]", "registry: found an unknown key; did you mean 'registries'?"),
    (
        MINIMAL.replace("[registries.hub]", "[registries.'a b']"),
        f"registries.\"a b\": found 'a b'; expected {A_NAME}",
    ),
    (
        MINIMAL.replace("https://rgw", "https://me:K3Y@rgw"),
        f"registries.hub.endpoint: found 'https://***@rgw:8443'; expected {A_URL}",
    ),
    (
        MINIMAL.replace("8443", "8443/llmos"),
        f"registries.hub.endpoint: found 'https://rgw:8443/llmos'; expected {A_URL}",
    ),
    (
        MINIMAL.replace("https://rgw:8443", "ftp://rgw"),
        f"registries.hub.endpoint: found 'ftp://rgw'; expected {A_URL}",
    ),
    (
        MINIMAL.replace("8443", "84430"),
        f"registries.hub.endpoint: found 'https://rgw:84430'; expected {A_URL}",
    ),
    (
        MINIMAL.replace("llmos", "s3://llmos"),
        f"registries.hub.bucket: found 's3://llmos'; expected {A_BUCKET}",
    ),
    (
        MINIMAL.replace('bucket = "llmos"', ""),
        f"registries.hub.bucket: found nothing; expected {A_BUCKET}",
    ),
    (MINIMAL + "region =", "line 4: not TOML: Invalid value"),
    ("[registries.hub", "line 1: not TOML: Expected ']' at the end of a table declaration"),
    (MINIMAL + "bucket = 'twice'", "line 4: not TOML: Cannot overwrite a value"),
    (b"# ok\n# \xff", "line 2: not UTF-8, as TOML must be"),
    (
        MINIMAL + "mountpoint = '/m'\nstore = '/m/store'",
        "registries.hub.store: found '/m/store'; "
        "expected a folder apart from registries.hub.mountpoint, '/m'",
    ),
    (
        f"{MINIMAL}mountpoint='/m'\n{MINIMAL.replace('hub', 'lab')}mountpoint='/x/../m'",
        "registries.lab.mountpoint: found '/m'; "
        "expected a folder apart from registries.hub.mountpoint, '/m'",
    ),
]


@pytest.mark.parametrize(("text", "complaint"), WHOLE_FILES, ids=range(len(WHOLE_FILES)))
def test_a_bad_file_is_one_line_that_says_where(complaints, text, complaint):
    assert complaints(text) == [complaint]


def test_every_problem_of_the_file_is_told_at_once(complaints):
    said = complaints(
        "[registries.hub]\nbucket = 5\nread_only = 'no'\ncache.max_size = []\n[other]\n"
    )
    assert [line.partition(": ")[0] for line in said] == [
        "registries.hub.endpoint",
        "registries.hub.bucket",
        "registries.hub.read_only",
        "registries.hub.cache.max_size",
        "other",
    ]


PLACED = [
    (MINIMAL + "part_size = 1\n", 4),
    (MINIMAL + "\n# a comment\nlocal_only = [\n  'a',\n  'b/',\n]\n", 6),
    (MINIMAL + '\n[registries.hub.cache]\nmax_size = """\nmuch"""\n', 6),
    ("# one\n\n[registries.hub]\nendpoint = 'http://x'\n\n[registries.lab]\n", 3),
    (MINIMAL + "[registries.hub.namespaces.'a b']\nuid = 1\n", 4),
    (MINIMAL + "cache.max_siz = 1\nregion = 'x'\n", 4),
    (MINIMAL + "name = 'x'", 4),
    ("", None),
]


@pytest.mark.parametrize(("text", "line"), PLACED, ids=range(len(PLACED)))
def test_a_problem_is_told_with_its_line_or_that_of_its_table(write, text, line):
    file = write(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    said = str(caught.value).partition("\n")[0].removeprefix(f"{file}: ")
    assert said.startswith(f"line {line}: registries." if line else "registries: ")


def test_an_error_has_no_words_of_the_library(complaints):
    said = "\n".join(complaints(MINIMAL + "\n".join(line for line, _ in IN_HUB[4:20:3])))
    assert not re.search(r"pydantic|validation|Input should|type=|errors\.pydantic", said)
