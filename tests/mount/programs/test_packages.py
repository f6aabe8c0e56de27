"""Python's packages in main/: pip install -t, modules that are imported from there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.mount.twins import Twins, check_bucket

pytestmark = [pytest.mark.mount, pytest.mark.ceph]


def wheel(folder: Path, name: str, version: str) -> Path:
    """Make a small wheel with a package of several folders, as a build tool would."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"version = '{version}'\nfrom {name}.inner.deep import answer\n",
        f"{name}/inner/__init__.py": "",
        f"{name}/inner/deep.py": f"answer = {float(version) * 14}\n",
        f"{name}/data/table.csv": "a,b\n" * 2000,
        f"{name}/only_in_{version.replace('.', '_')}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: me\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
        record = "".join(f"{inside},,\n" for inside in (*files, f"{info}/RECORD"))
        archive.writestr(f"{info}/RECORD", record)
    return path


def run(folder: Path, *arguments: str, compiles: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "" if compiles else "1",
            "PYTHONPATH": "site",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pip_installs_and_upgrades_packages_in_main_as_on_a_disk(
    ceph_twins: Twins, tmp_path: Path
) -> None:
    old, new = wheel(tmp_path, "tiny", "1.0"), wheel(tmp_path, "tiny", "2.0")
    other = wheel(tmp_path, "other", "3.0")
    install = ("-m", "pip", "install", "-q", "--no-index", "--no-compile", "--upgrade", "-t")

    def step(folder: Path) -> object:
        with zipfile.ZipFile(old) as archive:
            archive.extractall(folder / "site")
        run(folder, *install, "site", str(new), str(other))
        return run(folder, "-c", "import other, tiny; print(tiny.version, other.answer)")

    assert ceph_twins.same(step) == "2.0 42.0\n"


def test_modules_of_main_are_compiled_beside_themselves(ceph_twins: Twins) -> None:
    """Twice: with the bytes that the first import has left, which name the times of the sources."""
    folder = ceph_twins.mount.main
    package = folder / "site" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from package.inner import answer\n")
    (package / "inner.py").write_text("answer = 42\n")
    program = ("-c", "import package; print(package.answer)")
    assert run(folder, *program, compiles=True) == "42\n"
    compiled = {path: path.stat().st_mtime_ns for path in package.glob("__pycache__/*.pyc")}
    assert len(compiled) == 2
    assert run(folder, *program, compiles=True) == "42\n"
    assert {path: path.stat().st_mtime_ns for path in compiled} == compiled
    (package / "inner.py").write_text("answer = 4711\n")
    assert run(folder, *program, compiles=True) == "4711\n"
    check_bucket(ceph_twins.mount)


def test_a_virtual_environment_says_that_main_has_no_links(ceph_twins: Twins) -> None:
    make = [sys.executable, "-m", "venv", "--without-pip", "env"]
    done = subprocess.run(make, cwd=ceph_twins.mount.main, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Operation not permitted" in done.stdout + done.stderr
