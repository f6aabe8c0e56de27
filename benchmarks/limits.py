"""The limits: what eight parallel streams get from the registry, by boto3 alone.

Ranged GETs of 8 MiB, each body read in pieces into one buffer of its thread and written at its
place. Nothing is checked, hashed or synced.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import MIB, seconds
from benchmarks.data import PREFIX
from tests.endpoints import S3Endpoint

STREAMS = 8
PART_BYTES = 8 * MIB
PIECE_BYTES = 256 << 10


def download(bucket: S3Endpoint, endpoint: str, sizes: Mapping[str, int], folder: Path) -> float:
    """Download files of acme/llama into a folder; return the seconds."""
    client = client_of(bucket, endpoint)
    files = {name: os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644) for name in sizes}
    parts = [
        (name, at, min(at + PART_BYTES, size))
        for name, size in sizes.items()
        for at in range(0, size, PART_BYTES)
    ]
    buffers = threading.local()

    def fetch(part: tuple[str, int, int]) -> None:
        name, at, end = part
        if not hasattr(buffers, "own"):
            buffers.own = memoryview(bytearray(PIECE_BYTES))
        asked = {"Bucket": bucket.bucket, "Key": PREFIX + name, "Range": f"bytes={at}-{end - 1}"}
        body = client.get_object(**asked)["Body"]
        while got := body.readinto(buffers.own):
            at += os.pwrite(files[name], buffers.own[:got], at)
        assert at == end, f"{name} ended at {at}"

    try:
        return seconds(lambda: _in_parallel(fetch, parts))
    finally:
        for file in files.values():
            os.close(file)


def read_small(bucket: S3Endpoint, names: list[str]) -> float:
    """Get small objects whole; return the seconds."""
    client = client_of(bucket, bucket.endpoint)

    def fetch(name: str) -> None:
        client.get_object(Bucket=bucket.bucket, Key=PREFIX + name)["Body"].read()

    return seconds(lambda: _in_parallel(fetch, names))


def list_all(bucket: S3Endpoint, count: int) -> float:
    """List a model's keys page by page; return the seconds."""
    pages = client_of(bucket, bucket.endpoint).get_paginator("list_objects_v2")

    def walk() -> None:
        found = pages.paginate(Bucket=bucket.bucket, Prefix=PREFIX)
        assert sum(page["KeyCount"] for page in found) == count

    return seconds(walk)


def client_of(bucket: S3Endpoint, endpoint: str) -> Any:
    """Return a new client, with no connection yet."""
    return replace(bucket.server, endpoint=endpoint).client


def _in_parallel(work: Callable[[Any], None], items: list[Any]) -> None:
    with ThreadPoolExecutor(STREAMS) as threads:
        for _ in threads.map(work, items):
            pass
