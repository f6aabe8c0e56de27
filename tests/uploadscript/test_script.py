"""The script as a file: what it is made of, and that it agrees with modelfs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modelfs.names import KEY_MAX_BYTES, NAME_MAX_BYTES
from modelfs.registry.objects import format_mtime
from modelfs.registry.rights import FORM_MAX, LARGE_PARTS
from modelfs.store.cuts import UPLOAD_CUT, Cut
from modelfs.store.etags import MultipartEtag
from modelfs.uploadscript import PARTS, files, planning, script
from tests.uploading import MIB, Script, oldest_python

GIB = 1 << 30
GRANT = {"note": "It says\nwhat it is " + "and more " * 30, "odd": "'''\"\"\"\\ é \u2028"}


def test_the_script_is_of_python_3_9_and_imports_its_own_library_alone() -> None:
    tree = ast.parse(script(GRANT), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert imported <= set(sys.stdlib_module_names)
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(defined) == len(set(defined))
    assert len(defined) > 40


def test_every_module_of_the_script_is_in_it() -> None:
    folder = Path(files.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(PARTS)


def test_the_grant_is_data_and_its_note_the_first_lines(tmp_path: Path) -> None:
    made = Script(tmp_path, script(GRANT))
    lines = made.path.read_text().splitlines()
    assert lines[1].startswith("# It says what it is and more")
    assert max(map(len, lines[:6])) <= 100
    assert made.grant == GRANT
    code = "import runpy, sys, json; print(json.dumps(runpy.run_path(sys.argv[1])['GRANT']))"
    said = subprocess.run(
        [oldest_python(), "-I", "-S", "-c", code, made.path], capture_output=True, check=True
    )
    assert json.loads(said.stdout) == GRANT


def test_a_template_without_a_grant_says_how_to_get_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from modelfs.uploadscript.main import main; main(['x'])"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "upload.py: this is the template: modelfs upload-script NAMESPACE/MODEL makes a script "
        "of it\n"
    )


@given(st.integers(-(10**18), 10**19))
def test_times_are_written_as_modelfs_writes_them(mtime_ns: int) -> None:
    assert files.Source("", "", "", 0, mtime_ns).mtime == format_mtime(mtime_ns)


def test_files_are_cut_as_modelfs_cuts_them_and_no_larger_than_s3_takes() -> None:
    for size in (0, 1, 16 * MIB + 1, 8 * MIB * 4000, 40 * GIB + 7, 500 * GIB):
        source = files.Source("", "", "", size, 0)
        ours = [(piece.offset, piece.length) for piece in UPLOAD_CUT.pieces(size)]
        assert source.spans(UPLOAD_CUT.runs) == ours
    assert (planning.NAME_MAX_BYTES, planning.KEY_MAX_BYTES) == (NAME_MAX_BYTES, KEY_MAX_BYTES)
    for size in (6 * GIB, 4000 * GIB):  # without STS there are fewer parts
        source = files.Source("", "", "", size, 0)
        cuts = map(source.spans, files.cuts_of(size, UPLOAD_CUT.runs))
        spans = next(spans for spans in cuts if len(spans) <= LARGE_PARTS)
        assert max(length for _, length in spans) <= FORM_MAX


def test_content_is_compared_by_the_etag_that_the_object_has(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    path = tmp_path / "file"
    path.write_bytes(data)
    source = files.Source(str(path), "file", "file", len(data), 0)
    ours = [(1000, 3), (2500, 1)]
    for runs in (ours, [(1000, 1)], [(2000, 1)], [(4000, 1)], [(32_000, 1)]):
        etag = MultipartEtag(Cut(tuple(runs)))
        etag.update(memoryview(data))
        assert source.has_etag(etag.hexdigest(), ours)
        assert not source.has_etag(etag.hexdigest().replace("-", "0-"), ours)
    assert source.has_etag(source.md5(0, len(data)).hex(), ours)
    assert not source.has_etag("0" * 32, ours)
