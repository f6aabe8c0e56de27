"""Two namespaces, three users: what each may do in the mount and in the store, as themselves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfs.mount.confining import confined
from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, wait_until

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user"),
]

ACME, TEAM_B = 3001, 3002  # groups, each the owner of a namespace
# uid, primary group, supplementary groups
ANNA = (4001, ACME, ())
BEN = (4002, TEAM_B, ())
CLEO = (4003, 4003, (ACME,))  # of acme by a supplementary group alone
DORA = (4004, 4004, (ACME, TEAM_B))
NOBODY = (65534, 65534, ())
DENIED = 13
User = tuple[int, int, tuple[int, ...]]

# Runs each line of Python of stdin as one user below a folder; prints each one's errno, or 0.
ATTEMPT = """
import json, os, sys
uid, gid, groups, place = json.loads(sys.argv[1])
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
os.umask(int(sys.argv[2]))
found = []
for line in sys.stdin:
    try:
        exec(line)
        found.append(0)
    except OSError as error:
        found.append(error.errno)
print(json.dumps(found))
"""

READS = [
    "os.listdir('acme')",
    "os.listdir('acme/llama')",
    "os.listdir('acme/llama/main')",
    "open('acme/llama/main/a').read()",
    "open('acme/llama/v1/a').read()",
    "os.readlink('acme/llama/latest')",
    "os.stat('acme/llama')",
    "os.getxattr('acme/llama/v1', 'user.modelfs.digest')",
    "os.listdir('acme/llama/.modelfs')",
    "open('acme/llama/.modelfs/versions/v1.json').read()",
    "open('acme/llama/.modelfs/versions/v1.sha256').read()",
    "open('acme/llama/.modelfs/aliases.jsonl').read()",
]
WRITES = [
    "open('acme/llama/main/a', 'r+').write('mine')",
    "open('acme/llama/main/new-{n}', 'w').write('x')",
    "os.mkdir('acme/llama/main/folder-{n}')",
    "os.rename('acme/llama/main/new-{n}', 'acme/llama/main/newer-{n}')",
    "os.unlink('acme/llama/main/newer-{n}')",
    "os.mkdir('acme/model-{n}')",
    "os.mkdir('acme/llama/v{n}')",
    "os.symlink('v1', 'acme/llama/alias-{n}')",
    "os.unlink('acme/llama/alias-{n}')",
    "os.setxattr('acme/llama', 'user.modelfs.description', b'mine')",
    "os.setxattr('acme/llama/main/a', 'user.modelfs.cached', b'all')",
]


def attempts(user: User, place: Path, lines: list[str], umask: int = 0o22) -> list[int]:
    """Run lines as a user with a folder as the current one; return the errno of each, or 0."""
    uid, gid, groups = user
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPT, json.dumps([uid, gid, groups, ""]), str(umask)],
        input="\n".join(lines),
        cwd=place,  # entered as root: the folders above are the test's alone
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    found: list[int] = json.loads(done.stdout)
    return found


@pytest.fixture
def proxy(moto_bucket: S3Endpoint) -> Iterator[FaultyProxy]:
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        yield proxy


@pytest.fixture
def mount(moto_bucket: S3Endpoint, proxy: FaultyProxy, make_mount: MakeMount) -> Mount:
    """acme/llama with a version, and team-b/llama, each for its group alone."""
    mount = make_mount(
        moto_bucket,
        endpoint=proxy.endpoint,
        metadata_ttl=30,
        **{
            "namespaces.acme": {"gid": ACME, "mode": "0770"},
            "namespaces.team-b": {"gid": TEAM_B, "mode": "0770"},
        },
    )
    for namespace in ("acme", "team-b"):
        (mount.path / namespace / "llama").mkdir(parents=True)
    (mount.main / "a").write_text("acme's")
    mount.freeze("v1")
    wait_until(lambda: (mount.model / "latest").is_symlink())
    return mount


def numbered(lines: list[str], number: int) -> list[str]:
    return [line.replace("{n}", str(number)) for line in lines]


def test_a_user_of_one_namespace_can_do_nothing_in_another(mount: Mount) -> None:
    for user in (BEN, NOBODY):
        everything = READS + numbered(WRITES, 9)
        assert attempts(user, mount.path, everything) == [DENIED] * len(everything)
    assert set(mount.objects()) == {"", "a"}
    assert not (mount.model / "v9").exists()


@pytest.mark.parametrize("umask", [0o22, 0o77, 0])
def test_its_own_users_can_do_all_whatever_their_umask(mount: Mount, umask: int) -> None:
    for number, user in enumerate((ANNA, CLEO, DORA, (0, 0, ())), 2):
        everything = READS + numbered(WRITES, number)
        assert attempts(user, mount.path, everything, umask) == [0] * len(everything)
    found = (mount.main / "folder-2").stat()
    assert (found.st_gid, found.st_mode & 0o777) == (ACME, 0o770)
    assert (mount.main / "a").stat().st_mode & 0o777 == 0o660


def test_nobody_makes_a_namespace_but_the_daemon_s_user(mount: Mount) -> None:
    for user in (ANNA, DORA, NOBODY):
        assert (
            attempts(user, mount.path, ["os.mkdir('mine')", "os.rmdir('team-b')"]) == [DENIED] * 2
        )
    assert attempts((0, 0, ()), mount.path, ["os.mkdir('mine')"]) == [0]


def test_what_moves_between_namespaces_is_moved_by_who_may_write_both(mount: Mount) -> None:
    move = ["os.rename('acme/llama/main/a', 'team-b/llama/main/a')"]
    assert attempts(ANNA, mount.path, move) == [DENIED]
    assert attempts(BEN, mount.path, move) == [DENIED]
    assert attempts(DORA, mount.path, move) == [0]


def test_the_plain_folders_of_the_store_are_for_the_same_users(mount: Mount) -> None:
    plain = [
        "os.listdir('models/acme')",
        "open('models/acme/llama/v1/a').read()",
        "open('manifests/acme/llama/v1.json').read()",
        "os.listdir('pending/acme')",
        "os.listdir('retired/acme')",
    ]
    private = [f"os.listdir('{name}/' + os.uname().nodename)" for name in ("cache", "staged")]
    changes = [
        "open('models/acme/llama/v1/a', 'w')",
        "os.unlink('models/acme/llama/v1/a')",
        "os.rename('models/acme/llama/v1', 'models/acme/llama/v2')",
        "os.rename('models/acme/llama', 'models/acme/mine')",
        "os.mkdir('models/acme/mine')",
        "os.unlink('manifests/acme/llama/v1.json')",
        "os.mkdir('pending/acme/llama')",
    ]
    for user in (ANNA, CLEO):
        assert attempts(user, mount.store, plain) == [0] * len(plain)
        assert attempts(user, mount.store, changes) == [DENIED] * len(changes)
        assert attempts(user, mount.store, private) == [DENIED] * 2
    for user in (BEN, NOBODY):
        lines = [*plain, *private, *changes]
        assert attempts(user, mount.store, lines) == [DENIED] * len(lines)
    assert (mount.store / "models" / "acme" / "llama" / "v1" / "a").read_text() == "acme's"


def test_the_status_names_nothing_of_a_namespace_to_who_may_not_list_it(
    mount: Mount, proxy: FaultyProxy
) -> None:
    """Uploads that wait, hidden keys and freezes: of one's own namespaces, of all to root."""
    for namespace in ("acme", "team-b"):
        mount.bucket.put(f"models/{namespace}/bad/..", b"x")
        (mount.path / namespace / "bad" / "main").exists()
    is_put = lambda head: head.startswith(b"PUT ")  # noqa: E731
    with proxy.faulty(Fault.UNAVAILABLE, is_put):
        for namespace in ("acme", "team-b"):
            with pytest.raises(OSError, match="Input/output error"):
                (mount.path / namespace / "llama" / "main" / "waits").write_text("x")
        everything = json.dumps(mount.status())
        assert all(f"{name}/llama/main/waits" in everything for name in ("acme", "team-b"))
        for user, seen, unseen in ((ANNA, "acme", "team-b"), (BEN, "team-b", "acme")):
            text = status_for(user, mount)
            assert f"{seen}/llama/main/waits" in text
            assert unseen not in text
        assert "acme" not in status_for(NOBODY, mount)
        both = status_for(DORA, mount)
        assert "acme/llama" in both
        assert "team-b/llama" in both
        assert json.loads(both)["counters"] == mount.status()["counters"]
    for name in ("README", "status.json"):
        assert attempts(NOBODY, mount.path, [f"open('.modelfs/{name}', 'r+')"]) == [DENIED]


def status_for(user: User, mount: Mount) -> str:
    uid, gid, groups = user
    group_words = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    command = ["setpriv", *group_words, "--regid", str(gid), "--reuid", str(uid)]
    done = subprocess.run(
        [*command, "cat", ".modelfs/status.json"],
        cwd=mount.path,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "status",
    [
        {"uploads": [{"path": "acme/llama/main/a"}, {"path": "b/x/main/a"}]},
        {"freezes": [{"version": "acme/llama@v1"}, {"version": "b/x@v1"}]},
        {"any": {"failed": {"acme/llama@v1": "why", "b/x@v1": "why"}}},
        {"any": ["acme/llama", "b/x"]},
        {"prefix": "models/", "hidden_keys": [{"key": "models/acme/x/.."}, {"key": "models/b/."}]},
    ],
)
def test_whatever_names_a_model_is_left_out(status: dict[str, Any]) -> None:
    everyone: Callable[[str], bool] = lambda name: True  # noqa: E731
    assert confined(status, everyone) == status
    text = json.dumps(confined(status, lambda name: name != "acme"))
    assert "acme" not in text
    assert "b/" in text
