"""Verify on a store that the real code made, and a registry in memory."""

import errno
import fcntl
import os
import stat
import time
from pathlib import Path

import pytest

from modelfs.errors import Busy, RegistryUnavailable, StoreError
from modelfs.names import ModelId, VersionId
from modelfs.store import publishing, repair, rereading, verify, versions
from modelfs.store.findings import Finding, Problem, Summary
from modelfs.store.layout import Layout, remove_tree
from modelfs.store.repair import Repairer
from modelfs.store.rereading import Pace, sha256_of
from modelfs.store.verify import Verifier
from modelfs.tables import NamespaceConfig
from tests.fake_store import FakeStore
from tests.frozen_store import LLAMA, FrozenStore, error_of, flip_a_bit

DATA = bytes(range(256)) * 1000
PART = 64 * 1024
V1, V2 = VersionId(LLAMA, "v1"), VersionId(LLAMA, "v2")


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.findings: list[Finding] = []

    def begin(self, total: int) -> None:
        self.total = total

    def moved(self, count: int) -> None:
        self.done += count

    def found(self, finding: Finding) -> None:
        self.findings.append(finding)


class Case:
    """A store, a registry, and the verifier between them."""

    def __init__(self, folder: Path) -> None:
        self.registry = FakeStore()
        self.store = FrozenStore(folder / "store")
        self.seen = Seen()

    def put(self, **files: bytes) -> dict[str, tuple[bytes, str]]:
        """Put files of acme/llama into the registry; __ in a name is a slash, _ a dot."""
        found = {}
        for name, data in files.items():
            path = name.replace("__", "/").replace("_", ".")
            info = self.registry.place(f"models/acme/llama/{path}", data, part_size=PART)
            found[path] = (data, info.id.etag)
        return found

    def verify(self, *wanted: VersionId, repairs: bool = True, pace: int | None = None) -> Summary:
        layout = self.store.layout
        repairer = Repairer(layout, lambda: self.registry, part_size=PART) if repairs else None
        self.seen = Seen()
        verifier = Verifier(layout, self.seen, pace=Pace(pace), repairer=repairer)
        return verifier.run(wanted or verify.all_versions(layout))

    def one(self, *wanted: VersionId, repairs: bool = True) -> Finding:
        """Verify and return the one finding."""
        (finding,) = self.verify(*wanted, repairs=repairs).findings
        return finding


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(repair, "RETRY_PAUSE_S", 0.001)
    return Case(tmp_path)


@pytest.fixture
def frozen(case: Case) -> Case:
    """acme/llama@v1 with three files."""
    case.store.freeze("v1", case.put(config_json=b"{}", weights__a_bin=DATA, empty=b""))
    return case


def test_what_is_right_is_read_once_and_left_alone(frozen: Case) -> None:
    before = {p: p.lstat() for p in frozen.store.root.rglob("*")}
    summary = frozen.verify()
    assert summary == Summary(1, 3, len(DATA) + 2, ())
    assert summary.is_sound
    assert frozen.seen.total == frozen.seen.done == len(DATA) + 2
    assert frozen.registry.sent == []
    assert {p: p.lstat() for p in frozen.store.root.rglob("*")}.keys() == before.keys()


def test_a_flipped_bit_is_found_quarantined_and_repaired(frozen: Case) -> None:
    file = frozen.store.path("v1", "weights/a.bin")
    times = file.stat().st_mtime_ns
    wrong = flip_a_bit(file)
    summary = frozen.verify()
    (finding,) = summary.findings
    assert summary.is_sound
    assert (finding.problem, finding.path) == (Problem.BYTES, "weights/a.bin")
    assert finding.source == "registry"
    assert file.read_bytes() == DATA
    assert (file.stat().st_mtime_ns, stat.S_IMODE(file.stat().st_mode)) == (times, 0o444)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o555
    assert len(os.getxattr(file, "user.modelfs.sha256")) == 64
    assert frozen.store.quarantined() == {"acme/llama/v1/weights/a.bin": wrong}
    assert stat.S_IMODE(frozen.store.layout.quarantine.stat().st_mode) == 0o700
    assert len(frozen.registry.sent) == -(-len(DATA) // PART)
    assert not list(frozen.store.layout.pending_model(LLAMA).glob(".*"))
    assert frozen.verify().findings == ()


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"x"])
def test_a_wrong_size_needs_no_reading(frozen: Case, data: bytes) -> None:
    file = frozen.store.path("v1", "weights/a.bin")
    file.chmod(0o644)
    file.write_bytes(data)
    finding = frozen.one()
    assert finding.problem is Problem.SIZE
    assert finding.detail == f"{len(data)} bytes instead of {len(DATA)}"
    assert finding.is_repaired
    assert frozen.seen.done == 2
    assert file.read_bytes() == DATA


