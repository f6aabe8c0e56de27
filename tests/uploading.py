"""Upload scripts in processes of their own, with a bare Python, as another machine runs them."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError

from modelfs.registry.rights import UploadRights
from modelfs.store.cuts import UPLOAD_CUT
from modelfs.uploadscript import script
from tests.endpoints import S3Endpoint, S3Server

PREFIX = "models/acme/llama/"
ROLE = "modelfs-test-upload"
ACTIONS = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
LIMIT_S = 40.0
MIB = 1 << 20

_GRANT = re.compile(r'(?<=json\.loads\(r""")\n.*?\n(?="""\))', re.DOTALL)


@cache
def oldest_python() -> str:
    """Return the oldest Python on this machine that the script is for."""
    kept = Path.home() / ".pyenv" / "versions"
    for minor in range(9, sys.version_info.minor):
        places = [shutil.which(f"python3.{minor}"), *kept.glob(f"3.{minor}.*/bin/python3.{minor}")]
        for place in filter(None, places):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                subprocess.run([place, "-c", ""], capture_output=True, check=True)
                return str(place)
    return sys.executable


class Script:
    """A script in a file of its own; what it remembers lies beside it."""

    def __init__(self, folder: Path, content: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "upload.py"
        self.path.write_bytes(content)

    @property
    def grant(self) -> dict[str, Any]:
        found = _GRANT.search(self.path.read_text())
        assert found is not None
        grant: dict[str, Any] = json.loads(found[0])
        return grant

    def change(self, **changes: Any) -> "Script":
        """Write other values into the grant; a dictionary changes single values of one."""
        grant = self.grant
        for name, value in changes.items():
            grant[name] = {**grant[name], **value} if isinstance(value, dict) else value
        text = self.path.read_text()
        self.path.write_text(_GRANT.sub(lambda _: f"\n{json.dumps(grant)}\n", text))
        return self

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [oldest_python(), "-I", "-S", str(self.path), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"HOME": str(self.folder), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            **options,
        )

    def run(self, *arguments: str | Path, limit_s: float = LIMIT_S) -> tuple[int, str, list[str]]:
        """Return the exit status, what was printed, and the lines of stderr."""
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=limit_s)
            except BaseException:
                process.kill()
                raise
        assert "Traceback" not in err, err
        return process.returncode, out.strip(), err.splitlines()


def grant_of(bucket: S3Endpoint, rights: UploadRights, **changes: Any) -> dict[str, Any]:
    """Return the grant that a mount would write, for the model acme/llama."""
    return {
        "note": "a script of a test",
        "model": "acme/llama",
        "registry": "hub",
        "expires": "2100-01-01T00:00:00Z",
        "another": "modelfs upload-script acme/llama",
        "url": rights.url,
        "prefix": PREFIX,
        "local_only": [".ipynb_checkpoints", ".~*", "*.swp", ".nfs*"],
        "timeout_s": 5,
        "single_max": 16 * MIB,
        "cut": UPLOAD_CUT.runs,
        "ca_bundle": None,
        "token": dict(rights.token),
        **changes,
    }


def moto_script(folder: Path, bucket: S3Endpoint, endpoint: str | None = None) -> Script:
    """Return a script with credentials of moto, which believes any; its parts are of 5 MiB."""
    token = {
        "kind": "temporary",
        "region": "us-east-1",
        "access_key": "testing",
        "secret_key": "testing",
        "session_token": "testing",
    }
    rights = UploadRights(f"{endpoint or bucket.endpoint}/{bucket.bucket}", token, 0)
    grant = grant_of(bucket, rights, single_max=6 * MIB, cut=[(5 * MIB, 1)])
    return Script(folder, script(grant))


def client_of(server: S3Server, service: str, keys: dict[str, Any] | None = None) -> Any:
    """Return a boto3 client of a server, with temporary credentials of a grant, or as its user."""
    keys = keys or {"access_key": server.access_key, "secret_key": server.secret_key}
    return boto3.client(
        service,
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys["access_key"],
        aws_secret_access_key=keys["secret_key"],
        aws_session_token=keys.get("session_token"),
        config=Config(
            signature_version="s3v4" if service == "s3" else None,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            s3={"addressing_style": "path"},
            proxies={},
        ),
    )


@contextmanager
def upload_role(server: S3Server, *, denies_itself: bool = True) -> Iterator[str]:
    """Make the role that docs/UPLOADS.md describes, or one that forgets to deny itself."""
    user = "arn:aws:iam:::user/dev"
    trust: list[dict[str, Any]] = [
        {"Effect": "Allow", "Principal": {"AWS": [user]}, "Action": ["sts:AssumeRole"]}
    ]
    if denies_itself:
        itself = {"AWS": [f"arn:aws:iam:::role/{ROLE}"]}
        trust.append({"Effect": "Deny", "Principal": itself, "Action": ["sts:AssumeRole"]})
    rights = [
        {
            "Effect": "Allow",
            "Action": [*ACTIONS, "s3:ListBucket"],
            "Resource": ["arn:aws:s3:::*"],
        }
    ]
    client = client_of(server, "iam")
    remove_role(client)
    made = client.create_role(RoleName=ROLE, AssumeRolePolicyDocument=_policy(trust))
    client.put_role_policy(RoleName=ROLE, PolicyName="upload", PolicyDocument=_policy(rights))
    try:
        yield str(made["Role"]["Arn"])
    finally:
        remove_role(client)
        client.close()


def remove_role(client: Any) -> None:
    with contextlib.suppress(ClientError):
        client.delete_role_policy(RoleName=ROLE, PolicyName="upload")
    with contextlib.suppress(ClientError):
        client.delete_role(RoleName=ROLE)


def _policy(statements: list[dict[str, Any]]) -> str:
    policy = {"Version": "2012-10-17", "Statement": statements}
    return json.dumps(policy, separators=(",", ":"))
