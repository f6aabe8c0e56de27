"""The configuration is read again (SIGHUP): what may change while mounted changes.

What is in `LIVE` is given to the rooms; of all else one line of the log says that it wants a
restart. A new configuration that is wrong is refused as a whole, and the old one goes on.
"""

import logging
import time
from collections.abc import Callable
from functools import partial

import trio

from modelfs.config import Config
from modelfs.errors import ModelfsError
from modelfs.logs import set_level
from modelfs.mount.fuse import Operations
from modelfs.mount.tree import Reloaded, Services
from modelfs.registry.s3 import S3Store
from modelfs.registry.s3_settings import S3Settings
from modelfs.store import publishing
from modelfs.tables import RegistryConfig, said_name

log = logging.getLogger(__name__)

STORE_LIMIT_S = 10.0

LIVE = frozenset(
    {
        *("region", "credentials", "ca_bundle", "addressing", "timeout_s"),
        *("upload_role", "upload_expires_s"),
        *("metadata_ttl_s", "drain_timeout_s", "read_ahead", "read_ahead_formats"),
        *("store_filesystem", "local_only", "staged_max", "cache", "namespaces", "log_level"),
    }
)


class Reloading:
    """See the module. `check` raises StoreError where the store is on the wrong disk."""

    def __init__(
        self,
        name: str,
        file: Config,
        check: Callable[[RegistryConfig], None],
        services: Services,
        s3: S3Store,
        operations: Operations,
    ) -> None:
        self._started = file.registry(name)
        self._file = file
        self._check = check
        self._services = services
        self._s3 = s3
        self._operations = operations

    async def reload(self) -> RegistryConfig:
        """Read the file again and return the configuration that holds from now on."""
        services = self._services
        try:
            file = await trio.to_thread.run_sync(self._file.read_again)
            new = file.registry(self._started.name)
            changed = [name for name in LIVE if _differ(name, new, services.config)]
            config = services.config.model_copy(update={n: getattr(new, n) for n in changed})
            if "store_filesystem" in changed:
                await trio.to_thread.run_sync(self._check, config)
            await trio.to_thread.run_sync(self._s3.use, S3Settings.of(config))
        except (ModelfsError, OSError) as error:
            line = "; ".join(str(error).splitlines())
            log.error("the new configuration is refused, the old one goes on: %s", line)
            services.reloaded = Reloaded(
                time.time_ns(), line, services.reloaded.applied, services.reloaded.needs_restart
            )
            return services.config
        before = services.config
        services.config = config
        self._apply(config)
        if "log_level" in changed:  # else what the command line said holds
            set_level(config.log_level)
        await self._own_namespaces(before, config)
        self._tell(file, new, changed)
        return config

    def _apply(self, config: RegistryConfig) -> None:
        """Give the rooms what they hold of their own; all else is read where it is used."""
        services = self._services
        services.registry.set_times(
            metadata_ttl_s=config.metadata_ttl_s, timeout_s=config.timeout_s
        )
        services.cache.set_limits(config.cache.max_size, config.cache.min_free_bytes)
        services.staging.set_limits(config.local_only, config.staged_max)
        services.prefetcher.set_window(config.read_ahead, config.read_ahead_formats)
        self._operations.set_timeout(config.timeout_s)

    async def _own_namespaces(self, before: RegistryConfig, config: RegistryConfig) -> None:
        """Give the folders of the store that have another owner or mode now what they have."""
        names = [
            name
            for name in sorted({*before.namespaces, *config.namespaces})
            if before.namespace_of(name) != config.namespace_of(name)
        ]
        if not names:
            return
        layout = self._services.library.layout
        own = partial(publishing.own_namespaces, layout, names, config.namespace_of)
        with trio.move_on_after(STORE_LIMIT_S) as limit:  # a disk that hangs ends it some day
            await self._services.disk.run_or_leave(own)
        if limit.cancelled_caught:
            log.warning("namespaces get their owners when the store answers: %s", ", ".join(names))

    def _tell(self, file: Config, new: RegistryConfig, changed: list[str]) -> None:
        applied = tuple(sorted(map(said_name, changed)))
        restart = tuple(
            said_name(name)
            for name in RegistryConfig.model_fields
            if name not in LIVE and _differ(name, new, self._started)
        )
        self._services.reloaded = Reloaded(time.time_ns(), None, applied, restart)
        log.info("the configuration is read again; changed are: %s", ", ".join(applied) or "none")
        if restart:
            log.warning(
                "these want a restart (systemctl restart modelfs@%s), and are what they were: %s",
                *(new.name, ", ".join(restart)),
            )
        for name in sorted(set(file.registries) - set(self._file.registries)):
            log.info(
                "%s is a new registry: systemctl enable --now modelfs@%s mounts it", name, name
            )
        self._file = file


def _differ(name: str, one: RegistryConfig, other: RegistryConfig) -> bool:
    return bool(getattr(one, name) != getattr(other, name))
