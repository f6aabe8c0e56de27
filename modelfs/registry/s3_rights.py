"""Makes the rights of an upload script on S3. Any thread may call.

Facts that shaped this file, of Ceph's gateway: it obeys an x-amz-copy-source that was added to a
presigned request, and would so copy anything that the registry's keys may read into the model;
where that header was signed as empty, it holds. Credentials of a role may assume the role anew,
without a session policy, where its trust policy names the user who assumed it: then they would
be rights for everything that the role has. Both are tried out, and refused.
"""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from modelfs.errors import AccessDenied, InvalidName, NotFound, NotSupported, RegistryError
from modelfs.registry import rights
from modelfs.registry.rights import UploadRights, UploadWish
from modelfs.registry.s3_clients import S3Clients
from modelfs.registry.s3_http import now

if TYPE_CHECKING:
    from modelfs.registry.s3 import S3Store

COPY_SOURCE = "x-amz-copy-source"
REFUSALS = (401, 403)
UPLOADS_MAX = 1000  # uploads of large files that are remembered


class Granter:
    """Makes rights for one bucket.

    INVARIANT: `_uploads` are uploads in parts that were begun for scripts, by key.
    """

    def __init__(self, store: "S3Store", clients: S3Clients, bucket: str) -> None:
        self._store = store
        self._clients = clients
        self._signer = clients.signer
        self._bucket = bucket
        self._lock = threading.Lock()
        self._checked_roles: set[str] = set()
        self._part_headers: dict[str, str] | None = None
        self._uploads: dict[str, str] = {}

    def grant(self, wish: UploadWish) -> UploadRights:
        """Return what a wish asks for.

        Raises RegistryError where the registry does not give it, InvalidName for a time that it
        does not allow, NotSupported where its limits would not hold.
        """
        with self._lock:  # making a client is not safe in threads, and this is seldom
            return self._temporary(wish) if wish.role else self._signed(wish)

    # ------------------------------------------------- temporary credentials

    def _temporary(self, wish: UploadWish) -> UploadRights:
        assert wish.role is not None
        if wish.expires_s < rights.ROLE_EXPIRES_MIN_S:
            raise InvalidName(f"a role is given for {rights.ROLE_EXPIRES_MIN_S // 60}m at least")
        policy = rights.session_policy(self._bucket, wish.prefix)
        name = rights.session_name(wish.label)
        try:
            found = self._clients.assume_role(wish.role, name, wish.expires_s, policy)
        except (AccessDenied, NotFound) as error:
            raise AccessDenied(f"the registry refuses the role {wish.role}: {error}") from error
        except RegistryError as error:
            if type(error) is not RegistryError:
                raise
            raise InvalidName(
                f"the role {wish.role} is not given for {wish.expires_s} s: {error}"
            ) from error
        self._check_role(wish.role, found)
        token = {
            "kind": "temporary",
            "region": self._signer.region,
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "session_token": found["SessionToken"],
        }
        return UploadRights(self._signer.bucket_url(), token, int(found["Expiration"].timestamp()))

    def _check_role(self, role: str, credentials: Mapping[str, Any]) -> None:
        """Raise NotSupported where temporary credentials could widen themselves."""
        if role in self._checked_roles:
            return
        least_s = rights.ROLE_EXPIRES_MIN_S
        try:
            self._clients.assume_role(role, "modelfs-check", least_s, None, credentials)
        except AccessDenied:
            self._checked_roles.add(role)
            return
        raise NotSupported(
            f"who has the role {role} may assume it again, and has more than one model then: "
            "deny it sts:AssumeRole in its own trust policy"
        )

    # ------------------------------------------------------- signed requests

    def _signed(self, wish: UploadWish) -> UploadRights:
        listings = self._listings(wish)
        with self._clients.translated():
            answer = self._signer.send("GET", listings[0])
        if answer.status != 200:
            raise AccessDenied(f"the registry refuses a signed request ({answer.status})")
        expires_at, fields = self._signer.sign_form(
            rights.form_conditions(self._bucket, wish.prefix),
            {"success_action_status": "201"},
            wish.expires_s,
        )
        token = {
            "kind": "signed",
            "form_max": rights.FORM_MAX,
            "fields": fields,
            "checks_md5": rights.is_ceph_request_id(answer.headers.get("x-amz-request-id", "")),
            "listings": listings,
            "large": {
                key.removeprefix(wish.prefix): self._large(key, wish.expires_s)
                for key in wish.large
            },
        }
        return UploadRights(self._signer.bucket_url(), token, expires_at)

    def _listings(self, wish: UploadWish) -> list[str]:
        """Return requests that list the model: a script cannot sign where the next one begins."""
        starts, token = [""], None
        while len(starts) < rights.LISTINGS_MAX:
            page = self._store.list_page(wish.prefix, by_folder=False, token=token)
            keys = [info.id.key for info in page.objects]
            starts += keys[rights.LISTED_KEYS - 1 :: rights.LISTED_KEYS]
            token = page.token
            if token is None:
                break
        wanted = {
            "list-type": "2",
            "prefix": wish.prefix,
            "max-keys": str(rights.PAGE_KEYS),
            "encoding-type": "url",
        }
        asked = [{**wanted, "start-after": last} if last else wanted for last in starts]
        return [self._signer.presign("GET", "", query, {}, wish.expires_s) for query in asked]

    def _large(self, key: str, expires_s: int) -> dict[str, Any]:
        """Return all requests that an upload of `key` in parts takes."""
        headers = self._headers_of_parts(key)
        upload, at = self._upload_of(key), now()

        def sign(method: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
            return self._signer.presign(method, key, query, headers, expires_s, at)

        signatures, common = [], ""
        for number in range(1, rights.LARGE_PARTS + 1):
            query = {"partNumber": str(number), "uploadId": upload}
            url, _, signature = sign("PUT", query, headers).partition("&X-Amz-Signature=")
            common = url.replace(f"partNumber={number}&", "")
            signatures.append(signature)
        query = {"uploadId": upload}
        return {
            "upload": upload,
            "look": sign("HEAD", {}, {}),
            "parts": sign("GET", query, {}),
            "finish": sign("POST", query, {}),
            "drop": sign("DELETE", query, {}),
            "part": common,
            "part_headers": headers,
            "part_signatures": signatures,
        }

    def _upload_of(self, key: str) -> str:
        """Return the unfinished upload of an earlier script, so that it is gone on with, or a new
        one.
        """
        known = self._uploads.pop(key, None)
        if known is None or not self._store.has_upload(key, known):
            known = self._store.start_upload(key, {})
        self._uploads[key] = known
        while len(self._uploads) > UPLOADS_MAX:
            del self._uploads[next(iter(self._uploads))]
        return known

    def _headers_of_parts(self, key: str) -> dict[str, str]:
        """Return the headers that are signed with a part, so that it can be nothing but one."""
        if self._part_headers is None:
            upload = self._store.start_upload(key, {})
            try:
                self._part_headers = self._find_headers(key, upload)
            finally:
                self._store.abort_upload(key, upload)
        return self._part_headers

    def _find_headers(self, key: str, upload: str) -> dict[str, str]:
        nothing = quote(f"{self._bucket}/{key}-{uuid4().hex}")
        query = {"partNumber": "1", "uploadId": upload}
        for headers in ({}, {COPY_SOURCE: ""}):
            url = self._signer.presign("PUT", key, query, headers, 60)
            with self._clients.translated(key):
                as_copy = self._signer.send("PUT", url, {COPY_SOURCE: nothing})
                as_part = self._signer.send("PUT", url, headers)
            if as_copy.status in REFUSALS and as_part.status == 200:
                return headers
        raise NotSupported(
            "a signed part could be turned into a copy of anything in this registry: large files "
            "need upload_role"
        )
