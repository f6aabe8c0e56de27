"""What a script may do, and what Ceph's gateway refuses to who has one."""

import hashlib
import http.client
import os
import subprocess
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from modelfs.errors import AccessDenied, InvalidName, NotSupported
from modelfs.registry import rights
from modelfs.registry.rights import UploadRights, UploadWish
from modelfs.registry.s3 import S3Store
from modelfs.units import utc_text
from modelfs.uploadscript import script
from tests.endpoints import CephServer, S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mounting import wait_until
from tests.uploading import MIB, PREFIX, Script, client_of, grant_of, upload_role

pytestmark = pytest.mark.ceph

SIBLING = "models/acme/llama-2/secret"
PART = 5 * MIB


@pytest.fixture
def store(ceph_bucket: S3Endpoint) -> Iterator[S3Store]:
    ceph_bucket.put(SIBLING, b"secret")
    with closing(S3Store(ceph_bucket.settings())) as store:
        yield store


@pytest.fixture(scope="module")
def role(ceph: CephServer) -> Iterator[str]:
    with upload_role(ceph) as arn:
        yield arn


def rights_of(store: S3Store, role: str | None, **wish: Any) -> UploadRights:
    asked = {"prefix": PREFIX, "expires_s": 900, "label": "acme-llama", "role": role, **wish}
    return store.upload_rights(UploadWish(**asked))


MakeScript = Callable[..., Script]


@pytest.fixture
def make_script(ceph_bucket: S3Endpoint, store: S3Store, tmp_path: Path) -> MakeScript:
    """Make a script for the model acme/llama, of small parts, whose form carries little.

    `endpoint` is what it knows as the registry.
    """

    def make(role: str | None, *, endpoint: str | None = None, **wish: Any) -> Script:
        settings = ceph_bucket.settings(endpoint=endpoint or ceph_bucket.endpoint)
        with closing(S3Store(settings)) as seen:
            given = rights_of(seen, role, **wish)
        grant = grant_of(ceph_bucket, given, expires=utc_text(given.expires_at))
        grant["single_max"], grant["cut"] = 6 * MIB, [(PART, 1)]
        if role is None:
            grant["token"]["form_max"] = 6 * MIB
        return Script(tmp_path / f"script-{uuid.uuid4().hex}", script(grant))

    return make


