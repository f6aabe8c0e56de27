"""Editors on main/: vim, nano, ed and sed -i, as on a disk; what lies beside a file meanwhile."""

import contextlib
import errno
import fcntl
import mmap
import os
import pty
import shutil
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.twins import Twins, check_bucket
from tests.mounting import METADATA_TTL_S, refused

pytestmark = pytest.mark.mount

# Debian's vim-tiny has no other name; both write files in the same way.
VIM = shutil.which("vim") or "vim.tiny"
EDIT = f'edit() {{ {VIM} -N -u NONE -i NONE -es "$@" < /dev/null; }}\n'
NANO_LIMIT_S = 20.0


def test_vim_saves_and_keeps_its_backups_as_on_a_disk(everywhere: Twins) -> None:
    everywhere.same(
        EDIT
        + r"""
        printf 'one\ntwo\n' > f
        try() { edit -c "set $1" -c "%s/$/ $1/" -c wq f; echo $?; cat f; }
        for o in backupcopy=yes backupcopy=no backupcopy=auto; do try $o; done
        for o in nowritebackup fsync nofsync; do try $o; done
        ls -A
        edit -c 'set backup' -c 'normal oa' -c w -c 'normal ob' -c wq f; cat f f~
        edit -c 'set backup backupcopy=yes backupext=.bak' -c 'normal oa' -c wq f; cat f f.bak
        edit -c 'set patchmode=.orig' -c 'normal op' -c wq f; cat f f.orig
        edit -c 'w new' -c q f; edit -c 'r f' -c 'w >> new' -c q! absent; cat new
        edit -c 'normal ox' -c preserve -c 'w' -c q f; cat f; ls -A
        edit -c 'normal ox' -c 'q!' f; cat f
        ls -A
        """
    )


def test_vim_twice_within_a_second_keeps_both_edits(everywhere: Twins) -> None:
    """vim takes a moved mtime for another's change, and drops the edit where nobody answers."""
    said = everywhere.same(
        EDIT
        + r"""
        echo one > f
        for n in 1 2 3 4 5 6 7 8; do edit -c "normal Gorun $n" -c wq f; echo $?; done
        edit -c 'normal Goa' -c w -c 'normal Gob' -c w -c 'normal Goc' -c wq f
        cat f
        """
    )
    assert "run 7\nrun 8\na\nb\nc\n" in str(said)


def _overwrite(path: Path) -> None:
    path.write_bytes(b"two")


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"two")


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"two")
    new.replace(path)


def _write_through_a_mapping(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0] = 7


@pytest.mark.ceph
def test_the_time_that_stat_shows_does_not_move_after_close(ceph_twins: Twins) -> None:
    ways: list[Callable[[Path], None]] = [
        _overwrite,
        _append,
        _replace,
        _write_through_a_mapping,
        lambda path: os.truncate(path, 1),
    ]
    paths = [ceph_twins.mount.main / f"f{number}" for number in range(len(ways))]
    at_close = {}
    for path, change in zip(paths, ways, strict=True):
        path.write_bytes(b"one")
        before = path.stat().st_mtime_ns
        change(path)
        at_close[path] = path.stat().st_mtime_ns
        assert at_close[path] > before
    end = time.monotonic() + 2 * METADATA_TTL_S
    while time.monotonic() < end:
        assert {path: path.stat().st_mtime_ns for path in paths} == at_close
        time.sleep(0.02)
    check_bucket(ceph_twins.mount)


# ------------------------------------------------------------------------ nano


def nano(folder: Path, name: str, *keys: bytes, options: tuple[str, ...] = ()) -> None:
    """Run nano on a terminal, and type when it has drawn its screen."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        ["nano", "--ignorercfiles", *options, name],
        cwd=folder,
        env={**os.environ, "TERM": "vt100", "HOME": str(folder.parent)},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    drawn = b""
    try:
        with contextlib.suppress(OSError):  # EIO: nano has ended
            while shown := os.read(screen, 65536):
                drawn += shown
                if keys and b"^X" in drawn:  # its last lines name the keys
                    os.write(screen, b"".join(keys))
                    keys = ()
        assert process.wait(NANO_LIMIT_S) == 0, drawn
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def test_nano_saves_and_keeps_its_backups_as_on_a_disk(everywhere: Twins) -> None:
    write, leave = b"\x0f\r", b"\x18"

    def step(folder: Path) -> object:
        (folder / "f").write_text("one\n")
        nano(folder, "f", b"zero ", write, leave)
        nano(folder, "f", b"a ", write, b"b ", write, leave, options=("--backup",))
        nano(folder, "f", b"c ", write, leave, options=("--locking",))
        nano(folder, "new", b"typed", write, leave)
        nano(folder, "f", leave)
        return {name: (folder / name).read_text() for name in sorted(os.listdir(folder))}

    assert everywhere.same(step) == {
        "f": "c a b zero one\n",
        "f~": "a zero one\n",
        "new": "typed\n",
    }


# ------------------------------------------------------------------- line by line


def test_ed_sed_and_perl_edit_in_place_as_on_a_disk(everywhere: Twins) -> None:
    everywhere.same(
        r"""
        seq 1 3000 > f
        printf '1d\na\nappended\n.\nw\nq\n' | ed -s f; head -n 3 f
        printf ',s/7/seven/g\nw\nw other\nq\n' | ed -s f; cmp f other
        sed -i.bak -e 's/2/two/' f other; sed -i 5d f; ls -A
        perl -pi -e 's/3/three/' f; perl -pi.orig -e 's/4/four/' f; ls -A
        cp f was; sed -i s/8/eight/ f; diff was f > p; patch -b was p; cmp was f; ls was*
        patch -R was p; patch --dry-run was p; cmp was was.orig
        sort -u -o f f; sort -m -o f f was; tee -a f < p > /dev/null; uniq f u; split -b 4K f part.
        cat part.* | cmp - f; csplit -s f 9; cat xx00 xx01 | cmp - f
        md5sum *
        """
    )


@pytest.mark.ceph
def test_what_editors_lay_beside_a_file_is_never_in_the_registry(ceph_twins: Twins) -> None:
    """Locks, swap files and files that are saved by themselves: of vim, nano and emacs."""
    folder, mount = ceph_twins.mount.main, ceph_twins.mount
    (folder / "f").write_text("f")
    litter = (".f.swp", ".f.swpx", ".f.swo", ".#f", "#f#", ".~f", ".~lock.f#")
    with mount.counting() as sent:
        for name in litter:
            (folder / name).write_text(name)
            assert (folder / name).read_text() == name
        for name in litter:
            (folder / name).unlink()
    assert "PutObject" not in sent
    assert "DeleteObject" not in sent
    with refused(errno.EPERM):  # emacs makes a file then, when it cannot lock by a link
        os.symlink("me@here.1:2", folder / ".#f")
