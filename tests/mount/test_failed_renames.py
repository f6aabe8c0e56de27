"""A rename of a folder that fails on its way, in-process on the fake registry."""

from pathlib import Path

from modelfs.errors import AccessDenied, ModelfsError
from tests.fake_store import FakeStore, Request
from tests.mount.test_tree_model import MAIN, Kernel
from tests.trio_tests import PREFIX, open_house, trio_test

FILES = {"old/a": b"a", "old/b": b"b", "old/deep/c": b"c"}
MOVED = {path.replace("old", "new", 1): data for path, data in FILES.items()}


@trio_test
async def test_a_rename_of_a_folder_happens_whole_or_not_at_all_whichever_request_fails(
    tmp_path: Path,
) -> None:
    for number in range(1, 30):
        store, sent = FakeStore(), []
        for path, data in {"": b"", "old/": b"", **FILES}.items():
            store.place(PREFIX + path, data)

        def refuse(store: FakeStore, request: Request) -> None:
            sent.append(request.operation)  # noqa: B023
            if len(sent) == number:  # noqa: B023
                raise AccessDenied("not now")

        async with open_house(tmp_path / str(number), store) as house:
            kernel, is_refused = Kernel(house), False
            await kernel.read(*MAIN)
            store.hook(refuse)
            try:
                await kernel.rename("old", "new")
            except ModelfsError:
                is_refused = True
            store.unhook()
            files, _ = await kernel.read(*MAIN)
            assert files == store.below(PREFIX), sent
        if is_refused and sent[number - 1] == "DeleteObjects":
            assert files == FILES | MOVED, sent  # twice, and nothing is missing
        else:
            assert files == (FILES if is_refused else MOVED), sent
        if len(sent) < number:
            assert not is_refused
            return
    raise AssertionError("it made more requests than were expected")
