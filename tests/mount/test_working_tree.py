"""Shell commands on main/: they do what they do on a local disk. Scenarios run on both."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import twins as fixtures
from tests.mount.twins import A_MODEL, Twins, run
from tests.mounting import METADATA_TTL_S, Mount, wait_until

pytestmark = pytest.mark.mount

moto_shared, ceph_shared = fixtures.moto_shared, fixtures.ceph_shared
twins, everywhere, source = fixtures.twins, fixtures.everywhere, fixtures.source


# ------------------------------------------------------------- copy, list, compare


def test_cp_ls_and_diff_of_a_tree_are_those_of_a_disk(everywhere: Twins, source: Path) -> None:
    said = everywhere.same(
        """
        cp -r "$SOURCE"/model .
        cp -r --preserve=timestamps "$SOURCE"/model times
        cp -a "$SOURCE"/model/config.json archived.json
        cp -u "$SOURCE"/model/config.json archived.json
        cp -n times/config.json model/config.json
        diff -r "$SOURCE"/model model
        diff -r model times
        ls -R
        find . | sort
        find . -type f -printf '%p %s\\n' | sort
        cat model/config.json model/absent
        ls absent
        cp -r absent elsewhere
        wc -c model/weights/1.bin
        stat -c '%s %F' model/weights/1.bin model/weights/none
        stat -c %F model/weights
        diff -r model model/weights | sed 's/ *$//'
        """,
        SOURCE=str(source),
    )
    assert "No such file or directory" in str(said)


def test_ls_l_shows_sizes_kinds_and_set_times(twins: Twins, source: Path) -> None:
    long_listing = (
        "ls -lR --time-style=long-iso . | grep -v ^total | "
        "awk '$1 ~ /^-/ {print substr($1, 1, 1), $5, $6, $7, $8} $1 ~ /^d/ {print \"d\", $8}'"
    )
    said = twins.same(f'cp -a "$SOURCE"/model .\n{long_listing}', SOURCE=str(source))
    assert "- 3000000 2024-02-03 04:05 1.bin" in str(said)


def test_df_du_and_the_link_count_do_not_stop_a_script(twins: Twins) -> None:
    twins.same("cp /etc/hostname a\ndf . > /dev/null\ndu -s . > /dev/null\nstat -c %h a")


# ------------------------------------------------------------------------ remove


def test_rm_and_rmdir_remove_what_they_remove_on_a_disk(everywhere: Twins) -> None:
    everywhere.same(
        A_MODEL
        + """
        rm model/config.json
        rm model/config.json
        rm -f model/config.json
        rm model/weights
        rmdir model/weights
        rmdir model/empty
        rmdir model/absent
        rmdir model/weights/none
        unlink model/weights/none
        rm -r model/weights/a
        ls -A model model/weights
        rm model/weights/1.bin
        ls -A model/weights
        rmdir model/weights model
        ls -A
        mkdir model
        rm -rf model absent
        ls -A
        """
    )


def test_rm_r_of_many_files_in_many_folders_leaves_nothing(twins: Twins) -> None:
    twins.same(
        """
        for d in 1 2 3 4 5 6; do mkdir -p t/$d/x; touch t/$d/x/{1..15} t/$d/y; done
        find t | wc -l
        rm -r t/3
        find t | wc -l
        rm -r t
        ls -A
        """
    )


def test_a_folder_stays_when_its_last_file_goes_though_it_had_no_marker(twins: Twins) -> None:
    def put(folder: Path) -> object:
        if folder == twins.plain:
            (folder / "far" / "deep").mkdir(parents=True)
            (folder / "far" / "deep" / "f").write_bytes(b"x")
        else:
            twins.mount.bucket.put(twins.mount.key("far/deep/f"))
        return None

    put(twins.plain)
    put(twins.mount.main)
    twins.same("ls -R\nrm far/deep/f\nls -R\nrmdir far/deep\nls -R\nrmdir far\nls -A")


# -------------------------------------------------------------------------- move


def test_mv_of_files_is_that_of_a_disk(everywhere: Twins) -> None:
    everywhere.same(
        A_MODEL
        + """
        mkdir other
        mv model/config.json model/renamed.json
        mv model/renamed.json other/
        mv model/weights/1.bin other/renamed.json
        wc -c other/renamed.json
        mv -n model/weights/none other/renamed.json
        ls model/weights
        mv model/weights/none model
        mv model/weights/a/b/2.bin model/none
        wc -c model/none
        mv absent model
        mv model/none model/weights
        mv model/weights/none absent/x
        mv other/renamed.json model/weights/a
        mv -T other/renamed.json model/weights/a
        mv other/renamed.json other/renamed.json
        find . | sort
        """
    )


def test_mv_of_folders_is_that_of_a_disk(everywhere: Twins) -> None:
    everywhere.same(
        A_MODEL
        + """
        mkdir -p other/full/x empty
        touch other/full/f
        mv model renamed
        find . | sort
        mv -T renamed/weights empty
        mv -T empty other/full
        mv empty other
        mv other/full/x other/full/f
        mv -T other/full/x other/full/f
        mv -T other/full/f other/full/x
        mv other other/full
        mv other/empty .
        mv -T renamed/empty other/empty
        mv absent other
        find . | sort
        mkdir -p model/weights/a
        touch model/weights/a/new
        find model | sort
        """
    )


def test_a_moved_folder_without_markers_can_be_made_again(twins: Twins) -> None:
    run(twins.plain, "mkdir -p a/b/c; touch x; printf x > a/b/c/f; rm x")
    twins.mount.bucket.put(twins.mount.key("a/b/c/f"))
    twins.same("mv a d\nfind . | sort\nmkdir -p a/b/c\nfind . | sort\ntouch a/b/c/g\nfind . | sort")


def test_files_and_folders_move_between_two_models(mount: Mount, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    (plain / "llama" / "main").mkdir(parents=True)
    (plain / "qwen" / "main").mkdir(parents=True)
    (mount.path / "acme" / "qwen").mkdir()
    script = (
        "cd llama/main"
        + A_MODEL
        + """
        mkdir -p ../../qwen/main/have
        mv model/config.json ../../qwen/main/
        mv model/weights ../../qwen/main/have
        cd ../..
        find . -name .modelfs -prune -o -print | sort
        cat qwen/main/config.json
        md5sum qwen/main/have/weights/a/b/2.bin
        cp -r llama/main/model qwen/main/back
        mv -T qwen/main/back llama/main/again
        find . -name .modelfs -prune -o -print | sort
        """
    )
    assert run(mount.path / "acme", script) == run(plain, script)
    mount.stop()
    assert sorted(mount.objects("models/acme/")) == [
        *("", "llama/", "llama/again/", "llama/again/empty/", "llama/model/", "llama/model/empty/"),
        *("qwen/", "qwen/config.json", "qwen/have/", "qwen/have/weights/"),
        *("qwen/have/weights/1.bin", "qwen/have/weights/a/", "qwen/have/weights/a/b/"),
        *("qwen/have/weights/a/b/2.bin", "qwen/have/weights/none"),
    ]


# ------------------------------------------------------------------ make and touch


def test_mkdir_is_that_of_a_disk(twins: Twins) -> None:
    twins.same(
        """
        mkdir a
        mkdir a
        mkdir -p a/b/c/d/e a/b
        mkdir x/y
        touch file
        mkdir file
        mkdir -p file/x
        mkdir -p "$DEEP"
        printf leaf > "$DEEP"/leaf
        cat "$DEEP"/leaf
        find . | sort
        """,
        DEEP="/".join(["deep", *map(str, range(60))]),
    )


def test_touch_makes_files_and_sets_times(everywhere: Twins) -> None:
    everywhere.same(
        """
        touch new
        stat -c %s new
        printf old > old
        touch -d '2020-01-02 03:04:05' old
        stat -c '%Y %s' old
        touch -d '2021-01-01' old made
        stat -c '%Y %s' old made
        touch -r old new
        touch -c absent
        touch absent/x
        touch -d '2035-01-01' future
        cat old
        printf more >> made
        touch -d '2022-02-02' made
        cp -p made copy
        mv copy moved
        stat -c %Y moved
        touch old
        test $(( $(date +%s) - $(stat -c %Y old) )) -lt 30
        find . -newer moved -name 'm*'
        """
    )


# ----------------------------------------------------------------- a folder's time


def test_the_time_of_a_folder_moves_when_names_in_it_come_and_go(everywhere: Twins) -> None:
    def step(folder: Path) -> object:
        (folder / "d").mkdir()
        changes: list[Callable[[], object]] = [
            lambda: (folder / "d" / "a").write_text("a"),
            lambda: (folder / "d" / "a").write_text("again"),
            lambda: (folder / "d" / "a").read_text(),
            lambda: (folder / "d" / "a").rename(folder / "d" / "b"),
            lambda: (folder / "d" / "c").mkdir(),
            lambda: (folder / "d" / "c").rmdir(),
            lambda: (folder / "d" / ".~local").write_text("x"),
            lambda: (folder / "d" / ".~local").unlink(),
            lambda: (folder / "d" / "b").rename(folder / "b"),
        ]
        moved = []
        for change in changes:
            before = (folder / "d").stat().st_mtime_ns
            time.sleep(0.02)  # a disk's clock may tick every 10 ms
            change()
            moved.append((folder / "d").stat().st_mtime_ns > before)
        return moved

    expected = [True, False, False, True, True, True, True, True, True]
    assert everywhere.same(step) == expected


def test_the_time_of_a_folder_moves_when_others_put_something_into_it(moto_mount: Mount) -> None:
    (moto_mount.main / "d").mkdir()
    (moto_mount.main / "d" / "a").write_text("a")
    before = (moto_mount.main / "d").stat().st_mtime_ns
    time.sleep(2 * METADATA_TTL_S)
    assert (moto_mount.main / "d").stat().st_mtime_ns == before
    moto_mount.bucket.put(moto_mount.key("d/b"), b"b")
    wait_until(lambda: (moto_mount.main / "d").stat().st_mtime_ns > before)
    assert (moto_mount.main / "d" / "b").read_bytes() == b"b"


def test_a_module_is_found_by_a_python_that_has_looked_before(everywhere: Twins) -> None:
    program = (
        "import sys; sys.path.insert(0, '.'); sys.dont_write_bytecode = True\n"
        "try: import written_later\n"
        "except ImportError: print('absent')\n"
        "open('written_later.py', 'w').write('answer = 42')\n"
        "import written_later; print(written_later.answer)\n"
    )

    def step(folder: Path) -> object:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout

    assert everywhere.same(step) == "absent\n42\n"