@pytest.fixture(params=["with STS", "without STS"])
def any_role(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("role") if request.param == "with STS" else None


def objects(bucket: S3Endpoint) -> dict[str, bytes]:
    listed = bucket.client.list_objects_v2(Bucket=bucket.bucket, Prefix=PREFIX)
    keys = [item["Key"] for item in listed.get("Contents", ())]
    return {key.removeprefix(PREFIX): bucket.get(key) for key in keys}


# ---------------------------------------------------------------- what a script does on Ceph


def test_a_folder_of_200_files_and_one_in_parts_come_over_ceph_with_sts_and_without(
    make_script: MakeScript, any_role: str | None, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    files = {f"f {n:03d}": os.urandom(n) for n in range(200)}
    files |= {"é/a+b%20": b"1", "new\nline": b"2", "q'\"uo;te\\": b"3", "\x01": b"4"}
    files["big/weights.gguf"] = os.urandom(4 * PART + 1)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    large = [f"{PREFIX}big/weights.gguf"]
    made = make_script(any_role, large=large)
    status, out, err = made.run(f"{folder}/")
    assert (status, err) == (0, []), (out, err)
    assert objects(ceph_bucket) == files
    status, out, _ = made.run(f"{folder}/")
    assert status == 0
    assert "0 files sent, 0 B" in out
    assert f"{len(files)} files there already" in out


def test_a_run_that_was_killed_goes_on_over_ceph_with_sts_and_without(
    make_script: MakeScript, any_role: str | None, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    big.write_bytes(os.urandom(4 * PART))
    small.write_bytes(b"small")
    with FaultyProxy(ceph_bucket.endpoint) as proxy:
        made = make_script(any_role, endpoint=proxy.endpoint, large=[f"{PREFIX}big"])
        del proxy.heads[:]
        with proxy.faulty(Fault.HOLD, lambda head: b"partNumber=3&" in head):
            process = made.start(small, big)
            wait_until(lambda: known_parts(ceph_bucket) == [1, 2, 4])
            process.kill()
            process.communicate()
        del proxy.heads[:]
        assert made.run(small, big)[0] == 0
        sent = [head.split()[1] for head in proxy.heads if b"partNumber=" in head]
        assert len(sent) == 1
        assert b"partNumber=3&" in sent[0]
        assert not any(b"form-data" in head for head in proxy.heads)
    assert objects(ceph_bucket) == {"big": big.read_bytes(), "small": b"small"}


def known_parts(bucket: S3Endpoint) -> list[int]:
    where = {"Bucket": bucket.bucket, "Key": f"{PREFIX}big"}
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.bucket).get("Uploads", ())
    found = [
        bucket.client.list_parts(**where, UploadId=upload["UploadId"]).get("Parts", ())
        for upload in uploads
    ]
    return sorted(part["PartNumber"] for parts in found for part in parts)


def test_a_large_file_whose_name_was_not_told_is_refused_with_what_to_do(
    make_script: MakeScript, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "a file").write_bytes(bytes(7 * MIB))
    status, _, err = make_script(None).run(tmp_path / "a file")
    assert status == 1
    assert err == [
        "upload.py: a file: it has more than 6.0 MiB, and its name must be told before: "
        "modelfs upload-script acme/llama --large 'a file'"
    ]
    assert objects(ceph_bucket) == {}


def test_a_file_that_changes_after_its_checksum_was_taken_is_refused_and_said(
    make_script: MakeScript, any_role: str | None, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"1" * 100)
    made = make_script(any_role)
    line = "        md5 = source.md5(0, source.size)\n"
    change = "        open(source.path, 'wb').write(b'2' * 100)\n"
    text = made.path.read_text()
    assert line in text
    made.path.write_text(text.replace(line, line + change))
    status, _, err = made.run(tmp_path / "file")
    assert (status, err) == (1, ["upload.py: file: it changed while it was sent: send it again"])
    assert objects(ceph_bucket) == {}


def test_more_files_than_a_page_are_known_with_sts_and_without(
    make_script: MakeScript,
    any_role: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rights, "PAGE_KEYS", 4)
    monkeypatch.setattr(rights, "LISTED_KEYS", 2)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(11):
        (folder / f"{number} \x01").write_bytes(b"%d" % number)
    assert with_small_pages(make_script(any_role)).run(f"{folder}/")[0] == 0
    status, out, err = with_small_pages(make_script(any_role)).run(f"{folder}/")
    assert (status, err) == (0, [])
    assert "0 files sent, 0 B" in out


def with_small_pages(made: Script) -> Script:
    text = made.path.read_text()
    made.path.write_text(text.replace("most: int = 1000", "most: int = 4"))
    assert made.path.read_text() != text
    return made


def test_over_https_the_registry_s_own_ca_is_believed_and_no_other(
    make_script: MakeScript, role: str, ceph: CephServer, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    made = make_script(role).change(url=f"{ceph.tls_endpoint}/{ceph_bucket.bucket}")
    status, _, err = made.run(tmp_path / "file")
    assert (status, len(err)) == (4, 1)
    assert "cannot be verified" in err[0]
    assert made.change(ca_bundle=ceph.ca.read_text()).run(tmp_path / "file")[0] == 0
    assert objects(ceph_bucket) == {"file": b"1"}


# ------------------------------------------------------ tokens that are not, or no longer, good


def one_line(made: Script, file: Path) -> str:
    """Return the one line of a script that is refused."""
    status, out, err = made.run(file)
    assert (status, len(err)) == (3, 1), err
    assert not out or out.startswith("acme/llama: 0 files sent, 0 B")
    return err[0]


def test_an_altered_or_foreign_token_is_told_in_a_line(
    make_script: MakeScript, any_role: str | None, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    made = make_script(any_role)
    token = made.grant["token"]
    other = make_script(any_role, prefix="models/acme/llama-2/").grant["token"]
    if any_role is None:
        fields = {**token["fields"], "x-amz-signature": "0" * 64}
        listings = [url[:-64] + "0" * 64 for url in token["listings"]]
        wrong = [{"fields": fields}, {"listings": listings}, {"fields": other["fields"]}]
    else:
        wrong = [
            {"secret_key": token["secret_key"][::-1]},
            {"session_token": token["session_token"][:-8] + "AAAAAAA="},
            {"access_key": "unknown"},
            other,
        ]
    for change in wrong:
        made.change(token={**token, **change})
        line = one_line(made, file)
        assert line.startswith("upload.py: the registry refuses the token of this script (403")
        assert line.endswith("get another: modelfs upload-script acme/llama")
        for secret in (str(value) for value in token.values() if len(str(value)) > 8):
            assert secret not in line
    assert objects(ceph_bucket) == {}


def test_a_script_that_has_expired_says_so_in_a_line(
    make_script: MakeScript, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    made = make_script(None, expires_s=1)
    time.sleep(2.1)
    assert "this script has expired" in one_line(made, tmp_path / "file")
    assert objects(ceph_bucket) == {}


def test_temporary_credentials_that_have_expired_are_told_in_a_line(
    make_script: MakeScript, role: str, ceph: CephServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    made = make_script(role)
    session_token = made.grant["token"]["session_token"]
    made.change(token={"session_token": of_year(session_token, ceph, time.strftime("%Y-"))})
    assert made.run(tmp_path / "file")[0] == 0  # encrypting it anew is no reason to refuse it
    expired = of_year(session_token, ceph, "2001-")
    made.change(token={"session_token": expired}, expires="2001-01-01T00:00:00Z")
    line = one_line(made, tmp_path / "file")
    assert line.startswith("upload.py: this script has expired (2001-01-01 00:00:00 UTC)")
    assert line.endswith("modelfs upload-script acme/llama")


def of_year(session_token: str, ceph: CephServer, wanted: str) -> str:
    """Return a session token of the gateway that ends in another year, encrypted with its key."""
    key = (ceph.directory / "keys" / "sts.key").read_bytes().strip()
    cipher = ["openssl", "enc", "-aes-128-cbc", "-K", key.hex(), "-iv", b"cephsageyudagreg".hex()]
    plain = subprocess.run(
        [*cipher, "-d", "-a", "-A"], input=session_token.encode(), capture_output=True, check=True
    ).stdout
    year = time.strftime("%Y-").encode()
    assert year in plain
    changed = plain.replace(year, wanted.encode())
    made = subprocess.run([*cipher, "-a", "-A"], input=changed, capture_output=True, check=True)
    return made.stdout.decode()


def test_a_script_that_expires_in_the_middle_says_so_in_a_line(
    make_script: MakeScript, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
    with FaultyProxy(ceph_bucket.endpoint) as proxy:
        made = make_script(None, endpoint=proxy.endpoint, expires_s=4).change(timeout_s=30)
        until = time.time() + 5.1
        del proxy.heads[:]
        first: list[bytes] = []

        def is_later(head: bytes) -> bool:
            if head.startswith(b"POST"):
                first.append(head)
            return len(first) > 1

        with proxy.faulty(Fault.HOLD, is_later):
            process = made.start(f"{folder}/")
            wait_until(lambda: len(objects(ceph_bucket)) == 1)
            time.sleep(max(0.0, until - time.time()))
        out, err = process.communicate(timeout=20)
    assert process.returncode == 3
    assert len(err.splitlines()) == 1
    assert "this script has expired" in err
    assert "acme/llama: 1 file sent" in out
    assert len(objects(ceph_bucket)) == 1


# ------------------------------------------------------------------------ what is refused


def refused(attempt: Callable[[], object]) -> bool:
    """Tell whether the gateway answers 403."""
    try:
        attempt()
    except ClientError as error:
        return bool(error.response["ResponseMetadata"]["HTTPStatusCode"] == 403)
    except Refused:
        return True
    return False


def test_temporary_credentials_reach_nothing_outside_of_the_model_and_read_nothing_in_it(
    make_script: MakeScript, role: str, ceph: CephServer, ceph_bucket: S3Endpoint
) -> None:
    ceph_bucket.put(f"{PREFIX}in", b"in")
    b = ceph_bucket.bucket
    other = f"{b}-other"
    ceph_bucket.client.create_bucket(Bucket=other)
    ceph_bucket.client.put_object(Bucket=other, Key=f"{PREFIX}in", Body=b"in")
    out_upload = ceph_bucket.client.create_multipart_upload(Bucket=b, Key=SIBLING)["UploadId"]
    token = make_script(role).grant["token"]
    c = client_of(ceph, "s3", token)
    out = {"Bucket": b, "Key": SIBLING}
    upload = {**out, "UploadId": out_upload}
    source = {"Bucket": b, "Key": SIBLING}
    mine = {"Bucket": b, "Key": f"{PREFIX}mine"}
    own = {**mine, "UploadId": c.create_multipart_upload(**mine)["UploadId"]}
    attempts: dict[str, Callable[[], object]] = {
        "read": lambda: c.get_object(**out),
        "read inside": lambda: c.get_object(Bucket=b, Key=f"{PREFIX}in"),
        "read another bucket": lambda: c.get_object(Bucket=other, Key=f"{PREFIX}in"),
        "head": lambda: c.head_object(**out),
        "list all": lambda: c.list_objects_v2(Bucket=b),
        "list the namespace": lambda: c.list_objects_v2(Bucket=b, Prefix="models/acme/"),
        "list without the slash": lambda: c.list_objects_v2(Bucket=b, Prefix="models/acme/llama"),
        "list the sibling": lambda: c.list_objects_v2(Bucket=b, Prefix="models/acme/llama-2/"),
        "list another bucket": lambda: c.list_objects_v2(Bucket=other, Prefix=PREFIX),
        "list versions": lambda: c.list_object_versions(Bucket=b, Prefix=PREFIX),
        "list uploads": lambda: c.list_multipart_uploads(Bucket=b),
        "list buckets": c.list_buckets,
        "delete": lambda: c.delete_object(**out),
        "delete inside": lambda: c.delete_object(Bucket=b, Key=f"{PREFIX}in"),
        "delete many": lambda: c.delete_objects(Bucket=b, Delete={"Objects": [{"Key": SIBLING}]}),
        "write": lambda: c.put_object(**out, Body=b"x"),
        "write without the slash": lambda: c.put_object(Bucket=b, Key="models/acme/llama"),
        "write the marker": lambda: c.put_object(Bucket=b, Key=PREFIX),
        "write another bucket": lambda: c.put_object(Bucket=other, Key=f"{PREFIX}x"),
        "begin an upload": lambda: c.create_multipart_upload(**out),
        "upload a part": lambda: c.upload_part(**upload, PartNumber=1, Body=b"x"),
        "list parts": lambda: c.list_parts(**upload),
        "abort": lambda: c.abort_multipart_upload(**upload),
        "copy into it": lambda: c.copy_object(**mine, CopySource=source),
        "copy a part into it": lambda: c.upload_part_copy(**own, PartNumber=1, CopySource=source),
        "copy out of it": lambda: c.copy_object(
            **out, CopySource={"Bucket": b, "Key": f"{PREFIX}in"}
        ),
        "set a policy": lambda: c.put_bucket_policy(Bucket=b, Policy="{}"),
        "make a bucket": lambda: c.create_bucket(Bucket=f"{b}-evil"),
        "assume the role anew": lambda: client_of(ceph, "sts", token).assume_role(
            RoleArn=role, RoleSessionName="wider"
        ),
        "change the role": lambda: client_of(ceph, "iam", token).put_role_policy(
            RoleName="modelfs-test-upload", PolicyName="upload", PolicyDocument="{}"
        ),
    }
    assert [name for name, attempt in attempts.items() if not refused(attempt)] == []
    assert ceph_bucket.get(SIBLING) == b"secret"
    assert objects(ceph_bucket) == {"in": b"in"}
    ceph_bucket.client.delete_object(Bucket=other, Key=f"{PREFIX}in")
    ceph_bucket.client.delete_bucket(Bucket=other)


class Refused(Exception):
    """403."""


def send(method: str, url: str, headers: dict[str, str] | None = None, data: bytes = b"") -> bytes:
    """Send a request with just these headers; return the body. Raises Refused."""
    target = urllib.parse.urlsplit(url)
    with closing(http.client.HTTPConnection(target.netloc, timeout=20)) as connection:
        path = f"{target.path}?{target.query}"
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        body = answer.read()
    if answer.status == 403:
        raise Refused
    assert answer.status < 300, body
    return body


def send_form(url: str, fields: dict[str, str], data: bytes = b"data") -> bytes:
    boundary = uuid.uuid4().hex
    lines = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    lines.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    )
    body = "".join(lines).encode() + data + f"\r\n--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}"
    return send("POST", url, {"Content-Type": kind}, body)


def test_signed_requests_reach_nothing_outside_of_the_model_and_read_nothing_in_it(
    make_script: MakeScript, ceph_bucket: S3Endpoint
) -> None:
    key = f"{PREFIX}big"
    ceph_bucket.put(key, b"in")
    grant = make_script(None, large=[key]).grant
    token, url = grant["token"], grant["url"]
    large, listing = token["large"]["big"], token["listings"][0]
    fields = {**token["fields"], "key": f"{PREFIX}x", "x-amz-meta-mtime": "1", "content-md5": ""}
    ceph_bucket.client.create_bucket(Bucket=f"{ceph_bucket.bucket}-other")
    other = f"{ceph_bucket.endpoint}/{ceph_bucket.bucket}-other"
    evil = {"x-amz-copy-source": f"/{ceph_bucket.bucket}/{SIBLING}"}
    part = f"{large['part']}&partNumber=1&X-Amz-Signature={large['part_signatures'][0]}"
    quoted = urllib.parse.quote(PREFIX, safe="")
    sibling = urllib.parse.quote("models/acme/llama-2/", safe="")
    assert listing.count(quoted) == 1

    def moved(signed: str) -> str:
        return signed.replace("llama/big", "llama-2/secret")

    attempts: dict[str, Callable[[], object]] = {
        "list the sibling": lambda: send("GET", listing.replace(quoted, sibling)),
        "list without the slash": lambda: send("GET", listing.replace(quoted, quoted[:-3])),
        "list all": lambda: send("GET", listing.replace(f"prefix={quoted}&", "")),
        "list with a second prefix": lambda: send("GET", f"{listing}&prefix="),
        "list uploads": lambda: send("GET", f"{listing}&uploads="),
        "read": lambda: send("GET", large["look"]),
        "read the sibling": lambda: send("GET", moved(large["look"])),
        "head the sibling": lambda: send("HEAD", moved(large["look"])),
        "delete": lambda: send("DELETE", large["look"]),
        "delete all": lambda: send("DELETE", listing),
        "write by the look": lambda: send("PUT", large["look"]),
        "write the sibling": lambda: send_form(url, {**fields, "key": SIBLING}),
        "write without the slash": lambda: send_form(url, {**fields, "key": "models/acme/llama"}),
        "write two keys": lambda: send_form(url, {**fields, "Key": SIBLING}),
        "write another bucket": lambda: send_form(other, fields),
        "publish": lambda: send_form(url, {**fields, "acl": "public-read"}),
        "give a source": lambda: send_form(url, {**fields, "x-amz-meta-source": "team-b/x"}),
        "a part of another file": lambda: send("PUT", part.replace("llama/big", "llama/small")),
        "a part of the sibling": lambda: send("PUT", moved(part)),
        "another part": lambda: send("PUT", part.replace("partNumber=1", "partNumber=2")),
        "a part without its header": lambda: send("PUT", part, {}, b"data"),
        "a part that is a copy": lambda: send("PUT", part, evil),
        "a longer life": lambda: send(
            "GET", listing.replace("X-Amz-Expires=900", "X-Amz-Expires=9000")
        ),
    }
    assert [name for name, attempt in attempts.items() if not refused(attempt)] == []
    send("PUT", part, large["part_headers"], b"data")  # as the script does
    assert b"<Size>4</Size>" in send("GET", large["parts"])
    assert ceph_bucket.get(SIBLING) == b"secret"
    assert objects(ceph_bucket) == {"big": b"in"}
    ceph_bucket.client.delete_bucket(Bucket=f"{ceph_bucket.bucket}-other")


def test_a_part_that_came_as_a_copy_of_another_object_is_not_made_by_adding_headers(
    make_script: MakeScript, ceph_bucket: S3Endpoint
) -> None:
    """Ceph's gateway obeys an x-amz-copy-source that is not signed, so it is signed, as empty."""
    large = make_script(None, large=[f"{PREFIX}big"]).grant["token"]["large"]["big"]
    assert large["part_headers"] == {"x-amz-copy-source": ""}
    part = f"{large['part']}&partNumber=1&X-Amz-Signature={large['part_signatures'][0]}"
    evil = f"/{ceph_bucket.bucket}/{SIBLING}"
    digest = hashlib.md5(b"secret").hexdigest()
    for name in ("x-amz-copy-source", "X_Amz_Copy_Source"):  # the gateway takes both for one
        with_both = {**large["part_headers"], name: evil}
        for headers in (with_both, {name: evil}):
            assert (
                refused(lambda h=headers: send("PUT", part, h))
                or digest not in send("GET", large["parts"]).decode()
            )


# ---------------------------------------------------------------- what makes no rights at all


def test_a_role_that_may_be_assumed_anew_by_who_has_it_is_refused(
    store: S3Store, ceph: CephServer
) -> None:
    with (
        upload_role(ceph, denies_itself=False) as loose,
        pytest.raises(NotSupported, match="deny it sts:AssumeRole in its own trust policy"),
    ):
        rights_of(store, loose)


def test_a_role_that_is_not_there_and_a_time_that_it_does_not_allow_are_refused(
    store: S3Store, ceph: CephServer
) -> None:
    with pytest.raises((AccessDenied, InvalidName), match="modelfs-none"):
        rights_of(store, "arn:aws:iam:::role/modelfs-none")
    with upload_role(ceph) as arn:
        with pytest.raises(InvalidName, match="is not given for 7200 s"):
            rights_of(store, arn, expires_s=7200)  # the role's own most is an hour
        with pytest.raises(InvalidName, match="15m at least"):
            rights_of(store, arn, expires_s=60)


def test_a_prefix_that_a_policy_would_understand_as_a_pattern_is_refused(store: S3Store) -> None:
    with pytest.raises(NotSupported, match="cannot be named in a policy"):
        rights_of(store, "arn:aws:iam:::role/any", prefix="mod*ls/acme/llama/")


def test_a_large_file_of_an_unfinished_script_is_gone_on_with_by_the_next(store: S3Store) -> None:
    first, second = (rights_of(store, None, large=[f"{PREFIX}big"]) for _ in range(2))
    assert first.token["large"]["big"]["upload"] == second.token["large"]["big"]["upload"]
    store.abort_upload(f"{PREFIX}big", first.token["large"]["big"]["upload"])
    third = rights_of(store, None, large=[f"{PREFIX}big"])
    assert third.token["large"]["big"]["upload"] != first.token["large"]["big"]["upload"]
