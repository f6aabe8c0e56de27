"""Bytes between a file and a connection: bounded memory, no file position, exact lengths.

Whoever sends or receives gives a file descriptor that several threads may use at once:
everything here is pread and pwrite.
"""

import errno
import hashlib
import io
import os
import select
import socket
import time
from typing import Protocol

from modelfs.concurrency import BUFFER_BYTES, thread_buffer
from modelfs.errors import NoSpace, RegistryUnavailable, StoreError
from modelfs.registry.objects import Progress

SEND_BYTES = 256 << 10  # http.client asks for 16 KiB: a call for each costs more than the bytes
SHORTER = "a staged file became shorter while it was uploaded"
TRICKLE_S = 10.0
TRICKLE_BYTES = 32 << 10  # a stream that brings less in TRICKLE_S is stalled


def _pread(fd: int, size: int, offset: int) -> memoryview:
    """Return bytes of a file in this thread's buffer, BUFFER_BYTES at most."""
    buffer = thread_buffer()
    try:
        count = os.preadv(fd, [buffer[:size]], offset)
    except OSError as error:
        raise StoreError(f"a staged file cannot be read: {error.strerror}") from error
    if not count:
        raise StoreError(SHORTER)
    return buffer[:count]


def md5_of(fd: int, offset: int, length: int) -> bytes:
    """Return the MD5 digest of bytes [offset, offset + length) of `fd`; raises StoreError."""
    return _digest_of(hashlib.md5(usedforsecurity=False), fd, offset, length)


def _digest_of(hasher: "hashlib._Hash", fd: int, offset: int, length: int) -> bytes:
    end = offset + length
    while offset < end:
        data = _pread(fd, end - offset, offset)
        hasher.update(data)
        offset += len(data)
    return hasher.digest()


class FileBody:
    """Bytes [offset, offset + length) of `fd` as a seekable file of their own, for sending.

    One that `is_signed` is read twice: the first time, for its signature, nothing is sent.
    """

    def __init__(
        self, fd: int, offset: int, length: int, progress: Progress, *, is_signed: bool = False
    ) -> None:
        self._fd = fd
        self._offset = offset
        self._length = length
        self._progress = progress
        self._position = 0
        self._is_sent = not is_signed

    def __len__(self) -> int:
        return self._length

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._is_sent |= self._position == self._length
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> memoryview | bytes:
        """Return the next bytes, more than were asked for or fewer; b"" at the end.

        They hold until this thread reads again. Raises StoreError where the file lacks them.
        """
        left = self._length - self._position
        wanted = left if size is None or size < 0 else min(left, max(size, SEND_BYTES))
        if wanted <= 0:
            return b""
        data = _pread(self._fd, wanted, self._offset + self._position)
        self._position += len(data)
        if self._is_sent:
            self._progress(len(data))
        return data

    def sha256(self) -> bytes:
        """Return the SHA-256 digest of the bytes; raises StoreError."""
        return _digest_of(hashlib.sha256(), self._fd, self._offset, self._length)

    def send_to(self, sock: socket.socket) -> None:
        """Have the kernel send the bytes by itself, over a plain connection.

        Raises OSError, and StoreError where the file has become shorter.
        """
        ready = select.poll()
        ready.register(sock, select.POLLOUT)
        limit_s = sock.gettimeout()
        done = 0
        while done < self._length:
            if not ready.poll(None if limit_s is None else limit_s * 1000):
                raise TimeoutError("the registry took no bytes")
            wanted = min(BUFFER_BYTES, self._length - done)
            try:
                count = os.sendfile(sock.fileno(), self._fd, self._offset + done, wanted)
            except BlockingIOError:  # there is less room than was promised
                continue
            if not count:
                raise StoreError(SHORTER)
            done += count
            self._progress(count)


class Readable(Protocol):
    """A body that is being received."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer, or its beginning; return how much, 0 at the body's end."""


def receive(body: Readable, length: int, fd: int, at: int, progress: Progress) -> int:
    """Write up to `length` bytes of `body` into `fd` at `at`; return how many there were.

    Raises NoSpace where the disk is full, StoreError where it fails otherwise, and
    RegistryUnavailable where the body only trickles.
    """
    buffer, done, pace = thread_buffer(), 0, Trickle()
    while done < length and (count := body.readinto(buffer[: length - done])):
        write_at(fd, buffer[:count], at + done)
        done += count
        progress(count)
        pace.check(done)
    return done


def fill(body: Readable, buffer: memoryview, progress: Progress) -> int:
    """Fill a buffer with `body`, or its beginning; return how many bytes there were.

    Raises RegistryUnavailable where the body only trickles.
    """
    done, pace = 0, Trickle()
    while done < len(buffer) and (count := body.readinto(buffer[done:])):
        done += count
        progress(count)
        pace.check(done)
    return done


class Trickle:
    """Notices a stream that moves, but so little that another connection must be better."""

    def __init__(self) -> None:
        self._until = time.monotonic() + TRICKLE_S
        self._due = TRICKLE_BYTES

    def check(self, done: int) -> None:
        """Raise RegistryUnavailable where `done` bytes are less than TRICKLE_BYTES a TRICKLE_S."""
        now = time.monotonic()
        if now < self._until:
            return
        if done < self._due:
            raise RegistryUnavailable(
                f"the registry sent less than {TRICKLE_BYTES} bytes in {TRICKLE_S:.0f} s"
            )
        self._until, self._due = now + TRICKLE_S, done + TRICKLE_BYTES


def write_at(fd: int, data: memoryview, at: int) -> None:
    """Write all of `data`; raises NoSpace where the disk is full, StoreError otherwise."""
    while data:
        try:
            count = os.pwrite(fd, data, at)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace("the store's disk is full") from error
            raise StoreError(f"the store's disk fails: {error.strerror}") from error
        data, at = data[count:], at + count
