"""The examples for Kubernetes: good by its own schemas, and naming what there is."""

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from modelfs import config
from modelfs.cli import commands

FOLDER = Path(__file__).parent.parent / "docs" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
VERSIONS = ("1.30", "1.34")


def documents(path: Path) -> Iterator[Any]:
    yield from yaml.safe_load_all(path.read_text())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_document_is_what_kubernetes_takes(path: Path, version: str) -> None:
    kinds = []
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)
        kinds.append(document["kind"])
    assert kinds


def test_the_validator_finds_a_slip() -> None:
    pod = next(documents(FOLDER / "pods.yaml"))
    wrong = copy.deepcopy(pod)
    wrong["spec"]["containers"][0]["volumeMounts"][0]["mountPropogation"] = "HostToContainer"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def daemon_set() -> Any:
    (found,) = (d for d in documents(FOLDER / "daemonset.yaml") if d["kind"] == "DaemonSet")
    return found["spec"]["template"]["spec"]


def test_the_configuration_in_it_is_one(tmp_path: Path) -> None:
    (found,) = (d for d in documents(FOLDER / "daemonset.yaml") if d["kind"] == "ConfigMap")
    file = tmp_path / "modelfs.toml"
    file.write_text(found["data"]["modelfs.toml"])
    hub = config.load(file).registry("hub")
    container = daemon_set()["containers"][0]
    assert container["args"] == ["mount", hub.name]
    assert container["args"][0] in commands.commands
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert hub.mountpoint is not None
    assert hub.credentials is not None
    assert mounts[str(hub.mountpoint.parent)]["mountPropagation"] == "Bidirectional"
    assert str(hub.store.parent) in mounts
    assert mounts[str(hub.credentials.parent)]["readOnly"]
    (secret,) = (d for d in documents(FOLDER / "daemonset.yaml") if d["kind"] == "Secret")
    assert hub.credentials.name in secret["stringData"]
    assert f"{hub.mountpoint}/.modelfs/status.json" in container["livenessProbe"]["exec"]["command"]
    assert daemon_set()["terminationGracePeriodSeconds"] > hub.drain_timeout_s


def test_who_reads_is_given_folders_of_the_store_or_of_the_mount_read_only() -> None:
    (found,) = (d for d in documents(FOLDER / "daemonset.yaml") if d["kind"] == "ConfigMap")
    hub = tomllib.loads(found["data"]["modelfs.toml"])["registries"]["hub"]
    plain = Path(hub["store"]) / "models" / "acme" / "llama"
    given = set()
    for path in (FOLDER / "pods.yaml", FOLDER / "vllm.yaml"):
        for document in documents(path):
            spec = (
                document["spec"].get("template", document)["spec"]
                if document["kind"] != "Service"
                else {}
            )
            of_host = {
                v["name"]: v["hostPath"]["path"] for v in spec.get("volumes", ()) if "hostPath" in v
            }
            for mount in (m for c in spec.get("containers", ()) for m in c["volumeMounts"]):
                if mount["name"] in of_host:
                    assert mount["readOnly"] is True
                    given.add(of_host[mount["name"]])
    assert given == {str(plain), str(Path(hub["mountpoint"]).parent)}
