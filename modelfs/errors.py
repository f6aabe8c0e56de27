"""The exception tree. Every class has its errno; its text is one line for a person.

ModelfsError                    EIO
  NotFound                      ENOENT
  AlreadyExists                 EEXIST
  NotEmpty                      ENOTEMPTY
  NotAFolder                    ENOTDIR
  IsAFolder                     EISDIR
  InvalidName                   EINVAL   a name, an argument or a key that is not allowed
  NameTooLong                   ENAMETOOLONG
  NotPermitted                  EPERM    this may never be done here
  Forbidden                     EACCES   the caller has no right to it
  ReadOnly                      EROFS    versions and read-only mounts
  Busy                          EBUSY
  NoData                        ENODATA  also "no such attribute"
  NoSpace                       ENOSPC
  CrossDevice                   EXDEV
  NotSupported                  EOPNOTSUPP
  Stale                         ESTALE   the object is no longer the one that was opened
  WrongBytes                    EIO      bytes that differ from what the registry promised
  VersionFailed                 EIO      a version whose freeze failed for good
  StoreError                    EIO      the store's disk is missing, or of another format
  ConfigError                   EINVAL   a setting is wrong; the text names its key
  MountError                    EIO      the mount cannot be made
  RegistryError                 EIO
    RegistryUnavailable         EIO      no answer, or an answer that may pass (5xx, throttled)
    AccessDenied                EACCES   the registry refuses these credentials
    QuotaExceeded               EDQUOT
    NoSuchBucket                EIO
    CertificateRejected         EIO      the endpoint's certificate cannot be verified
"""

import errno as _errno


class ModelfsError(Exception):
    """Something that went wrong and is understood: `errno` for the kernel, text for a person."""

    errno: int = _errno.EIO


class NotFound(ModelfsError):
    errno = _errno.ENOENT


class AlreadyExists(ModelfsError):
    errno = _errno.EEXIST


class NotEmpty(ModelfsError):
    errno = _errno.ENOTEMPTY


class NotAFolder(ModelfsError):
    errno = _errno.ENOTDIR


class IsAFolder(ModelfsError):
    errno = _errno.EISDIR


class InvalidName(ModelfsError):
    errno = _errno.EINVAL


class NameTooLong(ModelfsError):
    errno = _errno.ENAMETOOLONG


class NotPermitted(ModelfsError):
    errno = _errno.EPERM


class Forbidden(ModelfsError):
    errno = _errno.EACCES


class ReadOnly(ModelfsError):
    errno = _errno.EROFS


class Busy(ModelfsError):
    errno = _errno.EBUSY


class NoData(ModelfsError):
    errno = _errno.ENODATA


class NoSpace(ModelfsError):
    errno = _errno.ENOSPC


class CrossDevice(ModelfsError):
    errno = _errno.EXDEV


class NotSupported(ModelfsError):
    errno = _errno.EOPNOTSUPP


class Stale(ModelfsError):
    errno = _errno.ESTALE


class WrongBytes(ModelfsError):
    """`stored_etag` is what the registry shows of bytes that it took and should not have taken."""

    def __init__(self, text: str, stored_etag: str | None = None) -> None:
        super().__init__(text)
        self.stored_etag = stored_etag


class VersionFailed(ModelfsError):
    pass


class StoreError(ModelfsError):
    pass


class ConfigError(ModelfsError):
    errno = _errno.EINVAL


class MountError(ModelfsError):
    pass


class RegistryError(ModelfsError):
    pass


class RegistryUnavailable(RegistryError):
    pass


class AccessDenied(RegistryError):
    errno = _errno.EACCES


class QuotaExceeded(RegistryError):
    errno = _errno.EDQUOT


class NoSuchBucket(RegistryError):
    pass


class CertificateRejected(RegistryError):
    pass
