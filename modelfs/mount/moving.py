"""What `main/` does to the registry's keys: markers, removals, copies inside the registry.

Every order is chosen so that a crash between two requests leaves a file twice, never not
at all.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from modelfs.concurrency import side_by_side
from modelfs.errors import ModelfsError, NotFound, Stale
from modelfs.mount.tree import Services
from modelfs.names import ModelId
from modelfs.registry.objects import ObjectInfo, format_mtime
from modelfs.store.layout import sync_folder
from modelfs.store.stagedfile import Promise, StagedFile

log = logging.getLogger(__name__)

PARALLEL_COPIES = 8


async def put_marker(services: Services, model: ModelId, path: str) -> None:
    """Make the folder's own key; of a model ('') it is the model's marker.

    A folder that stays on this node has none.
    """
    if services.staging.is_local(path):
        services.staging.local_folders.add((model, path))
        return
    registry = services.registry
    name = f"{path}/" if path else ""
    info = await registry.call(registry.store.put_empty, registry.keys.file(model, name), {})
    registry.note_put(model, name, info)


async def delete_marker(services: Services, model: ModelId, path: str) -> None:
    """Delete a folder's own key; one that has none is as well."""
    services.staging.local_folders.discard((model, path))
    if services.staging.is_local(path):
        return
    registry = services.registry
    await registry.call(registry.store.delete, registry.keys.file(model, f"{path}/"))
    registry.note_removed(model, f"{path}/")


async def delete_file(services: Services, model: ModelId, path: str) -> None:
    """Delete a file's object, then what is staged of it."""
    known = services.registry.known_file(model, path)
    async with _held(services, model, path) as staged:
        if staged is None or staged.base is not None or known is not None:
            await _delete_object(services, model, path)
        if staged is not None:
            await services.staging.discard(staged)


@asynccontextmanager
async def _held(services: Services, model: ModelId, path: str) -> AsyncIterator[StagedFile | None]:
    """Hold what is staged at a path: meanwhile it is not uploaded, and does not settle.

    An upload that is under way is waited for: it must not bring an object back later.
    """
    while (staged := services.staging.get(model, path)) is not None:
        async with staged.lock:
            if services.staging.get(model, path) is staged:
                yield staged
                return
    yield None


async def _delete_object(services: Services, model: ModelId, path: str) -> None:
    registry = services.registry
    info = registry.known_file(model, path)
    await registry.call(registry.store.delete, registry.keys.file(model, path))
    registry.note_removed(model, path)
    if info is not None:
        services.cache.forget(info.id)


async def _copy(services: Services, source: ObjectInfo, key: str) -> ObjectInfo:
    """Copy an object with its metadata; its time stays what it was, recorded or not."""
    registry = services.registry
    found = await registry.call(registry.store.head, source.id.key)
    metadata = dict(found.metadata or {})
    metadata.setdefault("mtime", format_mtime(found.modified_ns))
    copied = await registry.call_upload(registry.store.copy, found, key, metadata)
    mtime_ns = found.modified_ns if found.mtime_ns is None else found.mtime_ns
    copied = replace(copied, mtime_ns=mtime_ns)
    if found.id == source.id:
        services.cache.rename(source.id, copied)
    return copied


async def touch(
    services: Services, model: ModelId, path: str, info: ObjectInfo, mtime_ns: int
) -> ObjectInfo:
    """Record another mtime of a clean file: a copy onto itself. Raises Stale."""
    registry = services.registry
    found = await registry.call(registry.store.head, info.id.key)
    if found.id != info.id:
        raise Stale(f"{path} has changed in the registry")
    metadata = {**(found.metadata or {}), "mtime": format_mtime(mtime_ns)}
    copied = await registry.call_upload(registry.store.copy, found, info.id.key, metadata)
    copied = replace(copied, mtime_ns=mtime_ns)
    services.cache.rename(info.id, copied)
    services.cache.learn(copied)
    registry.note_put(model, path, copied)
    return copied


async def move_file(
    services: Services, model: ModelId, path: str, to_model: ModelId, to_path: str
) -> None:
    """Rename a file: copy its object, drop what is replaced, delete the old object, move what is
    staged of it.

    Of a file that has no object the record of what is staged says all: what is replaced goes with
    it. A name that stays on this node gets no object: what is renamed to it must be staged. The
    kernel has one rename of a name at a time, so no other one waits here for the same two files.
    """
    goes_local = services.staging.is_local(to_path)
    async with (
        _held(services, model, path) as staged,
        _held(services, to_model, to_path) as target,
    ):
        registry, copied = services.registry, None
        info = registry.known_file(model, path)
        is_its_own = staged is None or await _is_its_own(services, staged, info)
        if is_its_own and not goes_local:
            copied = await _copy_over(services, model, path, to_model, to_path, target)
        else:
            assert staged is not None
            if target is not None:
                staged.take_place_of(target)
            base = None if goes_local else registry.known_file(to_model, to_path)
            await _move_staged(services, staged, to_model, to_path, base)
        if target is not None:
            await services.staging.discard(target)
        if copied is not None:
            if target is not None:  # else it could come back by a power cut, and replace the copy
                await services.disk.run(sync_folder, target.path.parent)
            await registry.call(registry.store.delete, registry.keys.file(model, path))
            registry.note_removed(model, path)
            if staged is not None:
                await _move_staged(services, staged, to_model, to_path, copied)
        if goes_local and is_its_own and info is not None:
            await _delete_object(services, model, path)


