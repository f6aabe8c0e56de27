"""How a file is cut into parts when it is uploaded, and the ETag that this gives it."""

from modelfs.registry.bodies import md5_of
from modelfs.registry.objects import UploadedPart
from modelfs.registry.s3_answers import multipart_etag

SINGLE_PUT_MAX = 16 << 20  # bytes; larger files go in parts
UPLOAD_PART_MIN = 8 << 20
PARTS_MAX = 10_000  # S3's limit of one upload


def part_size_of(size: int) -> int:
    """Return the size of the parts in which a file of `size` bytes is uploaded."""
    return max(UPLOAD_PART_MIN, -(-size // PARTS_MAX))


def expected_etag(fd: int, size: int) -> str:
    """Return the ETag that an upload of a file gets; reads all of it, blocking."""
    if size <= SINGLE_PUT_MAX:
        return md5_of(fd, 0, size).hex()
    step = part_size_of(size)
    digests = [md5_of(fd, at, min(step, size - at)) for at in range(0, size, step)]
    etag = multipart_etag([UploadedPart(n, d.hex()) for n, d in enumerate(digests, 1)])
    assert etag is not None  # each part's is an MD5
    return etag
