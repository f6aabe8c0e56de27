"""What status.json shows of a mount.

It is made of what the event loop has in memory: no request and no look at the disk.
"""

import os
import time
from dataclasses import asdict
from typing import Any

from modelfs import __version__
from modelfs.mount.tree import Services


def status(services: Services) -> dict[str, Any]:
    """Return what status.json shows; no request is made for it."""
    config, library = services.config, services.library
    return {
        "registry": config.name,
        "endpoint": config.endpoint,
        "bucket": config.bucket,
        "prefix": config.prefix,
        "mountpoint": str(services.mountpoint),
        "pid": os.getpid(),
        "modelfs": __version__,
        "started_ns": services.started_ns,
        "now_ns": time.time_ns(),
        "configuration": asdict(services.reloaded),
        **_reachability(services),
        "requests": dict(services.registry.store.requests()),
        "traffic": _traffic(services),
        "cache": asdict(services.cache.statistics()),
        "staged": asdict(services.staging.statistics()),
        "warming": asdict(services.warmer.statistics()),
        "read_ahead": asdict(services.prefetcher.statistics()),
        "store": _store(services),
        "uploads": _uploads(services),
        "unfinished_uploads": [asdict(upload) for upload in services.writeback.uploader.unfinished],
        "conflicts": _conflicts(services),
        "freezes": _freezes(services),
        "versions": {
            "ready": library.shelves.census.ready_versions,
            "failed": {str(version): why for version, why in library.freezes.failed.items()},
            "mounted": len(services.native.mounted),
        },
        "damaged": [
            {"version": str(version), "error": why} for version, why in library.damaged.items()
        ],
        "hidden_keys": _hidden_keys(services),
        "counters": _counters(services),
    }


def _reachability(services: Services) -> dict[str, Any]:
    found = services.registry.reachability
    return {
        "reachable": found.reachable,
        "reachable_since_ns": found.since_ns,
        "reachable_error": found.error,
    }


def _conflicts(services: Services) -> list[dict[str, Any]]:
    return [
        {
            "path": f"{conflict.model}/main/{conflict.name}",
            "kept_as": conflict.kept_as,
            "time_ns": conflict.time_ns,
        }
        for conflict in services.writeback.uploader.conflicts.newest
    ]


def _hidden_keys(services: Services) -> list[dict[str, str]]:
    hidden = services.registry.hidden_keys()
    return [{"key": repr(key)[1:-1], "reason": reason} for key, reason in hidden.items()]


def _counters(services: Services) -> dict[str, int]:
    return {
        "fetched_parts": services.fetcher.fetched_parts,
        "uploaded_files": services.writeback.uploaded_files,
        "conflicts": services.writeback.uploader.conflicts.count,
        "bugs": services.bugs,
        "failed_tasks": services.background.failures,
    }


def _traffic(services: Services) -> dict[str, int]:
    """Return bytes since the start."""
    requests, uploads = services.requests, services.writeback.statistics()
    return {
        "fetched_bytes": services.fetcher.progress.bytes,
        "uploaded_bytes": uploads.sent_bytes,
        "served_bytes": requests.served_bytes,
        "written_bytes": requests.written_bytes,
        "open_files": requests.open_files,
    }


def _store(services: Services) -> dict[str, Any]:
    state = services.health.state
    return {
        "path": str(services.config.store),
        "answers": state.error is None,
        "since_ns": state.since_ns,
        "error": state.error,
        "free_bytes": state.free_bytes,
        "total_bytes": state.total_bytes,
    }


def _freezes(services: Services) -> list[dict[str, Any]]:
    return [
        {
            "version": str(freeze.manifest.id),
            "state": str(freeze.state),
            "done_bytes": freeze.done_bytes,
            "total_bytes": freeze.manifest.size,
            "error": freeze.error or services.health.state.error,
        }
        for freeze in services.library.freezes
    ]


def _uploads(services: Services) -> list[dict[str, Any]]:
    waiting = services.writeback.waiting()
    found = [
        {
            "path": f"{staged.model}/main/{staged.name}",
            "bytes": staged.size,
            "state": "waiting" if staged.error else "uploading",
            "since_ns": services.writeback.waiting_since_ns(staged),
            "error": staged.error,
        }
        for staged in waiting
    ]
    for staged in services.staging.aside:
        found.append(
            {
                "path": f"{staged.model}/main/{staged.name}",
                "bytes": staged.size,
                "state": "aside",
                "error": f"not closed before a crash; the bytes are in {staged.path}",
            }
        )
    return found
