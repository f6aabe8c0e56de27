"""Redirections, dd, sed, tar, rsync, odd names on main/: as on a disk. Scenarios run on both."""

from pathlib import Path

import pytest

from tests.mount import twins as fixtures
from tests.mount.twins import Twins, run
from tests.mounting import Mount

pytestmark = pytest.mark.mount

moto_shared, ceph_shared = fixtures.moto_shared, fixtures.ceph_shared
twins, everywhere, source = fixtures.twins, fixtures.everywhere, fixtures.source


def test_the_shell_s_redirections_are_those_of_a_disk(twins: Twins) -> None:
    twins.same(
        """
        printf one > f
        printf two >> f
        cat f
        : > f
        stat -c %s f
        seq 1 1000 > f
        seq 1001 2000 >> f
        md5sum f
        printf new > f
        cat f
        printf more >> appended
        cat appended
        set -o noclobber
        printf again > f
        set +o noclobber
        (printf a; printf b >&2; printf c) > both 2>&1
        cat both
        tee t1 t2 < f
        cat < absent
        printf x 1<> f
        cat f
        """
    )


def test_truncate_is_that_of_a_disk(twins: Twins) -> None:
    twins.same(
        """
        seq 1 100000 > f
        cp f same
        truncate -s 1000 f
        md5sum f
        truncate -s 20M f
        md5sum f
        truncate -s 0 f
        stat -c %s f
        truncate -s +5 f
        od -c f
        truncate -s 7 new
        truncate -c -s 7 absent
        truncate -s 588895 same
        truncate -s 588895 same
        md5sum same
        """
    )


def test_dd_writes_into_the_middle_of_a_file(twins: Twins) -> None:
    twins.same(
        """
        head -c 10000000 /dev/zero | tr '\\0' 'z' > f
        printf middle | dd of=f bs=1 seek=5000000 conv=notrunc status=none
        md5sum f
        printf end | dd of=f bs=1 seek=10000010 conv=notrunc status=none
        md5sum f
        dd if=f of=g bs=64k skip=3 count=9 status=none
        md5sum g
        printf cut | dd of=f bs=1 seek=100 status=none
        md5sum f
        dd if=/dev/zero of=synced bs=1M count=3 conv=fsync status=none
        """
    )


def test_sed_in_place_patch_and_split_edit_files(twins: Twins) -> None:
    twins.same(
        """
        seq 1 2000 > f
        cp f was
        sed -i 's/1/one/' f
        sed -i.bak '5d' f
        diff was f > p
        patch -s was p
        cmp was f
        split -n 4 f part.
        cat part.* | cmp - f
        sort -o f -r f
        md5sum f
        install -m 600 f installed
        gzip f
        gunzip f.gz
        md5sum f
        """
    )


# ----------------------------------------------------------------- archives, rsync


def test_tar_keeps_times_and_bytes(everywhere: Twins, source: Path) -> None:
    run(source, "tar cf ../model.tar model; tar czf ../model.tgz model")
    everywhere.same(
        """
        tar xf "$FROM"/model.tar
        diff -r model "$FROM"/source/model
        stat -c %Y model/config.json
        tar xf "$FROM"/model.tar
        tar cf - -C model . | tar tf - | sort
        mkdir z
        tar xzf "$FROM"/model.tgz -C z
        diff -r z/model model
        """,
        FROM=str(source.parent),
    )


def test_rsync_copies_once_and_deletes(everywhere: Twins, source: Path) -> None:
    everywhere.same(
        """
        rsync -a "$SOURCE"/model .
        diff -r model "$SOURCE"/model
        stat -c %Y model/weights/1.bin
        rsync -ai --omit-dir-times --no-perms --no-owner --no-group "$SOURCE"/model .
        """,
        SOURCE=str(source),
    )
    run(source, "echo changed > model/config.json; rm model/weights/none; touch model/fresh")
    everywhere.same(
        """
        rsync -a --delete "$SOURCE"/model .
        rsync -aiO --no-perms --no-owner --no-group --delete "$SOURCE"/model .
        diff -r model "$SOURCE"/model
        rsync -a --inplace --checksum "$SOURCE"/model/config.json in-place
        rsync -a model/ copied
        diff -r copied model
        find . | sort
        """,
        SOURCE=str(source),
    )


def test_a_second_rsync_writes_nothing_to_the_registry(moto_mount: Mount, source: Path) -> None:
    command = f"rsync -a '{source}/model' ."
    assert "=> 0" in run(moto_mount.main, command)
    with moto_mount.counting() as sent:
        assert "=> 0" in run(moto_mount.main, command)
    assert not {name for name in sent if "list" not in name.lower()}


# --------------------------------------------------------------- names, what is not


def test_odd_names_are_kept_as_they_are(everywhere: Twins) -> None:
    everywhere.same(
        """
        mkdir 'with space' $'new\\nline' 'größe 模型' '-dash' '.hidden' 'a+b=c&d?e#f%20'
        for d in */ .hidden/; do printf %s "$d" > "./$d/same \\$name"; done
        printf x > "$LONG"
        cat "$LONG"
        mv "$LONG" '*'
        cat '*'
        printf y > $'tab\\there\\001and\\177'
        printf z > 'trailing.'
        printf q > '~back`tick"quote'\\'''
        printf %s é > $'e\\u0301'
        printf %s é > $'\\u00e9'
        mv 'größe 模型' $'\\u00fc ber\\nall'
        find . -print0 | sort -z | od -c | md5sum
        cat ./*/same*
        touch "$TOO_LONG"
        touch 'v1' 'main' 'latest' '.modelfs'
        ls -A
        rm -r -- -dash .hidden
        """,
        LONG="ü" * 127 + "x",
        TOO_LONG="x" * 256,
    )


def test_chmod_and_chown_succeed_and_change_nothing(moto_mount: Mount) -> None:
    (moto_mount.main / "f").write_text("x")
    before = (moto_mount.main / "f").stat()
    with moto_mount.counting() as sent:
        said = run(
            moto_mount.main,
            "chmod 600 f\nchmod +x f\nchown 1234:1234 f\nchgrp 77 f\nchmod -R go-rwx .",
        )
    assert said.count("=> 0") == 5
    after = (moto_mount.main / "f").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, 0, 0)
    assert after.st_mtime_ns == before.st_mtime_ns
    assert not {name for name in sent if "list" not in name.lower()}


def test_links_and_special_files_are_refused_with_eperm(moto_mount: Mount) -> None:
    (moto_mount.main / "f").write_text("x")
    said = run(moto_mount.main, "ln f hard\nln -s f soft\nmkfifo pipe\nmknod null c 1 3\nls -A")
    assert said.count("Operation not permitted") == 4
    assert said.endswith("$ ls -A\nf\n=> 0\n")