async def _is_its_own(services: Services, staged: StagedFile, info: ObjectInfo | None) -> bool:
    """Tell whether a file's object goes with it: what others put while it was written stays."""
    if staged.base is not None and not staged.is_dirty:
        return True
    return info is not None and await services.writeback.uploader.conflicts.is_ours(staged, info)


async def _move_staged(
    services: Services,
    staged: StagedFile,
    model: ModelId,
    path: str,
    base: ObjectInfo | None,
) -> None:
    was_local, is_local = staged.promise is Promise.LOCAL, services.staging.is_local(path)
    staged.replaces(base)
    services.staging.move(staged, model, path)
    if was_local and not is_local:
        staged.generation += 1  # from now on it belongs into the registry
        await services.writeback.publish_later(staged)
    elif is_local and not was_local:
        staged.uploaded_generation = staged.generation
        await services.staging.promise(staged, Promise.LOCAL, durable=True)
    else:
        await services.staging.record(staged)


async def _copy_over(
    services: Services,
    model: ModelId,
    path: str,
    to_model: ModelId,
    to_path: str,
    target: StagedFile | None,
) -> ObjectInfo:
    """Copy a file's object to another path, where `target` is staged.

    After a crash the target is uploaded again, as the file that it was: what the copy has put in
    its place is known to it, and no stranger's.
    """
    registry = services.registry
    info = registry.known_file(model, path)
    if info is None:
        raise NotFound(f"{path} is gone from {model}")
    if target is not None:
        target.sent_etags.add(info.id.etag)
        await services.staging.record(target)
    copied = await _copy(services, info, registry.keys.file(to_model, to_path))
    registry.note_put(to_model, to_path, copied)
    return copied


async def move_folder(
    services: Services, model: ModelId, path: str, to_model: ModelId, to_path: str
) -> None:
    """Rename a folder: copy every object below it, then delete the old ones.

    A crash leaves the old folder whole beside copies; what fails is raised, and the old
    folder is whole then, too, and the copies are gone. Raises NameTooLong before anything is done.
    """
    registry = services.registry
    old, new = registry.keys.file(model, f"{path}/"), registry.keys.file(to_model, f"{to_path}/")
    objects = await registry.list_below(old)
    _check_lengths(services, model, path, to_model, to_path, objects)
    copies = await _copy_all(services, objects, old, new)
    if not copies:
        await put_marker(services, to_model, to_path)
    for relative, copied in copies.items():
        registry.note_put(to_model, f"{to_path}/{relative}", copied)
    services.staging.move_local_folders(model, path, to_model, to_path)
    originals = {info.id.key.removeprefix(old): info for info in objects}
    await _move_all_staged(services, model, path, to_model, to_path, originals, copies)
    await _delete_moved(services, [info.id.key for info in objects])
    for relative in copies:
        registry.note_removed(model, f"{path}/{relative}")
    registry.note_removed(model, f"{path}/")


def _check_lengths(
    services: Services,
    model: ModelId,
    path: str,
    to_model: ModelId,
    to_path: str,
    objects: list[ObjectInfo],
) -> None:
    """Raise NameTooLong where a key would become too long."""
    keys = services.registry.keys
    start = keys.file(model, path)
    names = [info.id.key for info in objects]
    names += [keys.file(model, staged.name) for staged in services.staging.below(model, path)]
    for name in names:
        keys.file(to_model, to_path + name.removeprefix(start))


async def _copy_all(
    services: Services, objects: list[ObjectInfo], old: str, new: str
) -> dict[str, ObjectInfo]:
    """Copy objects from below one prefix to below another; return the copies by what follows it.

    What fails takes the copies back. The folder's own marker comes last: it may be there already.
    """
    copies: dict[str, ObjectInfo] = {}
    failures: list[ModelfsError | OSError] = []

    async def copy(info: ObjectInfo) -> None:
        relative = info.id.key.removeprefix(old)
        if failures:
            return
        try:
            copies[relative] = await _copy(services, info, new + relative)
        except (ModelfsError, OSError) as error:  # the others end: none may arrive later
            failures.append(error)

    inside = [info for info in objects if info.id.key != old]
    await side_by_side([partial(copy, info) for info in inside], PARALLEL_COPIES)
    for marker in objects:
        if marker.id.key == old:
            await copy(marker)
    if failures:
        await _take_back(services, [new + info.id.key.removeprefix(old) for info in inside])
        raise failures[0]
    return copies


async def _take_back(services: Services, keys: list[str]) -> None:
    try:
        failed = await services.registry.delete_many(keys)
    except ModelfsError as error:
        failed = dict.fromkeys(keys, str(error))
    if failed:
        key, reason = next(iter(failed.items()))
        log.warning("%d copies of a rename that failed stay, as %s: %s", len(failed), key, reason)


async def _delete_moved(services: Services, keys: list[str]) -> None:
    failed = await services.registry.delete_many(keys)
    if failed:
        key, reason = next(iter(failed.items()))
        raise ModelfsError(f"{len(failed)} old keys stay after a rename, as {key}: {reason}")


async def _move_all_staged(
    services: Services,
    model: ModelId,
    path: str,
    to_model: ModelId,
    to_path: str,
    originals: dict[str, ObjectInfo],
    copies: dict[str, ObjectInfo],
) -> None:
    """Move what is staged below a folder; where the object is someone else's, it is that still."""
    for found in services.staging.below(model, path):
        async with _held(services, model, found.name) as staged:
            if staged is None:
                continue
            relative = staged.name.removeprefix(f"{path}/")
            base = copies.get(relative)
            if not await _is_its_own(services, staged, originals.get(relative)):
                base = staged.base
            await _move_staged(services, staged, to_model, f"{to_path}/{relative}", base)