def test_missing_files_and_folders_come_back(frozen: Case) -> None:
    top = frozen.store.path("v1")
    for folder in (top, top / "weights"):
        folder.chmod(0o755)
    (top / "weights/a.bin").unlink()
    (top / "empty").unlink()
    (top / "weights").rmdir()
    top.chmod(0o555)
    found = {finding.path: finding.problem for finding in frozen.verify().findings}
    assert found == dict.fromkeys(["weights", "weights/a.bin", "empty"], Problem.MISSING)
    assert (top / "weights/a.bin").read_bytes() == DATA
    assert (top / "empty").read_bytes() == b""
    assert stat.S_IMODE((top / "weights").stat().st_mode) == 0o555
    assert stat.S_IMODE(top.stat().st_mode) == 0o555


def test_what_is_not_in_the_manifest_is_taken_out(frozen: Case) -> None:
    top = frozen.store.path("v1")
    top.chmod(0o755)
    (top / "more").mkdir()
    (top / "more/file").write_bytes(b"what is this")
    (top / "link").symlink_to("/etc/passwd")
    top.chmod(0o555)
    summary = frozen.verify()
    assert [f.path for f in summary.findings] == ["link", "more/file", "more"]
    assert {f.problem for f in summary.findings} == {Problem.EXTRA}
    assert summary.is_sound
    assert sorted(p.name for p in top.iterdir()) == ["config.json", "empty", "weights"]
    assert frozen.store.quarantined()["acme/llama/v1/more/file"] == b"what is this"


def test_a_link_or_a_folder_in_a_files_place_is_replaced(frozen: Case, tmp_path: Path) -> None:
    top = frozen.store.path("v1")
    top.chmod(0o755)
    (tmp_path / "elsewhere").write_bytes(b"{}")
    (top / "config.json").unlink()
    (top / "config.json").symlink_to(tmp_path / "elsewhere")
    (top / "empty").unlink()
    (top / "empty").mkdir()
    assert frozen.verify().is_sound
    assert not (top / "config.json").is_symlink()
    assert (top / "config.json").read_bytes() == b"{}"
    assert (top / "empty").is_file()
    assert (tmp_path / "elsewhere").read_bytes() == b"{}"


# ------------------------------------------------------------- several versions


def test_a_file_that_versions_share_is_read_once_and_repaired_in_all(frozen: Case) -> None:
    frozen.store.freeze("v2", frozen.put(config_json=b"[]", weights__a_bin=DATA))
    one, two = frozen.store.path("v1", "weights/a.bin"), frozen.store.path("v2", "weights/a.bin")
    assert one.stat().st_ino == two.stat().st_ino
    assert frozen.verify().read_bytes == len(DATA) + 2 + 2
    wrong = flip_a_bit(one)
    summary = frozen.verify()
    assert [(str(f.version), f.source) for f in summary.findings] == [
        ("acme/llama@v1", "registry"),
        ("acme/llama@v2", "acme/llama@v1"),
    ]
    assert one.read_bytes() == two.read_bytes() == DATA
    assert one.stat().st_ino == two.stat().st_ino
    assert set(frozen.store.quarantined().values()) == {wrong}
    assert len(frozen.store.quarantined()) == 2


@pytest.mark.parametrize("repairs", [True, False])
def test_a_shared_wrong_file_is_found_where_nobody_asked(frozen: Case, repairs: bool) -> None:
    frozen.store.freeze("v2", frozen.put(weights__a_bin=DATA))
    flip_a_bit(frozen.store.path("v1", "weights/a.bin"))
    summary = frozen.verify(V1, repairs=repairs)
    assert [f.version for f in summary.findings] == [V1, V2]
    assert summary.is_sound is repairs
    assert (frozen.store.path("v2", "weights/a.bin").read_bytes() == DATA) is repairs


LOCAL = ModelId("team-b", "llama")


