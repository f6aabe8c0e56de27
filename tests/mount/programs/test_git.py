"""git on main/: a repository of its own, clones, and what git status costs."""

from pathlib import Path

import pytest

from tests.mount.twins import Twins, check_bucket, difference, run

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

# Who, when and how are the same on both, so that the commits are.
SETTINGS = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_AUTHOR_DATE": "2024-02-03T04:05:06Z",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_COMMITTER_DATE": "2024-02-03T04:05:06Z",
}


def same(twins: Twins, script: str, **variables: str) -> str:
    """Run a script on both and compare what it said: an index has the inodes in it."""
    on_disk, on_mount = (run(folder, script, **SETTINGS, **variables) for folder in twins.folders)
    assert on_mount == on_disk, difference(on_disk, on_mount)
    check_bucket(twins.mount)
    return on_disk


def test_a_git_repository_lives_in_main(ceph_twins: Twins) -> None:
    said = same(
        ceph_twins,
        """
        git init -q -b main . && mkdir src && seq 1 100 > src/f && echo a > a && echo b > b
        git add . && git commit -qm one && git status --short && git log --oneline
        echo more >> src/f && rm b && git mv a c && echo new > new && git status --short
        git diff --stat && git add -A && git commit -qm two && git rev-parse HEAD
        git checkout -q -b other HEAD~1 && cat b && git status --short
        echo other > b && git commit -qam three && git checkout -q main && ls
        git merge -q -m merged other; git status --short
        git rm -q b; git commit -qm merged; git log --oneline --graph
        git stash list; echo x > c; git stash -q; cat c; git stash pop -q; cat c; git checkout -q c
        git tag -a v1 -m v1 && git describe && git branch -d other && git reset -q --hard v1
        git clean -nd; git gc -q; git fsck; git count-objects -v | grep -v size
        """,
    )
    assert "merged" in said


def test_repositories_are_cloned_into_main_and_within_it(ceph_twins: Twins, tmp_path: Path) -> None:
    """Hard links, with which git clones on one disk, and mode bits, which main/ has not."""
    source = tmp_path / "source"
    source.mkdir()
    run(
        source,
        "git init -q -b main . && seq 1 100 > f && echo 'exit 0' > run && chmod +x run && "
        "git add . && git commit -qm one",
        **SETTINGS,
    )
    same(
        ceph_twins,
        """
        git clone -q "$SOURCE" one && git -C one status --short && cmp one/f "$SOURCE"/f
        git clone -q one two && git -C two status --short && git -C two fsck
        echo more >> two/f && git -C two commit -qam more && git -C two rev-parse HEAD
        git -C one pull -q ../two main && git -C one log --oneline && cmp one/f two/f
        git clone -q --bare one bare.git && git -C two push -q ../bare.git main:pushed
        git -C bare.git branch && sh one/run
        rm -rf one && ls
        """,
        SOURCE=str(source),
    )


def test_git_status_is_a_few_requests_and_reads_nothing(ceph_twins: Twins) -> None:
    mount = ceph_twins.mount
    make = "git init -q . && for d in 1 2 3; do mkdir $d; touch $d/{1..9}; done"
    run(mount.main, f"{make} && git add . && git commit -qm one", **SETTINGS)
    with mount.counting() as sent:
        assert "=> 0" in run(mount.main, "git status --short", **SETTINGS)
    assert "GetObject" not in sent
    assert sum(sent.values()) <= 10
