"""Examines a node: configuration, registry, store, FUSE, mounts; changes nothing that stays.

Each module looks at one subject, in a process of its own (running.py), and says of each thing
that it checked what it found and what is to be done.
"""

import socket
from collections.abc import Iterator, Sequence
from functools import partial

from modelfs.doctor import fuse, mount, registry, remains, running, service, store
from modelfs.doctor.mount import AskStatus
from modelfs.doctor.outcome import Outcome
from modelfs.doctor.running import Subject
from modelfs.mountinfo import Mounted
from modelfs.store.layout import Layout
from modelfs.tables import RegistryConfig

__all__ = ["AskStatus", "examine"]


def examine(
    configs: Sequence[RegistryConfig], ask_status: AskStatus
) -> Iterator[tuple[str | None, list[Outcome]]]:
    """Yield what was found of the node (None), then of each registry. It forks: no threads yet."""
    subjects = [Subject(None, partial(fuse.examine, partial(_is_known, configs)))]
    for config in configs:
        subjects += _subjects(config, ask_status)
    name, found = None, list[Outcome]()
    for subject, outcomes in running.run(subjects):
        if subject.registry != name:
            yield name, found
            name, found = subject.registry, []
        found += outcomes
    yield name, found


def _is_known(configs: Sequence[RegistryConfig], mounted: Mounted) -> bool:
    return any(mount.is_of(config, mounted) for config in configs)


def _subjects(config: RegistryConfig, ask_status: AskStatus) -> list[Subject]:
    layout = Layout(config.store, socket.gethostname())
    return [
        Subject(config.name, examine_it)
        for examine_it in (
            partial(registry.examine, config),
            partial(store.examine, config, layout),
            partial(remains.examine, layout, config.name),
            partial(mount.examine, config, ask_status),
            partial(service.examine, config),
        )
    ]
