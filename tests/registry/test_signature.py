"""Requests are signed as botocore signs them: its own signature is what ours is compared with."""

from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from modelfs.registry.s3_http import EMPTY_SHA256, KEY_SAFE, VALUE_SAFE, Signature
from tests.registry.test_get import ODD_KEYS

PAIR = ReadOnlyCredentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)
TEMPORARY = ReadOnlyCredentials("ASIAEXAMPLE", "another/secret", "a+token/of==")


def signed_by_botocore(
    keys: ReadOnlyCredentials, method: str, url: str, headers: dict[str, str]
) -> dict[str, str]:
    request = AWSRequest(method, url, headers=headers)
    S3SigV4Auth(keys, "s3", "eu-west-3").add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@pytest.mark.parametrize("keys", [PAIR, TEMPORARY], ids=["a pair", "temporary"])
@pytest.mark.parametrize("key", [*ODD_KEYS, "plain/config.json"])
@pytest.mark.parametrize("query", [{}, {"versionId": "a+b/c=.~d"}, {"uploadId": "2~x", "z": ""}])
def test_a_signature_is_that_of_botocore(keys, key, query):
    asked = "&".join(f"{k}={quote(v, safe=VALUE_SAFE)}" for k, v in sorted(query.items()))
    path = "/bucket/" + quote(key, safe=KEY_SAFE)
    url = f"http://registry.example:7480{path}" + (f"?{asked}" if asked else "")
    headers = {"range": "bytes=0-4095", "if-match": '"0123-2"'}
    theirs = signed_by_botocore(keys, "GET", url, headers)
    signature = Signature("registry.example:7480", "eu-west-3")
    what = (("GET", path, asked), headers, EMPTY_SHA256, theirs["x-amz-date"])
    ours = signature.sign(keys, *what)
    assert ours["authorization"] == theirs["authorization"]
    assert ours.get("x-amz-security-token") == theirs.get("x-amz-security-token")
    assert ours["host"] == urlsplit(url).netloc
    assert signature.sign(keys, *what) == ours  # with the key that it has kept


def test_a_kept_key_is_not_used_for_another_secret_or_day():
    signature = Signature("registry.example", "us-east-1")
    request = ("GET", "/bucket/key", "")

    def proof(keys: ReadOnlyCredentials, at: str) -> str:
        return signature.sign(keys, request, {}, EMPTY_SHA256, at)["authorization"]

    first = proof(PAIR, "20251122T235959Z")
    assert proof(TEMPORARY, "20251122T235959Z") != first
    next_day = proof(PAIR, "20251123T000000Z")
    assert (
        next_day
        == Signature("registry.example", "us-east-1").sign(
            PAIR, request, {}, EMPTY_SHA256, "20251123T000000Z"
        )["authorization"]
    )
    assert proof(PAIR, "20251122T235959Z") == first