def test_a_wrong_file_is_found_in_the_local_model_that_shares_it(frozen: Case) -> None:
    files = frozen.put(config_json=b"{}", weights__a_bin=DATA, empty=b"")
    local = frozen.store.freeze("v1", files, model=LOCAL, source=LLAMA)
    shared = frozen.store.layout.version(local) / "weights" / "a.bin"
    flip_a_bit(shared)
    found = frozen.verify(V1).findings
    assert [(f.version, f.source) for f in found] == [(V1, "registry"), (local, str(V1))]
    assert shared.read_bytes() == DATA
    assert shared.stat().st_ino == frozen.store.path("v1", "weights/a.bin").stat().st_ino


def test_a_folder_that_is_made_again_has_its_namespace_s_owner_and_mode(frozen: Case) -> None:
    top = frozen.store.path("v1")
    group = os.getgid() if os.getuid() else 2001
    namespace = NamespaceConfig(gid=group, mode=0o770)
    for folder in (top, top / "weights"):
        publishing.seal_folder(folder, namespace)
    top.chmod(0o750)
    remove_tree(top / "weights")
    top.chmod(0o550)
    frozen.verify(V1)
    for folder in (top, top / "weights"):
        assert (folder.stat().st_gid, stat.S_IMODE(folder.stat().st_mode)) == (group, 0o550)
    assert (top / "weights" / "a.bin").read_bytes() == DATA


def test_the_good_copy_of_another_version_is_linked_without_a_request(frozen: Case) -> None:
    frozen.store.freeze("v2", frozen.put(weights__a_bin=DATA), is_linked=False)
    flip_a_bit(frozen.store.path("v1", "weights/a.bin"))
    assert frozen.one(V1).source == "acme/llama@v2"
    assert frozen.registry.sent == []
    one, two = frozen.store.path("v1", "weights/a.bin"), frozen.store.path("v2", "weights/a.bin")
    assert one.stat().st_ino == two.stat().st_ino


def test_a_copy_that_is_wrong_too_is_not_linked(frozen: Case) -> None:
    frozen.store.freeze("v2", frozen.put(weights__a_bin=DATA), is_linked=False)
    for version in ("v1", "v2"):
        flip_a_bit(frozen.store.path(version, "weights/a.bin"))
    assert [f.source for f in frozen.verify().findings] == ["registry", "acme/llama@v1"]
    assert frozen.verify().findings == ()


def test_a_wrong_file_goes_from_the_caches_that_link_it(frozen: Case) -> None:
    file = frozen.store.path("v1", "weights/a.bin")
    cache = frozen.store.root / "cache"
    for host in ("node-a", "node-b"):
        (cache / host / "ab").mkdir(parents=True, exist_ok=True)
        os.link(file, cache / host / "ab/0123.45")
        (cache / host / "ab/other.45").write_bytes(b"other")
    flip_a_bit(file)
    frozen.verify()
    assert sorted(p.name for p in cache.glob("*/*/*")) == ["other.45", "other.45"]


# --------------------------------------------------------- what cannot be repaired


def damaged(frozen: Case) -> Path:
    file = frozen.store.path("v1", "weights/a.bin")
    flip_a_bit(file)
    return file


def test_an_object_that_changed_cannot_be_the_repair(frozen: Case) -> None:
    file = damaged(frozen)
    right = frozen.registry.objects["models/acme/llama/weights/a.bin"]
    frozen.put(weights__a_bin=DATA[::-1])
    summary = frozen.verify()
    (finding,) = summary.findings
    assert not summary.is_sound
    assert finding.error == "models/acme/llama/weights/a.bin has changed in the registry"
    assert finding.quarantined is not None
    assert finding.quarantined.is_file()
    assert not file.exists()
    assert error_of(frozen.store.path("v1")) == f"weights/a.bin: wrong bytes: {finding.error}"
    assert stat.S_IMODE(frozen.store.path("v1").stat().st_mode) == 0o555

    again = frozen.one()
    assert (again.problem, again.quarantined) == (Problem.MISSING, None)
    frozen.registry.objects["models/acme/llama/weights/a.bin"] = right
    assert frozen.one().is_repaired
    assert file.read_bytes() == DATA
    assert error_of(frozen.store.path("v1")) is None


