"""modelfs create and modelfs alias."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable

import pytest

from tests.cli.conftest import Hub, Run


def test_create_makes_a_model_with_its_description(modelfs: Run, hub: Hub) -> None:
    result = modelfs("create", "acme/llama", "--description", "chat, 8B")
    assert result.status == 0
    assert str(hub.path / "acme/llama/main") in result.out
    assert os.getxattr(hub.path / "acme/llama", "user.modelfs.description") == b"chat, 8B"


def test_create_makes_a_local_model_of_another(modelfs: Run, hub: Hub) -> None:
    hub.model("acme/llama")
    result = modelfs("create", "team-b/llama", "--source", "acme/llama")
    assert result.status == 0
    assert "its main is acme/llama's; modelfs freeze team-b/llama makes a version" in result.out
    assert os.getxattr(hub.path / "team-b/llama", "user.modelfs.source") == b"acme/llama"


def test_create_refuses_a_model_that_exists(modelfs: Run, hub: Hub) -> None:
    hub.model("acme/llama")
    result = modelfs("create", "acme/llama")
    assert result.status == 1
    assert "it exists already" in result.err


def test_create_refuses_a_name_that_cannot_be(modelfs: Run, hub: Hub) -> None:
    result = modelfs("create", "acme/.llama")
    assert result.status == 1
    assert "cannot be the name of a model" in result.err
    assert not (hub.path / "acme").exists()


def test_create_leaves_nothing_where_the_source_is_refused(
    modelfs: Run, hub: Hub, refuse: Callable[[str, int], None]
) -> None:
    refuse("setxattr", errno.ENOENT)
    result = modelfs("create", "team-b/llama", "--source", "acme/nothing")
    assert result.status == 1
    assert "there is no model 'acme/nothing'" in result.err
    assert not (hub.path / "team-b/llama").exists()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "you may not read 'acme/llama'"),
        (errno.EINVAL, "'acme/llama' is too long, the model itself, or has itself a source"),
    ],
)
def test_create_says_why_a_source_is_refused(
    modelfs: Run, hub: Hub, refuse: Callable[[str, int], None], number: int, says: str
) -> None:
    refuse("setxattr", number)
    result = modelfs("create", "team-b/llama", "--source", "acme/llama")
    assert result.status == 1
    assert says in result.err
    assert not (hub.path / "team-b/llama").exists()


@pytest.fixture
def local(hub: Hub) -> Hub:
    """acme/llama with a file, and team-b/llama which has its main/."""
    (hub.model("acme/llama") / "main" / "a").write_bytes(bytes(2048))
    folder = hub.model("team-b/llama", source="acme/llama")
    (folder / "main").rmdir()
    (folder / "main").symlink_to("../../acme/llama/main")
    return hub


def test_ls_shows_whose_main_a_local_model_has(modelfs: Run, local: Hub) -> None:
    assert modelfs("ls").out.splitlines()[2].split()[-1] == "acme/llama"
    main = modelfs("ls", "team-b/llama").out.splitlines()[1]
    assert re.sub(" +", " ", main).startswith("main working tree of acme/llama 2.0 KiB - 1")
    [document] = modelfs("ls", "team-b/llama", "--json").json
    assert document["source"] == "acme/llama"
    assert document["main"] == {"files": 1, "bytes": 2048}
    assert document["aliases"] == {}


def test_ls_shows_a_local_model_whose_source_is_gone(modelfs: Run, local: Hub) -> None:
    shutil.rmtree(local.path / "acme/llama")
    result = modelfs("ls", "team-b/llama")
    assert result.status == 0
    assert "acme/llama, the source of team-b/llama, is gone" in result.out
    [document] = modelfs("ls", "team-b/llama", "--json").json
    assert document["main"] == {"files": None, "bytes": None}


def test_diff_with_main_compares_with_the_source(modelfs: Run, local: Hub) -> None:
    local.version("team-b/llama", "v1")
    manifest = {"files": [{"path": "a", "size": 2048, "etag": "e"}]}
    path = local.path / "team-b/llama/.modelfs/versions/v1.json"
    path.write_text(json.dumps(manifest))
    os.setxattr(local.path / "acme/llama/main/a", "user.modelfs.etag", b"e")
    same = modelfs("diff", "team-b/llama@v1", "main")
    assert same.status == 0
    assert "team-b/llama@v1 and acme/llama/main: 1 file, 2.0 KiB, equal" in same.out
    os.setxattr(local.path / "acme/llama/main/a", "user.modelfs.etag", b"f")
    assert modelfs("diff", "team-b/llama@v1", "main").status == 1
    shutil.rmtree(local.path / "acme/llama")
    gone = modelfs("diff", "team-b/llama@v1", "main")
    assert gone.status == 2
    assert "acme/llama, the source of team-b/llama, is gone" in gone.err


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOENT, "acme/llama, the source of team-b/llama, is gone"),
        (errno.ENODATA, "its source acme/llama has no file in main/"),
        (errno.EACCES, "you may not write team-b/llama, or not read its source acme/llama"),
        (errno.EINVAL, "keys of acme/llama that no file can have"),
    ],
)
def test_freeze_says_what_is_wrong_with_a_source(
    modelfs: Run, local: Hub, refuse: Callable[[str, int], None], number: int, says: str
) -> None:
    refuse("mkdir", number)
    result = modelfs("freeze", "team-b/llama", "v1")
    assert result.status == 1
    assert says in result.err
    assert result.err.count("\n") == 1


@pytest.fixture
def llama(hub: Hub) -> Hub:
    hub.model("acme/llama")
    for name in ("v1", "v2"):
        hub.version("acme/llama", name)
    return hub


def test_alias_makes_and_moves_a_symlink(modelfs: Run, llama: Hub) -> None:
    link = llama.path / "acme/llama/production"
    assert modelfs("alias", "acme/llama", "production", "v1").out == "acme/llama/production: v1\n"
    assert os.readlink(link) == "v1"
    moved = modelfs("alias", "acme/llama", "production", "v2/")
    assert moved.out == "acme/llama/production: v1 -> v2\n"
    assert os.readlink(link) == "v2"
    assert sorted(os.listdir(link.parent)) == [".modelfs", "main", "production", "v1", "v2"]


def test_alias_moves_in_one_step(modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    modelfs("alias", "acme/llama", "production", "v1")
    link = llama.path / "acme/llama/production"
    monkeypatch.setattr(os, "unlink", lambda path: pytest.fail(f"{path} was taken away"))
    real_rename, seen = os.rename, []

    def rename(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        seen.append(os.readlink(link))
        real_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert modelfs("alias", "acme/llama", "production", "v2").status == 0
    assert seen == ["v1"]


def test_alias_leaves_no_temporary_name_where_the_move_is_refused(
    modelfs: Run, llama: Hub, refuse: Callable[[str, int], None]
) -> None:
    modelfs("alias", "acme/llama", "production", "v1")
    refuse("rename", errno.EINVAL)
    result = modelfs("alias", "acme/llama", "production", "v2")
    assert result.status == 1
    assert "an alias points at a ready version only" in result.err
    names = sorted(os.listdir(llama.path / "acme/llama"))
    assert names == [".modelfs", "main", "production", "v1", "v2"]


def test_alias_of_an_alias_is_its_version(modelfs: Run, llama: Hub) -> None:
    modelfs("alias", "acme/llama", "staging", "v2")
    modelfs("alias", "acme/llama", "production", "staging")
    assert os.readlink(llama.path / "acme/llama/production") == "v2"


def test_aliases_are_shown(modelfs: Run, llama: Hub) -> None:
    modelfs("alias", "acme/llama", "production", "v1")
    assert modelfs("alias", "acme/llama").out == "ALIAS       VERSION\nproduction  v1\n"
    assert modelfs("alias", "acme/llama", "--json").json == {"production": "v1"}


def test_alias_is_deleted(modelfs: Run, llama: Hub) -> None:
    modelfs("alias", "acme/llama", "production", "v1")
    result = modelfs("alias", "acme/llama", "--delete", "production")
    assert result.status == 0
    assert "it pointed at v1" in result.out
    assert not os.path.lexists(llama.path / "acme/llama/production")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["production", "v9"], "there is no version acme/llama@v9"),
        (["v7", "v1"], "cannot be an alias"),
        (["main", "v1"], "cannot be an alias"),
        (["latest", "v1"], "cannot be an alias"),
        (["production", "main"], "has no version or alias 'main'"),
        (["production", "nothing"], "has no version or alias 'nothing'"),
        (["--delete", "nothing"], "has no alias 'nothing'"),
        (["--delete", "main"], "cannot be an alias"),
    ],
)
def test_alias_refuses(modelfs: Run, llama: Hub, arguments: list[str], says: str) -> None:
    result = modelfs("alias", "acme/llama", *arguments)
    assert result.status == 1
    assert says in result.err
    assert result.err.count("\n") == 1


def test_alias_without_a_version_is_a_usage_error(modelfs: Run, llama: Hub) -> None:
    assert modelfs("alias", "acme/llama", "production").status == 2
    assert modelfs("alias", "acme/llama", "production", "v1", "--delete", "old").status == 2
