"""sqlite on main/: with a rollback journal and in WAL mode, several connections, as on a disk."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.mount.twins import Twins

pytestmark = pytest.mark.mount

ROWS = 4000
JOURNALS = ("delete", "truncate", "wal")

# What a second process does meanwhile: reads, and writes a row of its own.
SECOND = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=20)
print(database.execute("select count(*), sum(n) from t").fetchone())
database.execute("insert into t values (-1, 'second')")
database.commit()
"""


def test_the_sqlite3_command_keeps_a_database_as_on_a_disk(everywhere: Twins) -> None:
    everywhere.same(
        """
        q() { sqlite3 -batch "$@" < /dev/null; }
        q a 'create table t (n, s); insert into t values (1, "one"), (2, "two"); select * from t'
        q a 'pragma journal_mode = wal; insert into t values (3, "three"); select count(*) from t'
        q a 'begin; delete from t; rollback; select count(*) from t; pragma integrity_check'
        q a '.dump' > dump; q b < dump; q b '.read dump' 'select sum(n) from t'
        q a '.backup c' 'vacuum into "d"'; q c 'pragma integrity_check'; q d 'select * from t'
        q a 'create index i on t (s); vacuum; analyze; pragma journal_mode = delete'
        ls -A
        """
    )


@pytest.mark.ceph
@pytest.mark.parametrize("journal", JOURNALS)
def test_two_processes_share_a_sqlite_database_in_each_journal_mode(
    ceph_twins: Twins, journal: str
) -> None:
    def step(folder: Path) -> object:
        path = folder / "db.sqlite"
        with closing(sqlite3.connect(path)) as database:
            mode = database.execute(f"pragma journal_mode = {journal}").fetchone()
            database.execute("create table t (n, s)")
            for n in range(3):
                database.execute("insert into t values (?, 'one')", (n,))
                database.commit()
            rows = [(n, f"row {n} " * 20) for n in range(ROWS)]
            database.executemany("insert into t values (?, ?)", rows)
            database.commit()
            command = [sys.executable, "-c", SECOND, str(path)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seen = database.execute("select count(*), sum(n) from t").fetchone()
            database.execute("delete from t where n % 2")
            database.commit()
            names = sorted(os.listdir(folder))
        with closing(sqlite3.connect(path)) as database:
            left = database.execute("select count(*), sum(n) from t").fetchone()
            checked = database.execute("pragma integrity_check").fetchall()
        return mode, said, seen, names, left, checked, sorted(os.listdir(folder))

    assert "ok" in str(ceph_twins.same(step))


@pytest.mark.ceph
def test_a_database_that_is_open_is_whole_after_its_writer_was_killed(ceph_twins: Twins) -> None:
    """Of a transaction that a kill cut off nothing is left, and all before it is there."""
    program = (
        "import os, signal, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1])\n"
        "database.execute(f'pragma journal_mode = {sys.argv[2]}')\n"
        "database.execute('pragma cache_size = 5')\n"
        "database.execute('create table t (n, s)')\n"
        "for text, count in (('x', 99), ('y', 999)):\n"
        "    rows = [(n, text * 500) for n in range(count)]\n"
        "    database.executemany('insert into t values (?, ?)', rows)\n"
        "    if text == 'x': database.commit()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    def step(folder: Path) -> object:
        found = []
        for journal in ("delete", "wal"):
            path = folder / journal
            subprocess.run([sys.executable, "-c", program, str(path), journal], check=False)
            assert len([name for name in os.listdir(folder) if name.startswith(journal)]) > 1
            with closing(sqlite3.connect(path)) as database:
                found.append(database.execute("select count(*), max(s) from t").fetchone())
                found.append(database.execute("pragma integrity_check").fetchone())
        return found, sorted(os.listdir(folder))

    ceph_twins.same(step)
