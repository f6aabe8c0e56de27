"""cp, mv, install, rsync and archives on main/: as on a disk."""

import os
from pathlib import Path

import pytest

from tests.mount.twins import Twins, run

pytestmark = pytest.mark.mount


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of this disk to copy from: times, holes, empty files and folders."""
    folder = tmp_path / "source"
    folder.mkdir()
    run(
        folder,
        """
        mkdir -p a/b empty
        seq 1 50000 > a/1
        seq 1 10 > a/b/2
        : > none
        head -c 2000000 /dev/zero > zero
        truncate -s 3M hole
        printf data >> hole
        find . -exec touch -d '2024-02-03 04:05:06.789' {} +
        """,
    )
    return folder


def test_cp_in_each_of_its_ways_copies_as_on_a_disk(everywhere: Twins, source: Path) -> None:
    everywhere.same(
        """
        cp -a "$SOURCE" c
        diff -r "$SOURCE" c
        stat -c '%Y %s' c/a/1 c/zero
        cp --sparse=always c/hole h1; cp --sparse=never h1 h2; cmp h1 h2; cmp c/hole h1
        cp --reflink=auto c/zero h3; cmp c/zero h3
        cp --reflink=always c/zero absent; ls -s absent
        cp --backup=numbered c/none h3; cp -b c/a/1 h3; ls h3*
        cp -p --attributes-only c/a/1 attributes; stat -c '%s %Y' attributes
        cp --remove-destination c/none attributes; cmp c/none attributes
        cp -T c/none c/zero; cp c/none c/none
        cp -a c/. d; diff -r c d
        mkdir e; cp --parents c/a/b/2 e; find e | sort
        """,
        SOURCE=str(source),
    )


def test_mv_install_and_shred_leave_what_they_leave_on_a_disk(
    everywhere: Twins, source: Path
) -> None:
    everywhere.same(
        """
        cp -a "$SOURCE" c
        mv c/a c/renamed; mv -n c/none c/renamed/1; mv -b c/none c/zero; find c | sort
        mv -t . c/zero c/hole; mv zero hole; ls -A . c
        mv -T c/empty c/renamed; mv -T c/empty c/new; mv c c
        install -D -m 644 "$SOURCE"/a/1 i/j/k; install -b -C "$SOURCE"/a/1 i/j/k; find i | sort
        install -d i/l; install -p -t i/l "$SOURCE"/a/1 "$SOURCE"/none; stat -c %Y i/l/1
        shred -n 1 -z hole; cmp -n 2000000 hole /dev/zero
        shred -u i/l/1; ls i/l
        truncate -s -100 i/j/k; truncate -r c/renamed/b/2 i/l/none; truncate -s %4096 i/j/k
        stat -c %s i/j/k i/l/none
        """,
        SOURCE=str(source),
    )


def test_mv_brings_files_from_and_to_another_disk_without_a_word(
    everywhere: Twins, source: Path, tmp_path: Path
) -> None:
    said = everywhere.same(
        """
        cp -a "$SOURCE" "$OTHER"
        mv "$OTHER" c
        diff -r "$SOURCE" c
        mv c "$OTHER"
        diff -r "$SOURCE" "$OTHER"
        mv "$OTHER" c
        stat -c %Y c/a/1
        cp -a c "$OTHER"
        cp -a "$OTHER" d
        diff -r "$SOURCE" d
        rm -r "$OTHER"
        """,
        SOURCE=str(source),
        OTHER=str(tmp_path / "other"),
    )
    assert "=> 1" not in str(said)


@pytest.mark.ceph
def test_rsync_in_each_of_its_ways_copies_as_on_a_disk(ceph_twins: Twins, source: Path) -> None:
    ceph_twins.same(
        """
        seq 1 50000 > "$SOURCE"/a/1; rsync -a --inplace "$SOURCE"/ a; diff -r "$SOURCE" a
        seq 1 60000 > "$SOURCE"/a/1; rsync -a --inplace --no-whole-file "$SOURCE"/ a
        diff -r "$SOURCE" a
        head -c 9000 "$SOURCE"/a/1 > a/a/1; rsync -a --append "$SOURCE"/ a; diff -r "$SOURCE" a
        head -c 100 "$SOURCE"/a/1 > a/a/1; rsync --append-verify "$SOURCE"/a/1 a/a
        diff -r "$SOURCE" a
        rsync -a --partial --delay-updates "$SOURCE"/ b; diff -r "$SOURCE" b
        rsync -a --partial-dir=.part --delete-after "$SOURCE"/a/ b; diff -r "$SOURCE"/a b
        rsync -aS "$SOURCE"/ c; rsync -aHAX "$SOURCE"/ d; diff -r c d
        rsync -a --backup --suffix=.old "$SOURCE"/a/b/2 c/a/1; ls c/a
        rsync -a --temp-dir=. "$SOURCE"/a/1 c/new; cmp "$SOURCE"/a/1 c/new
        rsync -a --remove-source-files d/ e; find d -type f; diff -r "$SOURCE" e
        rsync -aniO --no-p --no-o --no-g "$SOURCE"/ e
        rsync -a --fsync --ignore-existing "$SOURCE"/ e
        """,
        SOURCE=str(source),
    )


@pytest.mark.ceph
def test_archives_are_packed_and_unpacked_as_on_a_disk(ceph_twins: Twins, source: Path) -> None:
    ceph_twins.same(
        """
        cp -a "$SOURCE" r; seq 1 9 > f
        zip -qr z.zip r; zip -q z.zip f; zip -qu z.zip r/a/b/2; zip -qd z.zip f; unzip -tq z.zip
        mkdir u; unzip -qo z.zip -d u; unzip -qo z.zip -d u; diff -r r u/r; stat -c %Y u/r/a/1
        unzip -p z.zip r/a/b/2 | md5sum
        printf changed > u/r/a/b/2; unzip -qn z.zip -d u; cat u/r/a/b/2
        unzip -qo z.zip -d u; cat u/r/a/b/2
        zip -qm m.zip f; ls f m.zip
        rm z.zip m.zip
        tar cf t.tar r; tar rf t.tar u/r/a/b/2; tar --delete -f t.tar r/none; tar tf t.tar | sort
        tar uf t.tar r; mkdir x; tar xf t.tar -C x
        tar xf t.tar -C x --overwrite; tar xf t.tar -C x --unlink-first
        diff -r r x/r
        tar --remove-files -cf r.tar x; ls -d x; rm r.tar t.tar
        tar czf t.tgz r; gzip -t t.tgz; gunzip -k t.tgz; tar xzf t.tgz --to-stdout r/a/b/2
        rm t.tgz t.tar
        """,
        SOURCE=str(source),
    )


def test_shutil_copies_and_moves_as_on_a_disk(twins: Twins, source: Path) -> None:
    import shutil

    def step(folder: Path) -> object:
        shutil.copytree(source, folder / "a")
        shutil.move(folder / "a" / "a", folder / "b")
        shutil.copyfile(folder / "b" / "1", folder / "c")
        shutil.copystat(folder / "b" / "1", folder / "c")
        shutil.make_archive(str(folder / "packed"), "zip", folder / "b")
        shutil.unpack_archive(folder / "packed.zip", folder / "unpacked")
        os.unlink(folder / "packed.zip")  # the clock is in it
        with pytest.raises(shutil.SameFileError):
            shutil.copy(folder / "c", folder / "c")
        shutil.rmtree(folder / "a")
        return int((folder / "c").stat().st_mtime), sorted(os.listdir(folder))

    twins.same(step)
