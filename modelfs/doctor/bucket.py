"""The bucket: is it there, and what may these credentials do in it? Tried, on a probe of its own.

The probe is a small object right below the prefix, invisible to models, and gone afterwards;
where the registry is read-only, nothing is written and an object of others is read.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from modelfs.doctor.outcome import Outcome, failed, ok, warning
from modelfs.doctor.running import Steps
from modelfs.errors import AccessDenied, ModelfsError, NotFound
from modelfs.names import is_plain_name
from modelfs.registry.objects import ObjectInfo
from modelfs.registry.s3_probe import S3Probe, code_of
from modelfs.registry.s3_settings import S3Settings
from modelfs.tables import RegistryConfig

REQUEST_LIMIT_S = 9.0  # a third of it is one wait on a socket
PROBE_BYTES = 1024
OLD_PROBE_S = 3600.0  # an examination takes a minute at most
PAGES_MAX = 100  # of a listing that looks for an object to read
_OF_UPLOADS = "s3:PutObject, s3:AbortMultipartUpload, s3:GetObject"
SLOW = "look at the gateway's log and load, and at the network on the way"
_KEYS_ARE_WRONG = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "ExpiredToken",
    "InvalidToken",
)


def probe_of(config: RegistryConfig, host: str) -> S3Probe:
    """Return a probe of a registry's bucket; no request is sent. Raises ConfigError."""
    limit_s = min(config.timeout_s, REQUEST_LIMIT_S)
    settings = replace(S3Settings.of(config), timeout_s=limit_s, slow_timeout_s=limit_s)
    return S3Probe(settings, config.prefix, host)


class Rights:
    """What may be done below the prefix of a registry, by trying it.

    INVARIANT: when `examine` returns or raises, the probe is erased, or that is told.
    """

    def __init__(self, config: RegistryConfig, probe: S3Probe, step: Steps) -> None:
        self._config = config
        self._probe = probe
        self._step = step
        self._where = f"{config.prefix}* of bucket {config.bucket}"
        self._object: ObjectInfo | None = None
        self._can_ask = self._is_written = False

    def examine(self) -> bool:
        """Try everything; tell whether the registry can be asked at all."""
        self._step("bucket", self._bucket, SLOW)
        if not self._can_ask:
            return False
        if self._config.read_only:
            self._step("read", self._find_object, SLOW)
            self._reads()
            return True
        try:
            self._try("write", self._write, "s3:PutObject", ", or set read_only = true")
            self._is_written = self._object is not None
            if not self._is_written:
                self._step("read", self._find_object, SLOW)
            self._reads()
            if self._is_written:
                self._try("multipart", self._multipart, _OF_UPLOADS)
                self._try("delete", self._delete, "s3:DeleteObject")
        finally:
            self._step("probe", self._erase, SLOW)
        return True

    def _try(self, check: str, look: Callable[[], Outcome], right: str, instead: str = "") -> bool:
        """Run a check that needs a right; where it is refused, say which, and what else to do."""

        def tried() -> Outcome:
            try:
                return look()
            except AccessDenied as error:
                return failed(check, str(error), self._grant(right) + instead)

        return self._step(check, tried, SLOW)

    def _grant(self, right: str) -> str:
        return f"grant {right} on {self._where}"

    # --------------------------------------------------------------- the checks

    def _bucket(self) -> list[Outcome]:
        try:
            page = self._probe.list_page(self._config.prefix, by_folder=True)
        except AccessDenied as error:
            if code_of(error) in _KEYS_ARE_WRONG:
                raise
            if not self._probe.is_known():
                return [failed("bucket", str(error), "it refuses everything: are the keys right?")]
            self._can_ask = True
            return [failed("list", str(error), self._grant("s3:ListBucket"))]
        self._can_ask = True
        names = [folder.removesuffix("/").rpartition("/")[2] for folder in page.folders]
        known = sum(map(is_plain_name, names))
        more = "more than " if page.token else ""
        return [
            ok("bucket", f"{self._config.bucket}{self._versioning()}"),
            ok("list", f"{more}{known} namespaces below {self._config.prefix or 'its root'}"),
        ]

    def _versioning(self) -> str:
        try:
            return ", versioned" if self._probe.is_versioned() else ", not versioned"
        except ModelfsError:  # a right that modelfs does not need
            return ""

    def _write(self) -> Outcome:
        self._object = self._probe.put_bytes(bytes(PROBE_BYTES))
        return ok("write", f"a probe of {PROBE_BYTES} bytes")

    def _find_object(self) -> Outcome | None:
        token = None
        for _ in range(PAGES_MAX):
            page = self._probe.list_page(self._config.prefix, by_folder=False, token=token)
            self._object = next((info for info in page.objects if info.size), None)
            token = page.token
            if self._object is not None or token is None:
                break
        return None if self._object else ok("read", "nothing is there yet that could be read")

    def _reads(self) -> None:
        if self._object is not None:
            self._try("read", self._read, "s3:GetObject")
            self._step("If-Match", self._if_match, SLOW)

    def _read(self) -> Outcome:
        assert self._object is not None
        length = min(self._object.size, PROBE_BYTES)
        came = self._probe.read(self._object, length)
        if not self._is_written:
            return ok("read", f"{length} bytes of {self._object.id.key}")
        if came != bytes(length):
            return failed("read", "other bytes came than were written", "mend the registry")
        return ok("read", "the same bytes came back")

    def _if_match(self) -> list[Outcome]:
        assert self._object is not None
        outcomes = [
            ok("If-Match", "a GET of another state is refused")
            if self._probe.holds_if_match(self._object)
            else failed(
                "If-Match",
                "the registry sends an object that is not in the asked state",
                "use a registry (or a proxy before it) that knows If-Match on GET",
            )
        ]
        if self._is_written:
            outcomes.append(self._if_none_match())
        return outcomes

    def _if_none_match(self) -> Outcome:
        """Note it: modelfs does without."""
        try:
            is_held = self._probe.holds_if_none_match()
        except ModelfsError as error:
            return ok("If-None-Match", f"not known to this registry ({code_of(error)}), not needed")
        return ok(
            "If-None-Match",
            "a PUT over an object is refused where that is asked"
            if is_held
            else "ignored by this registry, not needed",
        )

    def _multipart(self) -> Outcome:
        self._probe.put_in_parts(bytes(PROBE_BYTES))
        return ok("multipart", "started, aborted, a part put, completed")

    def _delete(self) -> Outcome:
        self._probe.delete(self._probe.key)
        try:
            self._probe.head(self._probe.key)
        except NotFound:
            return ok("delete", "the probe is gone")
        except AccessDenied:  # S3's answer for what is not there to whom may not list
            return ok("delete", "accepted; whether it is gone is not told to who may not list")
        return failed(
            "delete",
            "the registry says that it deleted, and still has the object",
            "look for a retention or a policy of the bucket",
        )

    def _erase(self) -> Outcome | None:
        try:
            self._probe.erase()
            self._probe.sweep(time.time_ns() - int(OLD_PROBE_S * 1e9))
        except ModelfsError as error:
            return warning(
                "probe",
                f"{self._probe.key} could not be removed ({error})",
                "remove it; no mount shows it",
            )
        return None