def test_what_could_not_be_put_right_is_remembered_until_it_is(frozen: Case) -> None:
    layout = frozen.store.layout
    assert (versions.damage(layout, V1), versions.damaged(layout)) == (None, {})
    damaged(frozen)
    frozen.registry.is_down = True
    reason = f"weights/a.bin: wrong bytes: {frozen.one().error}"
    assert versions.damaged(layout) == {V1: reason}
    assert versions.damage(layout, V1) == reason
    frozen.verify(repairs=False)
    assert versions.damaged(layout)
    frozen.registry.is_down = False
    assert frozen.one().is_repaired
    assert versions.damaged(layout) == {}


def test_what_is_wrong_with_a_version_stays_remembered_when_a_shared_file_is_mended(
    case: Case,
) -> None:
    """A verify of v1 alone mends what it shares with v2, and knows no more of v2."""
    case.store.freeze("v1", case.put(weights__a_bin=DATA))
    case.store.freeze("v2", case.put(weights__a_bin=DATA, config_json=b"{}"))
    flip_a_bit(case.store.path("v2", "config.json"))
    case.registry.take("models/acme/llama/config.json")
    assert not case.verify().is_sound
    flip_a_bit(case.store.path("v1", "weights/a.bin"))
    assert [f.version for f in case.verify(V1).findings] == [V1, V2]
    assert "config.json" in versions.damaged(case.store.layout)[V2]
    assert "config.json" in (error_of(case.store.path("v2")) or "")


def test_a_version_that_was_deleted_is_not_damaged(frozen: Case) -> None:
    damaged(frozen)
    frozen.registry.is_down = True
    frozen.verify()
    publishing.retire(frozen.store.layout, V1)
    assert versions.damaged(frozen.store.layout) == {}


def test_an_object_that_is_gone_is_named(frozen: Case) -> None:
    damaged(frozen)
    frozen.registry.take("models/acme/llama/weights/a.bin")
    assert frozen.one().error == "models/acme/llama/weights/a.bin is gone from the registry"


def test_wrong_bytes_of_the_registry_never_get_a_place(frozen: Case) -> None:
    file = damaged(frozen)
    frozen.registry.flip("models/acme/llama/weights/a.bin")
    assert "the registry gives" in (frozen.one().error or "")
    assert not file.exists()
    assert not list(frozen.store.layout.pending_model(LLAMA).glob(".*"))


def test_a_registry_that_is_down_is_not_asked_again_for_each_file(frozen: Case) -> None:
    for path in ("weights/a.bin", "config.json"):
        flip_a_bit(frozen.store.path("v1", path))
    frozen.registry.is_down = True
    summary = frozen.verify()
    assert [f.is_repaired for f in summary.findings] == [False, False]
    assert "and 1 more" in (error_of(frozen.store.path("v1")) or "")
    asked = [request.operation for request in frozen.registry.sent]
    assert asked.count("GetObject") == repair.TRIES
    frozen.registry.is_down = False
    assert frozen.verify().is_sound


def test_a_request_that_fails_once_is_made_again(frozen: Case) -> None:
    damaged(frozen)
    frozen.registry.fail(2, RegistryUnavailable("a hiccup"))
    assert frozen.one().is_repaired


def test_looking_changes_nothing(frozen: Case) -> None:
    file = damaged(frozen)
    wrong = file.read_bytes()
    summary = frozen.verify(repairs=False)
    assert not summary.is_sound
    assert file.read_bytes() == wrong
    assert not frozen.store.layout.quarantine.exists()
    assert error_of(frozen.store.path("v1")) is None


def test_a_damaged_manifest_condemns_no_file(frozen: Case) -> None:
    manifest = frozen.store.layout.manifest(V1)
    right = manifest.read_bytes()
    sha256 = versions.read_manifest(frozen.store.layout, V1).files[0].sha256
    assert sha256 is not None
    for wrong in (right.replace(sha256.encode(), b"0" * 64), right[:50], b""):
        manifest.write_bytes(wrong)
        finding = frozen.one()
        assert (finding.problem, finding.is_repaired) == (Problem.MANIFEST, False)
        assert frozen.store.path("v1", "config.json").read_bytes() == b"{}"
        assert "damaged manifest" in versions.damaged(frozen.store.layout)[V1]
    manifest.unlink()
    assert frozen.one().problem is Problem.MANIFEST
    manifest.write_bytes(right)
    assert frozen.verify().is_sound
    assert versions.damaged(frozen.store.layout) == {}


def test_a_version_that_is_lost_whole_is_named(frozen: Case) -> None:
    frozen.store.path("v1").chmod(0o755)
    frozen.store.path("v1").rename(frozen.store.root / "oops")
    finding = frozen.one()
    assert (finding.problem, finding.is_repaired) == (Problem.VERSION, False)
    assert versions.damaged(frozen.store.layout).keys() == {V1}


