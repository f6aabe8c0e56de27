"""`.modelfs/metrics`: what a mount does and how it is, in Prometheus' text format.

What is shown is read in the trio thread, which owns it, without waiting for anything; it is
made into text by a thread. Every name begins with `modelfs_` (but those of the process), and
every label has few values, which do not grow with what is in the registry.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from modelfs import __version__
from modelfs.concurrency import Threads
from modelfs.counting import Histogram
from modelfs.mount import native
from modelfs.mount.tree import Services
from modelfs.store.freeze import Freeze, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NANO = 1e-9

Samples = Mapping[Any, float]  # by the values of the labels, a tuple


_thread = Threads(1)  # of its own, so that no disk that hangs keeps it waiting


async def metrics(services: Services) -> bytes:
    """Return the text of all metrics as they are now."""
    families = list(_Families(services).all())
    return await _thread.run_or_leave(_text, families)


def _text(families: list[Metric]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Known(families))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Known:
    """A collector of families that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Families:
    """The metrics of one mount at one moment; each has the label `registry`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._registry = services.config.name

    def all(self) -> Iterator[Metric]:
        yield from self._mount()
        yield from self._of_registry()
        yield from self._traffic()
        yield from self._cache()
        yield from self._staged()
        yield from self._uploads()
        yield from self._versions()
        yield from self._store()
        yield from self._handlers()

    # ------------------------------------------------------------ the rooms

    def _mount(self) -> Iterator[Metric]:
        services = self._services
        python = ".".join(map(str, sys.version_info[:3]))
        text = "Always 1; which modelfs this is."
        labels = ("version", "python")
        yield self._gauge("build_info", text, {(__version__, python): 1}, labels)
        yield self._gauge(
            "start_timestamp_seconds",
            "When the daemon began.",
            services.started_ns * NANO,
        )
        yield self._gauge(
            "config_read_timestamp_seconds",
            "When the configuration was read last, at the start or for a reload.",
            services.reloaded.read_ns * NANO,
        )
        yield self._gauge(
            "config_refused",
            "1 where it was wrong then, and the one before it goes on.",
            services.reloaded.error is not None,
        )
        yield self._histogram(
            "event_loop_lag_seconds",
            "How late the event loop was, asked twice a second: requests wait as long.",
            {(): services.lag.seconds},
        )
        failures = {("handler",): services.bugs, ("task",): services.background.failures}
        text = "Errors that modelfs did not expect: bugs, each with a traceback in the log."
        yield self._counter("bugs_total", text, failures, ("place",))

    def _of_registry(self) -> Iterator[Metric]:
        registry = self._services.registry
        reachability, requests = registry.reachability, registry.store.statistics()
        yield self._gauge(
            "registry_reachable", "1 while the registry answers, else 0.", reachability.reachable
        )
        yield self._gauge(
            "registry_reachable_change_timestamp_seconds",
            "When the registry began, or ceased, to answer.",
            reachability.since_ns * NANO,
        )
        text = "Requests to the registry that have ended, by S3's operation and how they ended."
        labels = ("operation", "outcome")
        yield self._counter("registry_requests_total", text, requests.outcomes, labels)
        yield self._histogram(
            "registry_request_duration_seconds",
            "How long it took until the head of an answer was here.",
            {(name,): seconds for name, seconds in requests.seconds.items()},
            ("operation",),
        )
        text = "Requests that were tried again."
        yield self._counter("registry_retries_total", text, registry.retries)
        if requests.credentials_read_ns is not None:
            yield self._gauge(
                "credentials_read_timestamp_seconds",
                "When the file of credentials was last read, as it had changed.",
                requests.credentials_read_ns * NANO,
            )
        yield self._gauge("hidden_keys", "Keys that the tree cannot show.", registry.hidden_count)

    def _traffic(self) -> Iterator[Metric]:
        services = self._services
        requests, uploads = services.requests, services.writeback.statistics()
        yield self._counter(
            "fetched_bytes_total",
            "Bytes of objects that came from the registry.",
            services.fetcher.progress.bytes,
        )
        text = "Parts of objects that came from the registry."
        yield self._counter("fetched_parts_total", text, services.fetcher.fetched_parts)
        yield self._counter(
            "uploaded_bytes_total",
            "Bytes that were sent to the registry, those of failed tries too.",
            uploads.sent_bytes,
        )
        yield self._counter(
            "served_bytes_total",
            "Bytes that read() was given through FUSE; native mounts pass it by.",
            requests.served_bytes,
        )
        text = "Bytes that write() gave through FUSE."
        yield self._counter("written_bytes_total", text, requests.written_bytes)
        text = "Parts of objects that were asked for before anyone wanted them."
        ahead = services.prefetcher.statistics().parts_ahead
        yield self._counter("read_ahead_parts_total", text, ahead)

    def _cache(self) -> Iterator[Metric]:
        cache, warms = self._services.cache.statistics(), self._services.warmer.statistics()
        yield self._gauge("cache_bytes", "Bytes in this node's cache.", cache.bytes)
        yield self._gauge("cache_limit_bytes", "The most of them: max_size.", cache.max_bytes)
        yield self._gauge("cache_files", "Objects that the cache knows.", cache.files)
        text = "Opened files of which something was in the cache."
        yield self._counter("cache_hits_total", text, cache.hits)
        text = "Opened files of which nothing was in the cache."
        yield self._counter("cache_misses_total", text, cache.misses)
        text = "Bytes that the cache gave up for others."
        yield self._counter("cache_evicted_bytes_total", text, cache.evicted_bytes)
        text = "Cached files that were thrown away, as their bytes were wrong."
        yield self._counter("cache_wrong_files_total", text, cache.wrong_files)
        states = {
            ("waiting",): warms.files_waiting,
            ("running",): warms.files_under_way,
        }
        text = "Files that are to be brought into the cache by modelfs warm."
        yield self._gauge("warming_files", text, states, ("state",))
        text = "Files that modelfs warm could not bring."
        yield self._counter("warming_failures_total", text, warms.files_failed)

    def _staged(self) -> Iterator[Metric]:
        staged = self._services.staging.statistics()
        text = "Bytes of files that are written here, and not in the cache yet."
        yield self._gauge("staged_bytes", text, staged.bytes)
        if staged.max_bytes is not None:
            yield self._gauge(
                "staged_limit_bytes", "The most of them: staged_max.", staged.max_bytes
            )
        yield self._gauge("staged_files", "How many files these are.", staged.files)
        text = "Files that a crash left half-written: kept aside, for a person to look at."
        yield self._gauge("aside_files", text, staged.aside_files)

    def _uploads(self) -> Iterator[Metric]:
        writeback = self._services.writeback
        waiting, counts = writeback.waiting(), writeback.statistics()
        failing = sum(1 for staged in waiting if staged.error)
        states = {("running",): len(waiting) - failing, ("waiting",): failing}
        text = "Closed files on their way; those waiting have failed and are tried again."
        yield self._gauge("uploads", text, states, ("state",))
        oldest_ns = min(map(writeback.waiting_since_ns, waiting), default=None)
        yield self._gauge(
            "upload_oldest_age_seconds",
            "How long the oldest of them is on its way; 0 where there is none.",
            0 if oldest_ns is None else max(0.0, (time.time_ns() - oldest_ns) * NANO),
        )
        yield self._counter("uploaded_files_total", "Files that were uploaded.", counts.done_files)
        text = "Tries of an upload that failed."
        yield self._counter("upload_failures_total", text, counts.failed_tries)
        text = "Files that were changed by someone else while they were written here."
        yield self._counter("conflicts_total", text, counts.conflicts)

    def _versions(self) -> Iterator[Metric]:
        library = self._services.library
        freezes = [f for f in library.freezes if f.state is State.DOWNLOADING]
        states = dict.fromkeys([("running",), ("waiting",)], 0)
        for freeze in freezes:
            states[self._state_of(freeze),] += 1
        text = "Freezes of this node under way; those waiting are kept from going on."
        yield self._gauge("freezes", text, states, ("state",))
        left = sum(freeze.manifest.size - freeze.done_bytes for freeze in freezes)
        yield self._gauge("freeze_left_bytes", "What they have yet to bring.", left)
        counts = {
            ("ready",): library.shelves.census.ready_versions,
            ("failed",): len(library.freezes.failed),
            ("damaged",): len(library.damaged),
        }
        text = "Versions in the store; damaged ones are ready, and differ from their manifests."
        yield self._gauge("versions", text, counts, ("state",))
        mounted = len(self._services.native.mounted)
        yield self._gauge("native_mounts", "Versions that are bind-mounted.", mounted)
        yield self._gauge("native_mounts_limit", "The most of them.", native.MOUNTS_MAX)

    def _state_of(self, freeze: Freeze) -> str:
        return "waiting" if freeze.error or self._services.health.state.error else "running"

    def _store(self) -> Iterator[Metric]:
        state = self._services.health.state
        text = "1 while the store's disk is there and answers, else 0."
        yield self._gauge("store_available", text, state.error is None)
        yield self._gauge(
            "store_available_change_timestamp_seconds",
            "When the store's disk began, or ceased, to answer.",
            state.since_ns * NANO,
        )
        yield self._gauge("store_free_bytes", "Free space of the store's disk.", state.free_bytes)
        yield self._gauge("store_size_bytes", "All space of the store's disk.", state.total_bytes)

    def _handlers(self) -> Iterator[Metric]:
        requests = self._services.requests
        yield self._histogram(
            "fuse_request_duration_seconds",
            "How long requests of the kernel took, by operation.",
            {(name,): seconds for name, seconds in requests.seconds.items()},
            ("operation",),
        )
        text = "Requests of the kernel that were answered with an error, by its name."
        labels = ("operation", "error")
        yield self._counter("fuse_errors_total", text, requests.errors, labels)
        text = "Requests of the kernel that are being answered."
        yield self._gauge("fuse_requests", text, requests.under_way)
        yield self._gauge("open_files", "Files that are open through FUSE.", requests.open_files)

    # ------------------------------------------------------------- families

    def _gauge(
        self, name: str, text: str, values: float | Samples, labels: tuple[str, ...] = ()
    ) -> Metric:
        family = GaugeMetricFamily(f"modelfs_{name}", text, labels=("registry", *labels))
        return self._filled(family, values)

    def _counter(
        self, name: str, text: str, values: float | Samples, labels: tuple[str, ...] = ()
    ) -> Metric:
        family = CounterMetricFamily(f"modelfs_{name}", text, labels=("registry", *labels))
        return self._filled(family, values)

    def _filled(
        self, family: GaugeMetricFamily | CounterMetricFamily, values: float | Samples
    ) -> Metric:
        samples = values if isinstance(values, Mapping) else {(): values}
        for labels, value in sorted(samples.items()):
            family.add_metric((self._registry, *labels), float(value))
        return family

    def _histogram(
        self,
        name: str,
        text: str,
        found: Mapping[tuple[str, ...], Histogram],
        labels: tuple[str, ...] = (),
    ) -> Metric:
        family = HistogramMetricFamily(f"modelfs_{name}", text, labels=("registry", *labels))
        for values, seconds in sorted(found.items()):
            family.add_metric(
                (self._registry, *values), buckets=seconds.cumulative(), sum_value=seconds.sum_s
            )
        return family