def test_a_version_that_was_deleted_is_not_missed(frozen: Case) -> None:
    wanted = verify.all_versions(frozen.store.layout)
    publishing.retire(frozen.store.layout, V1)
    assert verify.all_versions(frozen.store.layout) == []
    assert frozen.verify(*wanted).findings == ()
    assert not frozen.store.path("v1").exists()


def test_a_version_that_is_deleted_meanwhile_is_no_finding(
    frozen: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete(*_: object) -> str:
        if frozen.store.path("v1").exists():
            publishing.retire(frozen.store.layout, V1)
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(verify, "sha256_of", delete)
    assert frozen.verify().findings == ()
    assert not frozen.store.path("v1").exists()


@pytest.mark.parametrize(
    ("number", "problem", "is_repaired"),
    [(errno.EIO, Problem.UNREADABLE, True), (errno.EACCES, Problem.DENIED, False)],
)
def test_a_disk_that_gives_no_bytes_is_repaired_and_a_lack_of_rights_is_not(
    frozen: Case,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    problem: Problem,
    is_repaired: bool,
) -> None:
    def refuse(path: Path, *rest: object) -> str:
        if path.name == "config.json":
            raise OSError(number, os.strerror(number))
        return sha256_of(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "sha256_of", refuse)
    finding = frozen.one()
    assert (finding.problem, finding.is_repaired) == (problem, is_repaired)
    assert frozen.store.path("v1", "config.json").exists()


def test_a_long_name_has_room_for_the_time(case: Case) -> None:
    name = "ä" * 127
    info = case.registry.place(f"models/acme/llama/{name}", DATA)
    case.store.freeze("v1", {name: (DATA, info.id.etag)})
    flip_a_bit(case.store.path("v1", name))
    assert case.one().is_repaired


# ------------------------------------------------------------ locks, pace, pages


def test_one_verify_at_a_time(frozen: Case) -> None:
    layout = frozen.store.layout
    with verify.locked(layout):
        with pytest.raises(Busy, match="another modelfs verify"), verify.locked(layout):
            pass
        with layout.verify_lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with verify.locked(layout):
        pass


def test_no_store_is_an_error_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no store"), verify.locked(Layout(tmp_path, "")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_all_versions_are_those_of_every_model(frozen: Case) -> None:
    other = ModelId("team-b", "gpt")
    frozen.store.freeze("v7", {"a": (b"a", "e")}, model=other)
    assert verify.all_versions(frozen.store.layout) == [V1, VersionId(other, "v7")]


def test_what_an_earlier_verify_left_is_swept(frozen: Case) -> None:
    left = frozen.store.layout.pending_model(LLAMA) / ".verify-123"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    frozen.verify()
    assert not left.exists()


def test_the_pace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    pace = Pace(1000)
    pace.keep(500)
    pace.keep(500)
    assert sum(slept) == pytest.approx(1.5, abs=0.1)  # the first sleep took no time here


def test_pages_that_were_in_memory_stay_and_others_go(
    frozen: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = frozen.store.path("v1", "weights/a.bin")
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, offset, count, how: dropped.append((offset, count))
    )
    page = rereading.PAGE_BYTES
    pages = -(-len(DATA) // page)
    monkeypatch.setattr(rereading, "_resident", lambda fd, size: bytes([0] * 3 + [1] * (pages - 3)))
    sha256_of(file, Pace(None), lambda _: None)
    assert dropped == [(0, 3 * page)]


def test_the_kernel_tells_which_pages_are_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        pages = -(-len(DATA) // rereading.PAGE_BYTES)
        assert rereading._resident(file.fileno(), len(DATA)) == b"\1" * pages
        assert rereading._resident(file.fileno(), 0) == b""


def test_reading_leaves_the_page_cache_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA * 60)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if any(rereading._resident(file.fileno(), size)):
            pytest.skip("the folder for temporary files is in memory")
        sha256_of(path, Pace(None), lambda _: None)
        assert not any(rereading._resident(file.fileno(), size))
        os.pread(file.fileno(), 1, 0)
        warm = sum(rereading._resident(file.fileno(), size))
        sha256_of(path, Pace(None), lambda _: None)
        assert sum(rereading._resident(file.fileno(), size)) == warm > 0
